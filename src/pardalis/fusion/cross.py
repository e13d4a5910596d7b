"""JAM-Cross: both trunks as they are, cross-attention between them, embedding and head shared.

The model is :class:`pardalis.model.CrossModel`. Rows of text tokens are those of the text parent,
rows of image tokens those of the image parent, in the embedding and in the head. With output
matrices of 0, the new layers are the identity, and the final state is

    text_share * (state of the text trunk) + (1 - text_share) * (state of the image trunk)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from pardalis.config import check_at_least, check_fractions
from pardalis.fusion.averages import check_two
from pardalis.fusion.parents import Merged, Parent, specs_for
from pardalis.fusion.vocabulary import by_modality
from pardalis.fusion.width import check_decoders
from pardalis.interop.model import decoder_shapes
from pardalis.interop.tensors import LazyTensor
from pardalis.model import CrossAttentionConfig, CrossShape, ModelShape, initial_values
from pardalis.parameters import ParameterSpec

_READER = {"text": "image", "image": "text"}  # the trunk that each trunk attends to


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossMergeConfig:
    """How the trunks attend to each other, and how what is new begins."""

    kind: Literal["cross"] = "cross"
    interval: int = 2  # layers from one cross-attention to the next
    feed_forward: bool = True  # whether a feed-forward layer follows each cross-attention
    text_share: float = 0.5  # of the final state, before training; the rest is the image trunk's
    # Matrices that end a new branch: 0, so that it adds nothing yet; or drawn as in a new model.
    outputs: Literal["zero", "drawn"] = "zero"
    # The other new matrices: drawn, or those of the layer before, where the queries are of the own
    # trunk and the keys and values of the other.
    projections: Literal["drawn", "copied"] = "drawn"

    def __post_init__(self) -> None:
        check_at_least(self, interval=1)
        check_fractions(self, "text_share")

    def merged(self, parents: Sequence[Parent], seed: int) -> Merged:
        """Return the model of two trunks.

        Args:
            seed: of what is drawn.

        Raises:
            ConfigError: they are no two decoders.
        """
        check_two(parents, self.kind)
        check_decoders(parents, self.kind)
        text, image = parents
        config = self.config_of(text.config)
        known, specs = dict(self._of_parents(text, image)), specs_for(config)
        known["trunk.combine.weight"] = _combination(text.config.d_model, self.text_share)
        dtype = reduce(
            torch.promote_types, (t.dtype for each in parents for t in each.tensors.values())
        )
        tensors = {
            name: (known.get(name) or _new(name, shape, specs[name], config, seed)).to(dtype)
            for name, shape in decoder_shapes(config).items()
        }
        if self.outputs == "zero":
            ends = (name for name in tensors if _is_output(name))
            tensors |= {name: _zeros(tensors[name]) for name in ends}
        return Merged(config, tensors)

    def config_of(self, config: Any) -> Any:
        """Return the config of the model of two trunks of a decoder's config."""
        cross = CrossAttentionConfig(interval=self.interval, feed_forward=self.feed_forward)
        values = {each.name: getattr(config, each.name) for each in fields(ModelShape)}
        shape = CrossShape(**values | {"kind": "cross"}, cross=cross)
        return shape.sized(config.vocab_size, config.context)

    def _of_parents(self, text: Parent, image: Parent) -> Iterator[tuple[str, LazyTensor]]:
        yield from by_modality(text, image).items()
        parents = {"text": text, "image": image}
        for side, parent in parents.items():
            for name, tensor in parent.tensors.items():
                if name.startswith("trunk."):
                    yield name.replace("trunk.", f"trunk.{side}.", 1), tensor
                elif name.startswith("position_embedding."):
                    yield f"{side}_{name}", tensor
        if self.projections == "copied":
            for side, own in parents.items():
                yield from self._copied(side, own, parents[_READER[side]])

    def _copied(self, side: str, own: Parent, other: Parent) -> Iterator[tuple[str, LazyTensor]]:
        """Yield the tensors of one trunk's cross-attention that begin as those of layers."""
        for number in range(own.config.n_layers // self.interval):
            layer = f"trunk.blocks.{(number + 1) * self.interval - 1}."
            block = f"trunk.{side}_cross_blocks.{number}."
            for name, tensor in own.tensors.items():
                if not name.startswith(layer) or _is_output(name):
                    continue
                last = name.removeprefix(layer)
                if last.startswith("feed_forward") and not self.feed_forward:
                    continue
                is_read = last.startswith(("attention.k_", "attention.v_"))
                yield block + last, other.tensors[name] if is_read else tensor
                if last.startswith("attention_norm."):
                    memory = last.replace("attention_norm", "memory_norm")
                    yield block + memory, other.tensors[name]


def _is_output(name: str) -> bool:
    """Whether a tensor of a new layer, or of the layer that it is like, ends a branch."""
    is_end = ".o_proj." in name or ".down_proj." in name
    return is_end and ("_cross_blocks." in name or name.startswith("trunk.blocks."))


def _new(
    name: str,
    shape: tuple[int, ...],
    spec: ParameterSpec,
    config: Any,
    seed: int,
) -> LazyTensor:
    def draw() -> Tensor:
        return initial_values(torch.empty(shape), name, spec, config, seed)

    return LazyTensor(shape, torch.float32, draw)


def _zeros(tensor: LazyTensor) -> LazyTensor:
    shape, dtype = tensor.shape, tensor.dtype
    return LazyTensor(shape, dtype, lambda: torch.zeros(shape, dtype=dtype))


def _combination(d_model: int, text_share: float) -> LazyTensor:
    def blocks() -> Tensor:
        return torch.cat([s * torch.eye(d_model) for s in (text_share, 1 - text_share)], dim=1)

    return LazyTensor((d_model, 2 * d_model), torch.float32, blocks)
