"""The place of a rank in the device mesh."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pardalis.errors import ConfigError
from pardalis.parallel.config import ParallelConfig
from pardalis.parallel.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Layout:
    """One rank's place in the mesh ``replicate x shard x tensor``.

    The data-parallel ranks, those of ``replicate x shard``, read different rows. The ranks of one
    tensor-parallel group read the same rows and split the matrices.
    """

    world: World
    mesh: "DeviceMesh | None" = None  # None: a single process
    data_rank: int = 0
    data_size: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1

    @staticmethod
    def alone(device: torch.device | str = "cpu") -> "Layout":
        """Return the layout of a single process."""
        return Layout(World(device=torch.device(device)))

    @property
    def device(self) -> torch.device:
        return self.world.device

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the data-parallel ranks, the same bits in every rank."""
        # All ranks of a tensor-parallel group add the same number.
        return self.world.sum(tensor) / self.tensor_size if self.world.size > 1 else tensor

    def autocast(self, precision: Precision) -> AbstractContextManager[None]:
        """Return the context of a forward pass; FSDP casts sharded parameters by itself."""
        is_needed = precision == "bfloat16" and self.mesh is None
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_needed)


def layout_of(world: World, config: ParallelConfig) -> Layout:
    """Arrange all processes in a mesh, with tensor-parallel ranks as neighbours.

    Raises:
        ConfigError: the number of processes is not a multiple of what the config asks.
    """
    replicate, shard = data_ranks(world.size, config)
    if world.size == 1:
        return Layout(world)
    from torch.distributed.device_mesh import init_device_mesh

    names = ("replicate", "shard", "tensor")
    mesh = init_device_mesh(
        world.device.type, (replicate, shard, config.tensor), mesh_dim_names=names
    )
    data_rank, tensor_rank = divmod(world.rank, config.tensor)
    return Layout(world, mesh, data_rank, replicate * shard, tensor_rank, config.tensor)


def data_ranks(size: int, config: ParallelConfig) -> tuple[int, int]:
    """Return how many ranks replicate and how many shard; raises ConfigError."""
    if size % config.tensor:
        raise ConfigError(
            f"tensor = {config.tensor} needs a multiple of {config.tensor} processes, one for each "
            f"GPU, got {size}; start as many, or change tensor in [parallel]."
        )
    data_size = size // config.tensor
    shard = config.shard or data_size
    if data_size % shard:
        raise ConfigError(
            f"shard = {shard} with tensor = {config.tensor} needs a multiple of "
            f"{shard * config.tensor} processes, one for each GPU, got {size}; start as many, or "
            "change shard in [parallel] (0: all)."
        )
    return data_size // shard, shard
