"""A model over the ranks of a layout: tensor parallelism, recomputation, compilation, FSDP2."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from pardalis.parallel.config import ParallelConfig
from pardalis.parallel.layout import Layout, Precision
from pardalis.parallel.plans import OUTPUTS, UNITS, modules_named, plans_of, shared_inputs

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement

# What selective checkpointing keeps: results that are expensive to recompute for their size, and
# sums over ranks.
_SAVED_OPERATIONS = {
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "flex_attention",
    "_c10d_functional::all_reduce",
}


def parallelise(
    model: Any, layout: Layout, config: ParallelConfig, precision: Precision = "float32"
) -> None:
    """Divide a model among the ranks, in place. Every rank calls it with an equal model.

    Parameters keep their names. A model on the meta device is allocated here, each rank only its
    part, without values; :func:`fill` sets them.

    Args:
        precision: dtype of products and activations; parameters and gradient sums are float32.

    Raises:
        ConfigError: the model cannot be split evenly, or its table has no line for a parameter.
    """
    # Matrices are split first, since split modules are what is wrapped, compiled and sharded.
    if layout.mesh is not None and layout.tensor_size > 1:
        model.config.check_tensor(layout.tensor_size)
        _split_matrices(model, layout.mesh["tensor"])
    for block in modules_named(model, UNITS):
        _wrap_forward(block, config)
    if layout.mesh is not None:
        _shard(model, layout.mesh, precision)
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device=layout.device)


@torch.no_grad()
def fill(parameter: Tensor, whole: Any) -> None:
    """Copy this rank's part of a whole tensor into a parameter; no other part is read.

    Args:
        whole: a tensor, or what is indexed like one, such as a slice of a safetensors file.
    """
    if not hasattr(parameter, "placements"):
        parameter.copy_(whole[...])
        return
    rows, *others = (held_indices(parameter, dim) for dim in range(parameter.ndim))
    if not all(map(len, (rows, *others))):  # an uneven division leaves nothing for this rank
        return
    rest = [slice(int(held[0]), int(held[-1]) + 1) for held in others]
    part, start = local_part(parameter), 0
    for run in torch.tensor_split(rows, (rows.diff() != 1).nonzero()[:, 0] + 1):
        part[start : start + len(run)].copy_(whole[int(run[0]) : int(run[-1]) + 1, *rest])
        start += len(run)


@torch.no_grad()
def local_part(parameter: Tensor) -> Tensor:
    """Return this rank's part of a parameter: the storage itself, not a copy."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def replicas(parameter: Tensor) -> int:
    """Return how many ranks hold equal parts of a parameter."""
    placed: Any = parameter
    kinds = enumerate(getattr(parameter, "placements", ()))
    return math.prod(placed.device_mesh.size(dim) for dim, kind in kinds if kind.is_replicate())


def held_indices(parameter: Tensor, dim: int) -> Int[Tensor, " P"]:
    """Return the indices along a dimension of a whole parameter that this rank holds."""
    indices = torch.arange(parameter.shape[dim])
    if not hasattr(parameter, "placements"):
        return indices
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    part = cast(DTensor, parameter)
    cut = [getattr(placement, "dim", None) == dim for placement in part.placements]
    if dim == 0:  # a rank may hold several ranges, which only the placement itself knows
        kinds = [
            p if is_cut else Replicate() for p, is_cut in zip(part.placements, cut, strict=True)
        ]
    else:
        kinds = [Shard(0) if is_cut else Replicate() for is_cut in cut]
    return distribute_tensor(indices, part.device_mesh, kinds, src_data_rank=None).to_local().cpu()


@torch.no_grad()
def scale_rows(matrix: Tensor, factors: Tensor) -> None:
    """Multiply each row of a matrix by its factor, in place. Every rank passes all factors."""
    column = factors[:, None]
    if hasattr(matrix, "device_mesh"):
        from torch.distributed.tensor import DTensor, Replicate

        mesh = matrix.device_mesh
        column = DTensor.from_local(column, mesh, [Replicate()] * mesh.ndim, run_check=False)
    matrix.mul_(column)


