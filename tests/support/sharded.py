"""Training of a decoder on the ranks of a layout, or in the test's process.

python tests/support/sharded.py FOLDER
"""

import json
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import forked
import torch
from own_objectives import PreferenceConfig

from pardalis.adapters import DoRAConfig, LoRAConfig, install, row_ids, start
from pardalis.batch import Batch
from pardalis.errors import ConfigError
from pardalis.model import (
    Decoder,
    LanguageModel,
    add_auxiliary_loss,
    build,
    config_of,
    init,
    initialise,
)
from pardalis.model.config import from_flat
from pardalis.parallel import (
    Layout,
    ParallelConfig,
    World,
    fill,
    gradient_norm,
    join,
    layout_of,
    local_part,
    parallelise,
)
from pardalis.seeds import derive
from pardalis.tokens import Vocabulary
from pardalis.train.decoder_task import DecoderTask, DecoderTrainConfig
from pardalis.train.optimizer import AdamWConfig
from pardalis.train.schedule import WarmupCosineConfig

STEPS, ROWS, TOKENS, VOCABULARY = 4, 8, 24, 44
IDS = Vocabulary.build(n_codes=12, n_text=VOCABULARY - 20)
MODALITIES = {"image": IDS.image}
PARTS = ("embedding", "attention", "feed_forward", "norm", "head", "lora")


@dataclass(frozen=True)
class Case:
    parallel: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    preference: bool = False  # an objective with a frozen reference, in place of next tokens
    balance: bool = False  # each block adds an auxiliary loss
    alone: dict[str, Any] = field(default_factory=dict)  # training of the process that compares
    adapter: LoRAConfig | None = None  # trained beside the model, which is frozen


GROUPED = {"n_kv_heads": 2}
# GPT-2's parts: biases, LayerNorm, learned positions, a feed-forward of two matrices.
OTHER_LAYERS = {
    "attention": {"bias": "all", "qk_norm": {"kind": "rms_norm"}},
    "feed_forward": {"kind": "mlp"},
    "norm": {"kind": "layer_norm"},
    "position": {"kind": "learned"},
}
TIED = {"tie_embeddings": True}
# What merges make: two trunks, and a decoder whose halves are normalised apart.
CROSS = {"kind": "cross", "cross": {"interval": 1}}
WIDE = {
    "norm": {"groups": 2},
    "attention": {"qk_norm": {"kind": "rms_norm", "groups": 2}},
    "embedding": {"norm": True},
}
REORDERED = {"norm_placement": "reordered", "embedding_norm": True}

