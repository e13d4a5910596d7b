"""Statistics that show instability before the loss does; they stay on the device until a report.

They are measured at some steps only, and cost one forward pass of one row and a few sums.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pardalis.batch import Batch
from pardalis.model import PARTS, LanguageModel, document_mask
from pardalis.objectives import masks_by_modality
from pardalis.parallel import Layout, World, gradient_norm, local_part, release, replicas
from pardalis.parallel.plans import UNITS, modules_named
from pardalis.parameters import by_part

Statistics = dict[str, Tensor]

# Returns :func:`largest_scores` of an attention call.
AttentionCall = Callable[[], Tensor]

_SAMPLE = 4096  # elements that are sampled of a parameter


def has_statistics(step: int, every: int) -> bool:
    """Return whether statistics are measured at update ``step``; with ``every`` = 0, never."""
    return every > 0 and (step + 1) % every == 0


@torch.no_grad()
def probe(
    model: LanguageModel,
    batch: Batch,
    modalities: Mapping[str, range],
    layout: Layout,
    *,
    within_documents: bool,
) -> Statistics:
    """Run the first row of a batch through the model and return statistics of its activations.

    ``output_rms`` is the root mean square of the last block's output; ``attention_logit`` is the
    largest absolute attention score of any layer. Both are also measured over the positions of
    text tokens, over those of each other modality, and for each layer. Padding is excluded; a
    statistic without positions is NaN.

    This runs without dropout and without compiled code. Only the first data-parallel rank's row
    counts, so results do not depend on the number of ranks; the others run their first row because
    FSDP gathers parameters collectively.
    """
    row = batch.rows(slice(1))
    is_real = (row.documents[0] >= 0) & (layout.data_rank == 0)
    masks = masks_by_modality(row.ids[0], modalities)
    kinds = {"": is_real} | {f"_{name}": is_real & mask for name, mask in masks.items()}
    if within_documents:
        positions, mask = row.positions, document_mask(row.documents)
    else:
        positions, mask = None, document_mask(torch.zeros_like(row.documents))
    blocks = _BlockStatistics(kinds, len(modules_named(model, UNITS)))
    with _evaluating(model), observed_blocks(model, blocks.record):
        model.hidden(row.ids, positions, mask, soft=row.soft)
    release(model)
    return blocks.reduce(layout.world)


def gradient_norms(model: nn.Module) -> Statistics:
    """Return the norm of the gradient of each part of a model."""
    return {
        f"grad_norm.{part}": gradient_norm(p for _, p in named)
        for part, named in _parts(model).items()
    }


def _parts(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Return the parameters that are trained, by part."""
    trained = {
        part: [(name, parameter) for name, parameter in named if parameter.requires_grad]
        for part, named in by_part(model, PARTS).items()
    }
    return {part: named for part, named in trained.items() if named}