def release(model: nn.Module) -> None:
    """Reshard the parameters that a forward pass without a backward pass left gathered."""
    for module in (model, *modules_named(model, UNITS)):
        if reshard := getattr(module, "reshard", None):
            reshard()


def sum_over_replicas(model: nn.Module, *, in_next_backward: bool) -> None:
    """Set whether the next backward pass sums gradients over the replicas."""
    if set_all_reduce := getattr(model, "set_requires_all_reduce", None):
        set_all_reduce(in_next_backward)


def _split_matrices(model: nn.Module, mesh: "DeviceMesh") -> None:
    from torch.distributed.tensor import distribute_tensor

    for module, plan in plans_of(model):
        for name, parameter in list(module.named_parameters(recurse=False)):
            part = distribute_tensor(
                parameter.detach(), mesh, [_placement(plan.parameters[name])], src_data_rank=None
            )
            module.register_parameter(name, nn.Parameter(part, parameter.requires_grad))
        if not plan.handles_sharding:
            module.register_forward_pre_hook(partial(_to_dtensor, mesh, _placement(plan.input)))
            module.register_forward_hook(partial(_to_local, _placement(plan.output)))
    for module in shared_inputs(model):
        module.register_forward_pre_hook(partial(_to_dtensor, mesh, _placement(None)))
    for module in modules_named(model, OUTPUTS):  # FSDP warns about the views of to_local
        module.register_forward_hook(lambda module, args, output: output.clone())


def _placement(dim: int | None) -> "Placement":
    from torch.distributed.tensor import Replicate, Shard

    return Replicate() if dim is None else Shard(dim)


def _to_dtensor(mesh: "DeviceMesh", placement: "Placement", _: nn.Module, args: Any) -> Any:
    """Turn a module's input into a DTensor; the gradient of a replicated input is summed."""
    from torch.distributed.tensor import DTensor

    first, *rest = args
    if not isinstance(first, DTensor):
        first = DTensor.from_local(first, mesh, [placement], run_check=False)
    return (first, *rest)


def _to_local(placement: "Placement", _: nn.Module, args: Any, output: Any) -> Tensor:
    """Return this rank's part of a module's output, with partial sums added."""
    return output.redistribute(placements=[placement]).to_local()


def _wrap_forward(block: nn.Module, config: ParallelConfig) -> None:
    """Wrap a block's forward; wrapping the block would rename its parameters."""
    forward: Callable[..., Tensor] = block.forward
    if config.activation_checkpointing != "none":
        forward = _checkpointed(forward, config.activation_checkpointing)
    if config.compile:
        forward = torch.compile(forward)
    block.forward = forward


def _checkpointed(
    forward: Callable[..., Tensor], kind: Literal["selective", "full"]
) -> Callable[..., Tensor]:
    options: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def checkpointed(*args: Any) -> Tensor:
        return checkpoint(forward, *args, **options)

    return checkpointed


def _policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_saved = op.name().partition(".")[0] in _SAVED_OPERATIONS
    return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE


def _shard(model: nn.Module, mesh: "DeviceMesh", precision: Precision) -> None:
    """Shard each block separately; the rest is one group that stays gathered until backward."""
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bfloat16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the angles of RoPE need float32
    )
    replicate, shard, _ = mesh.shape
    ranks = mesh["replicate", "shard"] if replicate > 1 else mesh["shard"]
    for block in modules_named(model, UNITS):
        fully_shard(block, mesh=ranks, reshard_after_forward=shard > 1, mp_policy=policy)
    fully_shard(model, mesh=ranks, reshard_after_forward=False, mp_policy=policy)
    register_fsdp_forward_method(model, "hidden")  # the loss multiplies by the head itself
