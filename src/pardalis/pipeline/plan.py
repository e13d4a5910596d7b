"""Memory, speed, time and cost of a recipe, computed before it runs.

Nothing is allocated, and nothing has to be trained. Memory is the peak of a step: the loss has been
computed and the backward pass begins, and all gradients count as allocated. ``_USABLE`` allows for
what the framework adds.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pardalis import bundle as bundles
from pardalis.adapters import install, row_ids
from pardalis.errors import ConfigError
from pardalis.fusion import CrossMergeConfig, UniformConfig, WidthConfig
from pardalis.model import (
    Execution,
    ModelConfig,
    ModelCosts,
    block_bytes_per_token,
    build,
    model_costs,
    recomputed_bytes_per_token,
)
from pardalis.parallel import ParallelConfig
from pardalis.parallel.layout import data_ranks
from pardalis.pipeline.accelerators import find_accelerator
from pardalis.pipeline.recipe import GivenModel, Recipe, TextTokenizerConfig
from pardalis.pipeline.start import codec_bundle, image_tokenizer_folder, start_config
from pardalis.tokens import Vocabulary
from pardalis.train import DecoderTrainConfig, MuonConfig
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

_USABLE = 0.92  # share of a device's memory; the rest: its context, messages, fragmentation
_FP32 = 4
_MOST_TENSOR = 8  # tensor-parallel ranks, which share the fast links of one node

_Change = tuple[str, str, Any]  # table of the recipe, key, value


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one rank by kind."""

    weights: int  # parameters, in float32; frozen matrices as they are stored
    gradients: int
    optimizer: int  # the moments of Adam, or of Muon
    activations: int  # kept for the backward pass
    loss: int  # logits of a chunk, and gradients of the head and of its input
    buffers: int  # weights gathered or rounded for computing, and their gradients

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What an adapter trains, beside a frozen model."""

    parameters: int
    trains_rows: bool  # of embedding and head
    inside_bytes: int  # of a number of the frozen matrices of blocks
    outside_bytes: int  # of a number of the frozen embedding and head


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Everything that decides the memory of a rank."""

    model: ModelConfig
    training: DecoderTrainConfig
    parallel: ParallelConfig
    ranks: int
    on_cpu: bool = False
    adapter: Trained | None = None  # None: the whole model is trained

    def __post_init__(self) -> None:
        data_ranks(self.ranks, self.parallel)
        self.model.check_tensor(self.parallel.tensor)

    @property
    def shards(self) -> int:
        return data_ranks(self.ranks, self.parallel)[1]

    @property
    def data_size(self) -> int:
        """Ranks that read different rows."""
        return self.ranks // self.parallel.tensor

    @property
    def micro_rows(self) -> int:
        """Rows in one forward pass of a rank."""
        return -(-self.training.batch_rows // (self.data_size * self.training.accumulation_steps))

    @property
    def number_bytes(self) -> int:
        return 2 if self.training.precision == "bfloat16" else _FP32

    @property
    def uses_autocast(self) -> bool:
        """Whether autocast rounds the weights in use, as in a single process."""
        return self.ranks == 1 and self.number_bytes != _FP32

    def execution(self) -> Execution:
        return Execution(
            checkpointing=self.parallel.activation_checkpointing,
            compute_bytes=self.number_bytes,
            residual_bytes=_FP32 if self.uses_autocast else self.number_bytes,
            compiled=self.parallel.compile,
            on_cpu=self.on_cpu,
            tensor=self.parallel.tensor,
        )


def memory_of(setting: Setting, counts: ModelCosts, rows: int) -> Memory:
    """Return the memory of a rank whose micro-batch has ``rows`` rows."""
    model, training, tensor = setting.model, setting.training, setting.parallel.tensor
    own = counts.parameters - counts.parts["norms"]
    per_group = (
        own // tensor + counts.parts["norms"]
    )  # parameters of one tensor-parallel rank, unsharded
    per_rank = -(-per_group // setting.shards)
    weights = _FP32 * per_rank
    if setting.adapter is not None:
        held = _frozen_bytes(counts, setting.adapter) // tensor // setting.shards
        # Most of the added matrices are whole in every rank of a tensor-parallel group.
        per_rank = -(-setting.adapter.parameters // setting.shards)
        weights = held + _FP32 * per_rank
    moments = 2 * per_rank
    if isinstance(training.optimizer, MuonConfig):  # one moment for the matrices inside blocks
        inside = counts.parts["attention"] + counts.parts["feed_forward"]
        moments -= inside // tensor // setting.shards
    return Memory(
        weights=weights,
        gradients=_FP32 * per_rank,
        optimizer=_FP32 * moments,
        activations=_activations(setting, rows),
        loss=_loss(setting, rows * model.context),
        buffers=_buffers(setting, counts, per_group),
    )


def _frozen_bytes(counts: ModelCosts, adapter: Trained) -> int:
    outside = counts.parts["embedding"] + counts.parts["head"]
    inside = counts.parameters - outside - counts.parts["norms"]
    return (
        inside * adapter.inside_bytes
        + outside * adapter.outside_bytes
        + counts.parts["norms"] * _FP32
    )


def _activations(setting: Setting, rows: int) -> int:
    model, how = setting.model, setting.execution()
    per_token = model.n_blocks * block_bytes_per_token(model, how)
    per_token += recomputed_bytes_per_token(model, how)
    # The final norm's input and output; cosines and sines; ids, targets, positions, documents.
    copies = 2 if how.on_cpu else 1
    per_token += model.d_model * (copies * how.residual_bytes + how.compute_bytes)
    per_token += 2 * model.d_head * _FP32 + 5 * 8
    return rows * model.context * per_token


def _loss(setting: Setting, tokens: int) -> int:
    model, size = setting.model, setting.number_bytes
    columns = model.vocab_size // setting.parallel.tensor
    wide = 0 if size == _FP32 else _FP32  # logits in float32 beside those of the product
    logits = min(setting.training.objective.loss_chunk, tokens) * columns * (size + wide)
    hidden = tokens * model.d_model * size
    if setting.on_cpu:  # there the rows that count for nothing are left out, by a copy
        hidden *= 2
    # The gradient of the head becomes that of the parameter, unless it is accumulated or sharded,
    # or the embedding's is added to it.
    is_new = setting.ranks == 1 and setting.training.accumulation_steps == 1
    is_new = is_new and not model.tie_embeddings
    head = 0 if is_new else columns * model.d_model * _FP32
    if setting.adapter is not None:  # with rows, a copy of the head and its gradient
        of_rows = columns * model.d_model * (size + _FP32)
        head = of_rows if setting.adapter.trains_rows else 0
    return logits + hidden + head


def _buffers(setting: Setting, counts: ModelCosts, per_group: int) -> int:
    """Return the bytes of gathered weights, and of gradients before they are sharded."""
    size, tensor = setting.number_bytes, setting.parallel.tensor
    root = (counts.parts["embedding"] + counts.parts["head"]) // tensor
    inside = per_group - root
    if setting.adapter is not None and setting.ranks == 1:  # a frozen matrix is rounded by itself
        is_rounded = setting.adapter.inside_bytes != size
        return size * (is_rounded * inside // setting.model.n_blocks + counts.parts["head"])
    if setting.uses_autocast:
        return size * (inside + counts.head_parameters)
    if setting.ranks == 1:
        return 0
    block = inside // setting.model.n_blocks
    # Embedding and head stay gathered. So do all blocks if they are not sharded, otherwise the
    # current block and the next one. The gradients of a block are whole until their float32 sum.
    gathered = root + (inside if setting.shards == 1 else min(2 * block, inside))
    return size * gathered + size * (root + block) + _FP32 * block


def largest_rows(setting: Setting, counts: ModelCosts, usable: int) -> int:
    """Return the largest micro-batch that fits, in rows; 0 if not even one row does."""
    if memory_of(setting, counts, 1).total > usable:
        return 0
    low, high = 1, 2
    while memory_of(setting, counts, high).total <= usable:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if memory_of(setting, counts, middle).total <= usable:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """Memory, time and cost of a recipe on given devices."""

    recipe: str
    device: str
    gpus: int
    parameters: int
    parts: dict[str, int]  # parameters
    trained: int  # parameters that are trained: those of an adapter, or all
    flops_per_token: int  # forward and backward; see pardalis.model.count
    replicate: int  # ranks with equal parameters
    shard: int  # ranks that each hold a part of every parameter
    tensor: int  # tensor-parallel ranks
    row_tokens: int
    batch_rows: int
    accumulation_steps: int
    micro_rows: int  # rows in one forward pass of a rank
    memory: Memory  # with that many rows
    memory_total: int
    memory_of_device: int
    memory_usable: int
    largest_micro_rows: int  # the largest number of rows that fits; 0: none
    device_flops: float  # dense, from the datasheet
    utilisation: float  # assumed, not measured: model FLOPs over the device's
    tokens_per_second: float
    seconds_per_step: float
    steps: int
    hours: float
    cost: float | None
    warnings: tuple[str, ...]


def plan(
    recipe: Recipe,
    *,
    gpus: int | None = None,
    device: str = "h200",
    utilisation: float = 0.4,
    price: float | None = None,
) -> RunPlan:
    """Return the memory, time and cost of training the decoder of a recipe.

    Args:
        gpus: number of devices, with one rank each. Default: the fewest that the recipe allows.
        device: a name in :data:`pardalis.pipeline.accelerators.DEVICES`.
        utilisation: model FLOPs over the peak rate of the device.
        price: price of one device for an hour, in any currency.

    Raises:
        ConfigError: the recipe trains no decoder, its ranks do not divide as it asks, an argument
            is out of range, or the device is unknown.
        BundleError: the recipe names a trained image tokenizer or a bundle that is not there.
    """
    if not 0 < utilisation <= 1:
        raise ConfigError(f"`utilisation` must lie in (0, 1], got {utilisation}.")
    if price is not None and not 0 <= price < math.inf:
        raise ConfigError(f"`price` must be 0 or more, got {price}.")
    setting = setting_of(recipe, gpus, device)
    described, accelerator, gpus = recipe.model_run, find_accelerator(device), setting.ranks
    counts, usable = model_costs(setting.model), int(_USABLE * accelerator.memory)
    memory = memory_of(setting, counts, setting.micro_rows)
    work = _flops_per_token(setting, counts)
    speed = gpus * accelerator.flops * utilisation / work
    step_s = setting.training.batch_rows * setting.model.context / speed
    hours = described.loop.steps * step_s / 3600
    replicate, shard = data_ranks(gpus, setting.parallel)
    return RunPlan(
        recipe=recipe.name,
        device=device,
        gpus=gpus,
        parameters=counts.parameters,
        parts=counts.parts,
        trained=setting.adapter.parameters if setting.adapter else counts.parameters,
        flops_per_token=work,
        replicate=replicate,
        shard=shard,
        tensor=setting.parallel.tensor,
        row_tokens=setting.model.context,
        batch_rows=setting.training.batch_rows,
        accumulation_steps=setting.training.accumulation_steps,
        micro_rows=setting.micro_rows,
        memory=memory,
        memory_total=memory.total,
        memory_of_device=accelerator.memory,
        memory_usable=usable,
        largest_micro_rows=largest_rows(setting, counts, usable),
        device_flops=accelerator.flops,
        utilisation=utilisation,
        tokens_per_second=speed,
        seconds_per_step=step_s,
        steps=described.loop.steps,
        hours=hours,
        cost=None if price is None else hours * gpus * price,
        warnings=tuple(_warnings(setting, counts, usable)),
    )


def setting_of(recipe: Recipe, gpus: int | None, device: str) -> Setting:
    """Return what decides the memory of a recipe's ranks; arguments and errors as :func:`plan`."""
    if gpus is None:
        gpus = max(1, recipe.parallel.shard) * recipe.parallel.tensor
    if gpus < 1:
        raise ConfigError(f"`gpus` must be at least 1, got {gpus}.")
    if not recipe.has_model:
        raise ConfigError(f"Recipe {recipe.name!r} trains no model, so there is nothing to plan.")
    return Setting(
        model=planned_model(recipe),
        training=recipe.model_run.training,
        parallel=recipe.parallel,
        ranks=gpus,
        on_cpu=device == "cpu",
        adapter=planned_adapter(recipe),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MergePlan:
    """What training and decoding cost after a kind of merge."""

    kind: str
    parameters: int
    flops_per_token: int  # forward and backward
    cache_bytes_per_token: int  # keys and values of all layers, in float32
    memory_total: int  # of a rank in training


def merge_plans(
    recipe: Recipe, *, gpus: int | None = None, device: str = "h200"
) -> list[MergePlan]:
    """Return the costs of merging two models of a recipe's shape, by kinds with their defaults.

    The first line, ``parent``, is that of one such model. Arguments are those of :func:`plan`.

    Raises:
        ConfigError: as :func:`plan`, or the model is no decoder.
        BundleError: as :func:`plan`.
    """
    setting = setting_of(recipe, gpus, device)
    if setting.model.kind != "decoder":
        raise ConfigError(
            f"merges are planned for a recipe of a decoder, and that of {recipe.name!r} is of kind "
            f"{setting.model.kind!r}; leave `merges` out."
        )
    shapes = {"parent": setting.model} | {
        how.kind: how.config_of(setting.model)
        for how in (UniformConfig(), WidthConfig(), CrossMergeConfig())
    }
    return [_merge_plan(kind, replace(setting, model=model)) for kind, model in shapes.items()]


def _merge_plan(kind: str, setting: Setting) -> MergePlan:
    counts = model_costs(setting.model)
    return MergePlan(
        kind=kind,
        parameters=counts.parameters,
        flops_per_token=counts.train_flops_per_token,
        cache_bytes_per_token=counts.cache_bytes_per_token,
        memory_total=memory_of(setting, counts, setting.micro_rows).total,
    )


def planned_model(recipe: Recipe) -> Any:
    """Return the shape of the decoder over the recipe's rows; no tokenizer need be trained."""
    described = recipe.model_run
    row_tokens = described.prepare.row_tokens
    if isinstance(described.model, GivenModel):
        return replace(start_config(described.model, row_tokens), context=row_tokens)
    return described.model.sized(planned_vocabulary(recipe).size, row_tokens)


def planned_adapter(recipe: Recipe) -> Trained | None:
    """Return what the adapter of a recipe trains; None if it has none."""
    adapter = recipe.adapter
    if adapter is None or recipe.start_from is None:
        return None
    with torch.device("meta"):
        model = build(planned_model(recipe))
    names = install(model, adapter, row_ids(adapter.rows, planned_vocabulary(recipe)))
    stored = bundles.stored_dtype(recipe.start_from).itemsize
    outside = {"float32": _FP32, "bfloat16": 2}.get(adapter.base_dtype, stored)
    return Trained(
        parameters=sum(model.get_parameter(name).numel() for name in names),
        trains_rows=bool(adapter.rows),
        inside_bytes=1 if adapter.base_dtype == "int8" else outside,
        outside_bytes=outside,
    )


def _flops_per_token(setting: Setting, counts: ModelCosts) -> int:
    """Return the work of training; a frozen matrix has no gradient, which is a third of it."""
    if setting.adapter is None:
        return counts.train_flops_per_token
    model = setting.model
    attention = model.n_blocks * model.attention.n_heads * model.d_head * model.context
    matrices = counts.train_flops_per_token // 6 - attention
    return counts.train_flops_per_token - 2 * matrices + 6 * setting.adapter.parameters


def planned_vocabulary(recipe: Recipe) -> Vocabulary:
    """Return the vocabulary of a recipe whose text tokenizer gets all of its tokens."""
    if (bundle := codec_bundle(recipe)) is not None:
        return Vocabulary.from_dict(bundles.describe(bundle)["vocabulary"])
    text = recipe.trained_text_tokenizer or TextTokenizerConfig()
    names = recipe.new_vocabulary
    vocabulary = Vocabulary.build(planned_image_tokenizer(recipe).n_codes, text.vocab_size)
    return vocabulary.extended(names.special, writable=names.writable)


def planned_image_tokenizer(recipe: Recipe) -> ImageTokenizerConfig:
    """Return the config of the image tokenizer that a recipe trains or is given."""
    if recipe.trains_image_tokenizer:
        return recipe.image_tokenizer_run.model
    return ImageTokenizer.load_config(image_tokenizer_folder(recipe, Path()))


# ── warnings and advice ──────────────────────────────────────────────────────────────────────────


def _warnings(setting: Setting, counts: ModelCosts, usable: int) -> Iterator[str]:
    training = setting.training
    shares = setting.data_size * training.accumulation_steps
    if training.batch_rows % shares:
        yield (
            f"training.batch_rows ({training.batch_rows}) is not a multiple of the "
            f"{setting.data_size} ranks that read different rows times "
            f"training.accumulation_steps ({training.accumulation_steps}), so training refuses it; "
            f"the next multiple is {-(-training.batch_rows // shares) * shares}."
        )
    if training.precision == "float32" and not setting.on_cpu:
        yield (
            "training.precision is float32, but the speed is that of bfloat16 products; set "
            'training.precision = "bfloat16".'
        )
    if not _fits(setting, counts, usable):
        total = memory_of(setting, counts, setting.micro_rows).total
        changes = [_written(change) for change in advice(setting, counts, usable)]
        remedy = f"it fits with {', '.join(changes)}" if changes else "take more devices"
        yield (f"It does not fit: a rank needs {gib(total)} GiB of {gib(usable)} usable; {remedy}.")


def advice(setting: Setting, counts: ModelCosts, usable: int) -> list[_Change]:
    """Return the changes of a recipe that make it fit, none of them needless; [] if none do."""
    changes = list(_changes(setting))
    for change in changes:
        if _fits(_changed(setting, [change]), counts, usable):
            return [change]
    taken: dict[tuple[str, str], _Change] = {}
    for change in changes:
        taken[change[:2]] = change
        if _fits(_changed(setting, taken.values()), counts, usable):
            break
    else:
        return []
    for change in list(taken.values()):
        others = [other for other in taken.values() if other != change]
        if _fits(_changed(setting, others), counts, usable):
            del taken[change[:2]]
    return list(taken.values())


def _changes(setting: Setting) -> Iterator[_Change]:
    """Yield changes that save memory, from the cheapest in speed to the dearest."""
    parallel = setting.parallel
    if setting.number_bytes == _FP32 and not setting.on_cpu:
        yield "training", "precision", "bfloat16"
    if setting.shards < setting.data_size:
        yield "parallel", "shard", 0
    rows, rest = divmod(setting.training.batch_rows, setting.data_size)
    for steps in range(setting.training.accumulation_steps + 1, rows + 1):
        if not rest and rows % steps == 0:
            yield "training", "accumulation_steps", steps
    kinds = ("none", "selective", "full")
    for kind in kinds[kinds.index(parallel.activation_checkpointing) + 1 :]:
        yield "parallel", "activation_checkpointing", kind
    for tensor in (2, 4, _MOST_TENSOR):
        if parallel.tensor < tensor and _can_split(setting, tensor):
            yield "parallel", "tensor", tensor


def _can_split(setting: Setting, tensor: int) -> bool:
    parallel = replace(setting.parallel, tensor=tensor)
    try:
        replace(setting, parallel=parallel)
    except ConfigError:
        return False
    return True


def _changed(setting: Setting, changes: Iterable[_Change]) -> Setting:
    for table, key, value in changes:
        changed = replace(getattr(setting, table), **{key: value})
        setting = replace(setting, **{table: changed})
    return setting


def _written(change: _Change) -> str:
    table, key, value = change
    return f"{table}.{key} = " + (f'"{value}"' if isinstance(value, str) else str(value))


def _fits(setting: Setting, counts: ModelCosts, usable: int) -> bool:
    return memory_of(setting, counts, setting.micro_rows).total <= usable


def gib(size: int) -> str:
    """Write bytes as GiB with three digits."""
    value = size / 2**30
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
