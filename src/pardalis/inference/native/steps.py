"""Decoding steps of a model in C++: the back end of a CPU.

It runs the batches of :class:`pardalis.inference.steps.StepRunner` on the same weights, cache and
slots, so that either may run any batch. What it does not do is refused by name when it is made
(:class:`Unsupported`); torch does it then.
"""

import ctypes
import functools
import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.inference.automaton import Automaton
from pardalis.inference.cache import PagedCache, PassLayout
from pardalis.inference.native.library import Library, NoLibrary, library
from pardalis.inference.native.linear import RowsLinear, matrix_of
from pardalis.inference.native.structs import Batch, Layer, Matrix, Model, Norm, Sampling
from pardalis.inference.sampling import SamplingTensors, prepare_ids
from pardalis.inference.steps import DecodeBatch, SlotStates
from pardalis.inference.weights import Head, RotationTable, RowsEmbedding, without_bias
from pardalis.model import Decoder, LanguageModel, ModelConfig
from pardalis.model.attention import Attention
from pardalis.model.cross import CrossBlock, CrossModel
from pardalis.model.decoder import Block
from pardalis.model.feed_forward import MLP, SwiGLU
from pardalis.model.norms import (
    GroupedLayerNorm,
    GroupedRMSNorm,
    HeadNorm,
    HeadRMSNorm,
    WholeRMSNorm,
)
from pardalis.model.positions import LearnedPositions
from pardalis.parallel.heads import head_scales

_logger = logging.getLogger(__name__)

_RMS, _LAYER = 1, 2
_PLACEMENTS = ("pre", "reordered", "post")
_ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
_WIDEST_VECTOR = 16  # numbers that the library may read beyond the last hashed id
_TOKENS_A_READ = 8  # that cost as much as reading the weights
_BYTES_A_THREAD = 2**20  # of weights that a step reads: with fewer, another thread costs time


_PARTS = {  # of a block
    Block, CrossBlock, Attention, SwiGLU, MLP, nn.Dropout, nn.Identity,
    nn.RMSNorm, nn.LayerNorm, GroupedRMSNorm, GroupedLayerNorm,
}  # fmt: skip


class Unsupported(Exception):
    """What the model has that the steps in C++ do not do."""


def refuse(model: LanguageModel) -> None:
    """Raise Unsupported if the steps in C++ cannot run a model."""
    if type(model) not in (Decoder, CrossModel):
        raise Unsupported(f"a {type(model).__name__}")
    for name, tensor in model.state_dict().items():
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            raise Unsupported(f"{name} in {str(tensor.dtype).removeprefix('torch.')}")
        if not tensor.is_contiguous():
            raise Unsupported(f"{name}, whose numbers are not contiguous")
    for _, block in _blocks(cast(Decoder | CrossModel, model)):
        for module in [block, *block.children()] if type(block) in _PARTS else [block]:
            if type(module) not in _PARTS:
                raise Unsupported(f"a {type(module).__name__}")


def _blocks(model: Decoder | CrossModel) -> Iterator[tuple[int, Block | CrossBlock]]:
    """Yield the blocks in the order of the cache, each with the number of its trunk."""
    if isinstance(model, CrossModel):
        return model.trunk.blocks()
    return ((0, cast(Block, block)) for block in model.trunk.blocks)


def library_for(model: LanguageModel, adapters: bool) -> Library | None:
    """Return the library if there is one and it can run a model; else log why not, once.

    Args:
        adapters: whether requests may have some. Then torch runs all, so that to the bit a request
            without an adapter does not depend on its neighbours.
    """
    try:
        if adapters:
            raise Unsupported("adapters")
        refuse(model)
        found = library()
        for name, tensor in model.state_dict().items():
            if tensor.numel() and not found.is_finite(matrix_of(tensor.reshape(1, -1))):
                raise Unsupported(f"{name}, which has numbers that are not finite")
    except Unsupported as error:
        _log_once(f"Decoding runs in torch: the steps in C++ cannot run {error}.")
        return None
    except NoLibrary as error:
        _log_once(f"Decoding would be several times as fast in C++, but {error}.")
        return None
    return found