CASES = {
    2: {
        "replicate": Case({"shard": 1}, training={"accumulation_steps": 2}),
        "shard": Case({"shard": 2}, GROUPED),
        "shard_selective": Case({"activation_checkpointing": "selective"}, GROUPED | REORDERED),
        "shard_full": Case(
            {"activation_checkpointing": "full"}, training={"accumulation_steps": 2}
        ),
        "shard_compiled": Case({"compile": True}, GROUPED),
        "tensor": Case({"tensor": 2}, {"dropout": 0.2}),  # the same mask on all ranks of a group
        "tensor_reordered": Case({"tensor": 2}, REORDERED | GROUPED | {"qk_norm_groups": 1}),
        "tensor_without_norms": Case({"tensor": 2}, {"qk_norm": "none"}),
        "tensor_other_layers": Case({"tensor": 2}, OTHER_LAYERS),
        "shard_tied": Case({"shard": 2}, TIED, {"statistics_every": 2, "accumulation_steps": 2}),
        "tensor_tied": Case({"tensor": 2}, TIED),
        "tensor_tied_preference": Case({"tensor": 2}, TIED | {"init_std": 0.1}, preference=True),
        "shard_cross": Case(
            {"activation_checkpointing": "selective"},
            CROSS | GROUPED,
            {"statistics_every": 2, "accumulation_steps": 2},
        ),
        "tensor_cross": Case({"tensor": 2}, CROSS | OTHER_LAYERS),
        "tensor_wide": Case({"tensor": 2}, WIDE | GROUPED),
        "bfloat16": Case({"shard": 2}, training={"precision": "bfloat16"}),
        "tensor_statistics": Case({"tensor": 2}, {"qk_norm_groups": 1}, {"statistics_every": 2}),
        "shard_preference": Case(
            {"activation_checkpointing": "selective"},
            GROUPED,
            {"accumulation_steps": 2},
            preference=True,
        ),
        "tensor_preference": Case({"tensor": 2}, {"dropout": 0.2}, preference=True),
        "shard_auxiliary": Case(
            {"activation_checkpointing": "full"},
            GROUPED,
            {"accumulation_steps": 2},
            balance=True,
            alone={"accumulation_steps": 4},  # the same micro-batches
        ),
        "replicate_auxiliary": Case(
            {"shard": 1, "activation_checkpointing": "selective"},
            balance=True,
            alone={"accumulation_steps": 2},
        ),
        "tensor_auxiliary": Case({"tensor": 2}, balance=True),
        "shard_qk_clip": Case(
            {"activation_checkpointing": "full"},
            GROUPED | {"qk_norm": "none", "init_std": 0.5},
            {"qk_clip": 0.3, "accumulation_steps": 2, "statistics_every": 1},
        ),
        "shard_lora": Case(
            {"activation_checkpointing": "selective"},
            GROUPED,
            {"accumulation_steps": 2, "statistics_every": 2, "neftune_alpha": 5.0},
            adapter=LoRAConfig(rank=3, base_dtype="bfloat16"),
        ),
        "shard_dora": Case(
            {"activation_checkpointing": "full"},
            REORDERED | GROUPED | {"embedding_norm": False},
            adapter=DoRAConfig(rank=3, rows=("image", "end_image")),
        ),
        "replicate_rows": Case({"shard": 1}, adapter=LoRAConfig(targets=(), rows=("image",))),
        "bfloat16_dora": Case(
            {}, training={"precision": "bfloat16"}, adapter=DoRAConfig(rank=3, rows=("image",))
        ),
        "tensor_lora": Case(
            {"tensor": 2}, GROUPED, adapter=LoRAConfig(rank=3, base_dtype="bfloat16")
        ),
        "tensor_dora": Case(
            {"tensor": 2}, OTHER_LAYERS, {"statistics_every": 2}, adapter=DoRAConfig(rank=3)
        ),
    },
    4: {
        "hybrid": Case({"shard": 2}, training={"accumulation_steps": 2}),
        "shard_of_3_layers": Case({}, {"n_layers": 3, "qk_norm_groups": 2, "d_ff": 36}),
        "tensor_and_shard": Case(
            {"tensor": 2, "activation_checkpointing": "selective"}, {"qk_norm_groups": 2}
        ),
        "tensor_and_shard_reordered": Case(
            {"tensor": 2, "activation_checkpointing": "full"}, REORDERED | GROUPED
        ),
        "tensor_and_replicate": Case({"tensor": 2, "shard": 1}, GROUPED),
        "tensor_and_shard_tied": Case({"tensor": 2, "shard": 2}, TIED),
        "more_ranks_than_groups": Case({"tensor": 4}, {"qk_norm_groups": 2}),
        "statistics": Case({"tensor": 2, "shard": 1}, GROUPED, {"statistics_every": 1}),
        "hybrid_statistics": Case({"shard": 2}, REORDERED, {"statistics_every": 1}),
        "tensor_and_shard_dora": Case(
            {"tensor": 2, "activation_checkpointing": "selective"},
            GROUPED,
            adapter=DoRAConfig(rank=3, targets=("attention", "down")),
        ),
    },
}

STATES = {
    2: ("replicate", "tensor_reordered", "tensor_tied"),
    4: ("hybrid", "tensor_and_shard", "tensor_and_shard_tied"),
}