@torch.no_grad()
def weight_samples(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of at most 4,096 elements of this rank's part of each trained parameter."""
    samples = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        flat = local_part(parameter.detach()).flatten()
        stride = flat.numel() // _SAMPLE | 1  # odd, to reach all columns of a matrix of even width
        samples[name] = flat[::stride][:_SAMPLE].clone()
    return samples


@torch.no_grad()
def update_ratios(model: nn.Module, before: dict[str, Tensor], layout: Layout) -> Statistics:
    """Return the rms of the last update over the rms of the weights, for each part of a model.

    Args:
        before: samples of the weights before the update.
    """
    after = weight_samples(model)
    parts = _parts(model)
    sums = torch.zeros(len(parts), 2, device=layout.device)
    for i, named in enumerate(parts.values()):
        for name, parameter in named:
            pair = torch.stack([after[name] - before[name], before[name]]).float()
            scale = local_part(parameter).numel() / max(pair.shape[1], 1) / replicas(parameter)
            sums[i] += pair.square().sum(1) * scale
    updates, weights = layout.world.sum(sums).unbind(1)
    return {
        f"update_ratio.{part}": ratio
        for part, ratio in zip(parts, (updates / weights).sqrt(), strict=True)
    }


def largest_scores(
    q: Float[Tensor, "B N T H"],
    k: Float[Tensor, "B K S H"],
    v: Float[Tensor, "B K S H"],
    attn_mask: Bool[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "B N T"]:
    """Return the largest absolute score of each query over the keys that the mask allows.

    The arguments are those of ``F.scaled_dot_product_attention``. Scores are in fp32 and of one
    head at a time, to save memory.
    """
    if is_causal:
        attn_mask = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries_of_key = q.shape[1] // k.shape[1]
    largest = []
    with torch.autocast(q.device.type, enabled=False):
        for head in range(q.shape[1]):
            keys = k[:, head // queries_of_key].float()
            scores = (q[:, head].float() @ keys.mT).mul_(scale).abs_()
            if attn_mask is not None:
                scores.masked_fill_(~attn_mask.expand(*q.shape[:3], -1)[:, head], 0.0)
            largest.append(scores.amax(-1))
    return torch.stack(largest, 1)


@contextmanager
def observed_blocks(
    model: LanguageModel, observe: Callable[[int, Tensor, list[AttentionCall]], None]
) -> Iterator[None]:
    """Call ``observe`` after each block, with its number, output and attention calls.

    The hook is on the block, not inside it, where recomputation would call it a second time. Calls
    outside the blocks, such as those of another model, are left out.
    """
    recorder = _AttentionCalls()

    def before(*_: Any) -> None:
        recorder.calls = []

    def after(layer: int, block: nn.Module, args: Any, output: Tensor) -> None:
        calls, recorder.calls = recorder.calls, []
        with torch.no_grad():
            observe(layer, output, calls)

    with ExitStack() as stack:
        for layer, block in enumerate(modules_named(model, UNITS)):
            stack.callback(block.register_forward_pre_hook(before).remove)
            stack.callback(block.register_forward_hook(partial(after, layer)).remove)
        stack.enter_context(recorder)
        yield


class _AttentionCalls(TorchFunctionMode):
    """Records the arguments of every attention call while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[AttentionCall] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.calls.append(partial(largest_scores, *args, **kwargs))
        return func(*args, **kwargs)


class _BlockStatistics:
    """Statistics of block outputs and attention scores during one forward pass of one row.

    Args:
        kinds: masks of positions, by the end of the name of their statistics; first that of all.
    """

    def __init__(self, kinds: Mapping[str, Bool[Tensor, " T"]], n_layers: int) -> None:
        self._names = list(kinds)
        self._kinds = torch.stack([*kinds.values()])
        shape, device = (len(kinds), n_layers), self._kinds.device
        self._squares = torch.zeros(shape, device=device)
        self._logits = torch.full(shape, -math.inf, device=device)

    def record(
        self, layer: int, output: Float[Tensor, "1 T D"], attention: list[AttentionCall]
    ) -> None:
        squares = output[0].float().square().mean(-1)
        self._squares[:, layer] = torch.where(self._kinds, squares, 0.0).sum(1)
        scores = torch.stack([call()[0].amax(0) for call in attention]).amax(0)
        self._logits[:, layer] = torch.where(self._kinds, scores, -math.inf).amax(1)

    def reduce(self, world: World) -> Statistics:
        counts = self._kinds.sum(1, keepdim=True).expand_as(self._squares).float()
        squares, counts = world.sum(torch.stack([self._squares, counts]))
        rms = (squares / counts).sqrt()
        logits = world.gather(self._logits[None]).amax(0)
        logits = logits.masked_fill(logits < 0, math.nan)  # no position of the kind
        return self._named("output_rms", rms, rms[:, -1]) | self._named(
            "attention_logit", logits, logits.amax(1)
        )

    def _named(
        self, name: str, layers: Float[Tensor, "M L"], whole: Float[Tensor, " M"]
    ) -> Statistics:
        named = {f"{name}{kind}": x for kind, x in zip(self._names, whole, strict=True)}
        return named | {f"{name}.{i:02d}": x for i, x in enumerate(layers[0])}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    with torch.compiler.set_stance("force_eager"):
        yield
    model.train(was_training)