@functools.cache
def _log_once(message: str) -> None:
    _logger.info(message)


class NativeSteps:
    """The steps of one packed model that was not refused, whose linear maps are not joined."""

    def __init__(
        self,
        library: Library,
        model: LanguageModel,
        head: Head,
        automaton: Automaton,
        slots: SlotStates,
    ) -> None:
        assert isinstance(model, Decoder | CrossModel)
        self.library, self._slots = library, slots
        self._kept: list[object] = []  # what the structs point to
        self._last: tuple[DecodeBatch, PagedCache, Batch, list[object]] | None = None
        config = model.config
        layers = [self._layer(config, block, trunk) for trunk, block in _blocks(model)]
        if isinstance(model, Decoder):
            trunks, learned = [model.trunk], [model.position_embedding]
        else:
            trunks = [model.trunk.text, model.trunk.image]
            learned = [model.text_position_embedding, model.image_position_embedding]
        norms = [self._norm(trunk.norm, config.d_model) for trunk in trunks]
        rotation = trunks[0].rotation
        writable = automaton.writable_ids
        hashed = prepare_ids(writable)
        hashed = torch.cat([hashed, hashed.new_zeros(_WIDEST_VECTOR)])
        self._model = Model(
            width=config.d_model,
            n_layers=len(layers),
            heads=config.attention.n_heads,
            kv_heads=config.attention.kv_heads,
            head_width=config.d_head,
            hidden=layers[0].up.rows,
            activation=_ACTIVATIONS.index(getattr(config.feed_forward, "activation", "gelu")),
            n_trunks=len(trunks),
            embedding_scale=config.embedding.scale,
            embedding_norm=self._embedding_norm(model),
            norms=(Norm * 2)(*norms),
            embedding=self._embedding(model.embedding),
            layers=self._array(layers),
            image=self._matrix(head.image),
            text=self._matrix(head.text),
            writable=self._pointer(writable),
            hashed=self._pointer(hashed),
            range_start=self._pointer(automaton.range_start),
            range_stop=self._pointer(automaton.range_stop),
            ends=self._pointer(automaton.ends),
            n_ends=len(automaton.ends),
            begin_image=automaton.vocabulary.begin_image_id,
            eos=automaton.vocabulary.eos_id,
            codes_per_image=automaton.codes_per_image,
        )
        if isinstance(rotation, RotationTable):
            tables = [table.reshape(len(table), -1) for table in (rotation.cos, rotation.sin)]
            self._model.cosines, self._model.sines = map(self._pointer, tables)
            self._model.n_positions = len(rotation.cos)
        for trunk, table in enumerate(learned):
            if isinstance(table, LearnedPositions):
                self._model.positions[trunk] = self._pointer(table.weight)
                self._model.n_positions = table.num_embeddings
        if isinstance(model, CrossModel):
            self._model.combine = self._matrix(model.trunk.combine)
        self._bytes_read = sum(
            matrix.rows * matrix.width * (4, 2, 1)[matrix.kind]
            for layer in layers
            for matrix in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
        )

    def decode(
        self, batch: DecodeBatch, layout: PassLayout, n_steps: int
    ) -> tuple[Int[Tensor, "B T"], Float[Tensor, "steps RW D"] | None] | None:
        """Run steps of a batch without adapters; the states of its slots are advanced.

        Returns what each conditional sequence generated (-1: nothing) and, if the batch reports
        log-probabilities, the hidden states of each step. None: there was no memory, and nothing
        has changed.
        """
        if self._last is None or self._last[0] is not batch or self._last[1] is not layout.cache:
            self._last = (batch, layout.cache, *self._described(batch, layout.cache))
        struct = self._last[2]
        struct.table, struct.table_width = layout.table.data_ptr(), layout.table.shape[1]
        generated = torch.empty(batch.n_conditional, n_steps * batch.window_size, dtype=torch.long)
        hidden = None
        if batch.reported is not None:
            hidden = torch.empty(n_steps, struct.n * batch.window_size, self._model.width)
        struct.n_steps, struct.generated = n_steps, generated.data_ptr()
        struct.hidden = None if hidden is None else hidden.data_ptr()
        threads = min(torch.get_num_threads(), 1 + self._bytes_read // _BYTES_A_THREAD)
        done = self.library.decode(self._model, struct, threads)
        return (generated, hidden) if done else None

    def read(
        self, layout: PassLayout, number: int, ids: Int[Tensor, " T"], positions: Int[Tensor, " T"]
    ) -> Float[Tensor, "T D"] | None:
        """Read a part of a prompt, of one sequence of a layout, and return its hidden states.

        None: there was no memory, and nothing but entries of the cache has changed.
        """
        kept, cache = [], layout.cache

        def addresses(buffers: list[Tensor]) -> int:
            array = (ctypes.c_void_p * len(buffers))(*(each.data_ptr() for each in buffers))
            kept.append(array)
            return ctypes.addressof(array)

        hidden = torch.empty(len(ids), self._model.width)
        struct = Batch(
            n=1,
            n_steps=1,
            window=len(ids),
            table=layout.table[number].data_ptr(),
            table_width=layout.table.shape[1],
            keys=addresses(cache.keys),
            values=addresses(cache.values),
            hidden=hidden.data_ptr(),
            ids=ids.contiguous().data_ptr(),
            positions=positions.contiguous().data_ptr(),
        )
        work = self._bytes_read * min(len(ids), _TOKENS_A_READ)
        threads = min(torch.get_num_threads(), 1 + work // _BYTES_A_THREAD)
        return hidden if self.library.decode(self._model, struct, threads) else None

    def _described(self, batch: DecodeBatch, cache: PagedCache) -> tuple[Batch, list[object]]:
        """Return a batch as the library sees it, but for what changes, and what it points to."""
        kept: list[object] = [batch]

        def pointer(tensor: Tensor) -> int:
            kept.append(tensor)
            return tensor.data_ptr()

        def addresses(buffers: list[Tensor]) -> int:
            array = (ctypes.c_void_p * len(buffers))(*(each.data_ptr() for each in buffers))
            kept.append(array)
            return ctypes.addressof(array)

        def sampling(parts: list[SamplingTensors]) -> Sampling:
            return Sampling(
                **{
                    name: pointer(torch.cat([getattr(part, name) for part in parts]))
                    for name in ("temperature", "top_k", "top_p", "seed")
                }
            )

        limits, branches, window = batch.limits, batch.branches, batch.window
        states = self._slots.states
        struct = Batch(
            n=len(batch.slots),
            n_conditional=batch.n_conditional,
            window=batch.window_size,
            inside_images=int(batch.inside_images),
            slots_stride=states.stride(0),
            states=pointer(states),
            slots=pointer(batch.slots),
            keys=addresses(cache.keys),
            values=addresses(cache.values),
            text=pointer(limits.text),
            max_images=pointer(limits.max_images),
            one_turn=pointer(limits.one_turn),
            one_gap=pointer(limits.one_gap),
            guided=pointer(limits.guided),
            branched_image=pointer(limits.branched_image),
            text_sampling=sampling([group.text for group in batch.groups]),
            image_sampling=sampling([group.image for group in batch.groups]),
        )
        if branches is not None:
            guidance, second = branches.guidance, branches.image_conditional
            struct.conditional = pointer(branches.conditional)
            struct.unconditional = pointer(branches.unconditional)
            struct.image_conditional = pointer(branches.unconditional if second is None else second)
            struct.scale_text, struct.scale_image = map(pointer, (guidance.text, guidance.image))
            struct.alpha, struct.k = pointer(guidance.alpha), pointer(guidance.k)
            struct.classifier_free = pointer(guidance.is_classifier_free)
            struct.contrastive = pointer(guidance.is_contrastive)
        if window is not None:
            struct.codes, struct.guesses = pointer(window.codes), pointer(window.guesses)
            struct.codes_width, struct.grid_width = window.codes.shape[1], window.grid_width
        return struct, kept

    # ── from modules to structs ──────────────────────────────────────────────────────────────

    def _pointer(self, tensor: Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _array(self, layers: list[Layer]) -> "ctypes.Array[Layer]":
        array = (Layer * len(layers))(*layers)
        self._kept.append(array)
        return array

    def _matrix(self, module: nn.Module) -> Matrix:
        module, bias = without_bias(module)
        assert isinstance(module, RowsLinear)
        self._kept += [module, bias]
        return module.matrix(bias)

    def _embedding(self, module: nn.Module) -> Matrix:
        assert isinstance(module, RowsEmbedding)
        self._kept.append(module)
        return matrix_of(module.weight, module.scale)

    def _norm(self, module: nn.Module, width: int) -> Norm:
        if isinstance(module, nn.Identity):
            return Norm()
        is_rms = isinstance(module, nn.RMSNorm | GroupedRMSNorm)
        groups = module.groups if isinstance(module, GroupedRMSNorm | GroupedLayerNorm) else 1
        scale, shift = getattr(module, "weight", None), getattr(module, "bias", None)
        return Norm(
            kind=_RMS if is_rms else _LAYER,
            groups=groups,
            scale=None if scale is None else self._pointer(scale),
            shift=None if shift is None else self._pointer(shift),
            eps=cast(float, module.eps),
        )

    def _embedding_norm(self, model: Decoder | CrossModel) -> Norm:
        norm = model.config.norm
        if not model.config.embedding.norm:
            return Norm()
        return Norm(kind=_RMS, groups=norm.groups, eps=norm.eps)

    def _head_norm(self, module: nn.Module, heads: int) -> Norm:
        if isinstance(module, nn.Identity):
            return Norm()
        assert isinstance(module, HeadNorm | HeadRMSNorm | WholeRMSNorm)
        is_whole = isinstance(module, WholeRMSNorm)
        scale = module.weight if is_whole else head_scales(module.weight, heads)
        scale = scale.expand(heads, -1)
        shift = None
        if isinstance(module, HeadNorm):
            shift = self._pointer(head_scales(module.bias, heads).expand(heads, -1))
        return Norm(
            kind=_LAYER if isinstance(module, HeadNorm) else _RMS,
            groups=module.n_groups if isinstance(module, WholeRMSNorm) else 0,
            scale=self._pointer(scale),
            shift=shift,
            eps=module.eps,
        )

    def _layer(self, config: ModelConfig, block: Block | CrossBlock, trunk: int) -> Layer:
        width, attention, forward = config.d_model, block.attention, cast(Any, block.feed_forward)
        layer = Layer(
            attention_norm=self._norm(block.attention_norm, width),
            q_norm=self._head_norm(attention.q_norm, attention.n_heads),
            k_norm=self._head_norm(attention.k_norm, attention.n_kv_heads),
            q=self._matrix(attention.q_proj),
            k=self._matrix(attention.k_proj),
            v=self._matrix(attention.v_proj),
            o=self._matrix(attention.o_proj),
            trunk=trunk,
            crosses=isinstance(block, CrossBlock),
            skip=1.0,
            branch=1.0,
        )
        if isinstance(block, CrossBlock):
            layer.memory_norm = self._norm(block.memory_norm, width)
        else:
            layer.placement = _PLACEMENTS.index(config.residual.placement)
            layer.skip, layer.branch = config.residual.skip, config.residual.branch
        if block.feed_forward_norm is not None:
            layer.feed_forward_norm = self._norm(block.feed_forward_norm, width)
            layer.up = self._matrix(forward.up_proj)
            layer.down = self._matrix(forward.down_proj)
        if isinstance(forward, SwiGLU):
            layer.gate = self._matrix(forward.gate_proj)
        return layer