class Rows:
    """Random rows of two documents each; the rows have different numbers of targets."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(derive(self.seed, "rows", step))
        ids = torch.randint(8, VOCABULARY, (ROWS, TOKENS), generator=generator)
        places = torch.arange(TOKENS).expand(ids.shape)
        learnt = torch.arange(ROWS)[:, None] * 2 <= places
        share = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
        return Batch(
            ids=ids[share],
            targets=ids.roll(-1, 1)[share],
            weights=learnt.float()[share],
            positions=(places % (TOKENS // 2))[share],
            documents=(places >= TOKENS // 2).long()[share],
        )


def task(case: Case, layout: Layout, parallel: ParallelConfig) -> DecoderTask:
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "context": TOKENS, "d_model": 32, "n_layers": 2, "n_heads": 4,
        "n_kv_heads": 4, "d_ff": 48,
    }  # fmt: skip
    config = DecoderTrainConfig(
        batch_rows=ROWS,
        schedule=WarmupCosineConfig(learning_rate=1e-2, warmup_steps=2),
        # A large eps, so that Adam does not amplify the rounding of gradients close to zero.
        optimizer=AdamWConfig(eps=1e-4),
        grad_clip=0.5,
        **case.training,
    )

    def model_of(seed: int) -> LanguageModel:
        with torch.device("meta"):
            model = build(config_of(from_flat(shape | case.model)))
        if case.adapter is not None:
            is_narrow = layout.mesh is not None and config.precision == "bfloat16"
            vectors = torch.bfloat16 if is_narrow else torch.float32
            ids = row_ids(case.adapter.rows, IDS)
            install(model, case.adapter, ids, vectors_dtype=vectors)
        parallelise(model, layout, parallel, config.precision)
        with patch.object(init, "_DRAWN_AT_ONCE", 200):  # several chunks, as for large matrices
            initialise(model, seed)
        if case.adapter is not None:
            start(model, case.adapter, seed)
        return model

    model = model_of(3)
    if case.balance:
        add_balance(model)
    objective: Any = PreferenceConfig(beta=2.0) if case.preference else config.objective
    return DecoderTask(
        model,
        Rows(),
        objective.build(MODALITIES, partial(model_of, 4)),
        config,
        total_steps=STEPS,
        modalities=MODALITIES,
        heldout=Rows(seed=1),
        heldout_batches=2,
        layout=layout,
    )


def add_balance(model: Decoder) -> None:
    """Let each block add 0.3 times the mean square of its feed-forward layer to the loss."""

    def hook(module: Any, args: Any, output: torch.Tensor) -> None:
        add_auxiliary_loss("balance", 0.3 * output.square().mean())

    for block in model.trunk.blocks:
        block.feed_forward.register_forward_hook(hook)


def numbers(case: Case, world: World) -> list[dict[str, float]]:
    """Return the metrics of each step, held-out losses, and norms of the last gradient."""
    parallel = ParallelConfig(**case.parallel) if world.size > 1 else ParallelConfig()
    if world.size == 1:
        case = replace(case, training=case.training | case.alone)
    made = task(case, layout_of(world, parallel), parallel)
    lines = []
    for step in range(STEPS):
        lines.append({name: float(value) for name, value in made.step(step).items()})
        if step == 2:
            lines.append(made.evaluate())
    lines.append(made.evaluate())
    named = list(made.model.named_parameters())
    norms = {
        part: gradient_norm(p for name, p in named if part in name)
        for part in PARTS
        if part != "head" or not made.model.config.tie_embeddings
    }
    return [*lines, {part: float(norm) for part, norm in norms.items()}]


def state_of(case: Case, world: World) -> dict[str, Any]:
    """Return the share of the model on a rank, and whether its parts equal the whole."""
    parallel = ParallelConfig(**case.parallel)
    made = task(case, layout_of(world, parallel), parallel)
    made.step(0)
    made.evaluate()
    alone, together = (
        task(case, *places).model.eval()
        for places in ((Layout.alone(), ParallelConfig()), (made.layout, parallel))
    )
    ids = Rows().batch(0).ids
    with torch.no_grad():
        far = (together(ids) - alone(ids)).abs().max()
    single, sharded = alone.state_dict(), together.state_dict()
    equal = {name: torch.equal(sharded[name].full_tensor(), single[name]) for name in single}
    for name, parameter in made.model.named_parameters():
        fill(parameter, 2 * single[name])
    filled = made.model.state_dict()
    doubled = {name: torch.equal(filled[name].full_tensor(), 2 * single[name]) for name in single}
    held = sum(local_part(parameter).numel() for parameter in made.model.parameters())
    return {
        "share": held / sum(tensor.numel() for tensor in single.values()),
        "wrong": [name for name in single if not (equal[name] and doubled[name])],
        "names": sorted(filled) == sorted(single),
        "far": float(far),
    }


def summed(world: World) -> dict[str, Any]:
    """Return a sum over the data-parallel ranks and the error of an invalid layout."""
    layout = layout_of(world, ParallelConfig(tensor=2))
    total = layout.sum(torch.tensor(layout.data_rank + 1.0))
    try:
        layout_of(world, ParallelConfig(tensor=3))
    except ConfigError as error:
        return {"sum": total.item(), "refused": str(error)}
    return {}


def as_one_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="eager")
    with join() as world:
        found = {
            "numbers": {name: numbers(case, world) for name, case in CASES[world.size].items()},
            "states": {
                name: state_of(CASES[world.size][name], world) for name in STATES[world.size]
            },
            "summed": summed(world),
        }
        (folder / f"rank-{world.rank}-of-{world.size}.json").write_text(json.dumps(found))


def main(folder: Path) -> int:
    """Train with each number of ranks; return 0, or the exit code of one that failed."""
    part = partial(as_one_rank, folder)
    codes = [forked.together(part, size, folder / f"stderr-of-{size}") for size in CASES]
    return max(map(abs, chain(*codes)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
