"""JAM-Width: one decoder of twice the width, whose matrices are blocks of both parents'.

Channels of the text parent (T) come first, then those of the image parent (I). A matrix multiplies
from the left, so the first row of blocks makes the text half of the output:

====================== ================ ======================================================
copy                   T  T             the paper's better one, as what is written of it says
                       I  I
average_second_column  T  A             two readings of the paper's "average"; A is the mean
                       I  A             of T and I
average_off_diagonal   T  A
                       A  I
block_diagonal         T  0             not of the paper: both parents side by side
                       0  I
====================== ================ ======================================================

Embeddings, learned positions and the head are concatenated along the width; heads of attention,
hidden units, biases and norms stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pardalis.config import check_above, check_finite
from pardalis.errors import ConfigError
from pardalis.fusion.averages import check_two
from pardalis.fusion.parents import Merged, Parent, made_of, specs_for
from pardalis.interop.tensors import LazyTensor
from pardalis.parameters import ParameterSpec

Blocks = Literal["copy", "average_second_column", "average_off_diagonal", "block_diagonal"]

# Share of T in each block, row by row; None: the block is 0.
_SHARES: dict[Blocks, tuple[tuple[float | None, float | None], ...]] = {
    "copy": ((1.0, 1.0), (0.0, 0.0)),
    "average_second_column": ((1.0, 0.5), (0.0, 0.5)),
    "average_off_diagonal": ((1.0, 0.5), (0.5, 0.0)),
    "block_diagonal": ((1.0, None), (None, 0.0)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthConfig:
    """How the blocks of a matrix are filled, and what goes with that.

    The defaults let a model that is merged with itself compute what it computed.
    """

    kind: Literal["width"] = "width"
    blocks: Blocks = "copy"
    # What the matrices are multiplied by. None: 0.5 where a row has two blocks, whose products are
    # added. What is written of the paper mentions no factor, which would be 1.
    factor: float | None = None
    # Whether each half of the channels is normalised by itself, or all together.
    norms: Literal["halves", "whole"] = "halves"
    head_factor: float = 0.5  # of the head: the logits are the mean of those of both halves; 1: sum

    def __post_init__(self) -> None:
        check_above(self, factor=0, head_factor=0)
        check_finite(self, "factor", "head_factor")
        if self.blocks == "block_diagonal" and self.factor is not None:
            raise ConfigError(
                "factor does not apply to blocks = 'block_diagonal', where a row has one block; "
                "leave it out."
            )

    def merged(self, parents: Sequence[Parent], seed: int) -> Merged:
        """Return the wide decoder.

        Raises:
            ConfigError: they are no two decoders, or have a parameter without a rule.
        """
        check_two(parents, self.kind)
        check_decoders(parents, self.kind)
        text, image = parents
        config = self.config_of(text.config)
        specs = specs_for(text.config)
        tensors = {
            name: self._tensor(name, specs[name], text.tensors[name], image.tensors[name])
            for name in text.tensors
        }
        if text.config.tie_embeddings and not config.tie_embeddings:
            one, other = (parent.tensors["embedding.weight"] for parent in parents)
            tensors["head.weight"] = _side_by_side(one, other, self.head_factor)
        return Merged(config, tensors)

    def config_of(self, config: Any) -> Any:
        """Return the config of the wide decoder of two parents of a config."""
        attention, norm, qk_norm = config.attention, config.norm, config.attention.qk_norm
        if (groups := getattr(qk_norm, "groups", None)) is not None:
            qk_norm = replace(qk_norm, groups=2 * groups)
        if self.norms == "halves":
            norm = replace(norm, groups=2 * norm.groups)
        n_kv_heads = attention.n_kv_heads
        return replace(
            config,
            d_model=2 * config.d_model,
            attention=replace(
                attention,
                n_heads=2 * attention.n_heads,
                n_kv_heads=None if n_kv_heads is None else 2 * n_kv_heads,
                qk_norm=qk_norm,
            ),
            feed_forward=replace(config.feed_forward, width=2 * config.feed_forward.width),
            norm=norm,
            # One matrix cannot be the embedding and, with another factor, the head.
            tie_embeddings=config.tie_embeddings and self.head_factor == 1,
        )

    def _tensor(
        self, name: str, spec: ParameterSpec, text: LazyTensor, image: LazyTensor
    ) -> LazyTensor:
        if len(text.shape) == 2 and spec.split in ("outputs", "inputs"):
            return self._in_blocks(text, image)
        if len(text.shape) == 2 and spec.part in ("embedding", "head"):
            return _side_by_side(text, image, self.head_factor if spec.part == "head" else 1.0)
        if len(text.shape) == 1 or spec.split == "heads":
            rest = text.shape[1:]
            shape = (text.shape[0] + image.shape[0], *rest)
            return made_of([text, image], shape, lambda *parts: torch.cat(parts))
        raise ConfigError(
            f"kind = 'width' has no rule for the parameter {name!r} of the shape {text.shape}; "
            "choose another kind of merge."
        )

    def _in_blocks(self, text: LazyTensor, image: LazyTensor) -> LazyTensor:
        n_outputs, n_inputs = text.shape
        factor = self.factor
        if factor is None:
            factor = 1.0 if self.blocks == "block_diagonal" else 0.5

        def fill(t: Tensor, i: Tensor) -> Tensor:
            whole = t.new_empty(2, n_outputs, 2, n_inputs)
            for row, shares in enumerate(_SHARES[self.blocks]):
                for column, share in enumerate(shares):
                    _fill(whole[row, :, column], t, i, share, factor)
            return whole.view(2 * n_outputs, 2 * n_inputs)

        return made_of([text, image], (2 * n_outputs, 2 * n_inputs), fill)


def _fill(block: Tensor, text: Tensor, image: Tensor, share: float | None, factor: float) -> None:
    """Write share * text + (1 - share) * image, times the factor, into a block; None: 0."""
    if share is None:
        block.zero_()
    elif share in (0, 1):
        torch.mul(text if share else image, factor, out=block)
    else:
        torch.add(text, image, out=block)
        block.mul_(share * factor)


def _side_by_side(text: LazyTensor, image: LazyTensor, factor: float) -> LazyTensor:
    """Concatenate along the width, times a factor."""
    rows, width = text.shape
    return made_of(
        [text, image], (rows, 2 * width), lambda *parts: torch.cat(parts, dim=1).mul_(factor)
    )


def check_decoders(parents: Sequence[Parent], kind: str) -> None:
    """Raise ConfigError if a parent is no plain decoder."""
    for parent in parents:
        if parent.config.kind != "decoder":
            raise ConfigError(
                f"kind = {kind!r} merges decoders, and {parent.folder} is of kind "
                f"{parent.config.kind!r}; choose another kind of merge."
            )
