"""Plans: their memory against a real step at small size, their arithmetic, their advice."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from alive import Alive
from shapes import changed, decoder_config

from pardalis import config as configs
from pardalis.adapters import DoRAConfig, LoRAConfig, install, start
from pardalis.batch import Batch
from pardalis.cli.main import main
from pardalis.errors import ConfigError
from pardalis.model import PRESETS, Decoder, ModelConfig, attention_mask, initialise, model_costs
from pardalis.objectives import NextTokenConfig
from pardalis.parallel import Layout, ParallelConfig, parallelise
from pardalis.pipeline import load_recipe
from pardalis.pipeline.accelerators import find_accelerator
from pardalis.pipeline.plan import (
    Setting,
    Trained,
    advice,
    largest_rows,
    memory_of,
    plan,
    planned_model,
)
from pardalis.train import DecoderTrainConfig
from pardalis.train.optimizer import MuonConfig, Optimizer
from pardalis.train.schedule import WarmupCosineConfig

RECIPES = Path(__file__).parents[2] / "recipes"
GIB = 2**30
ROWS = 2
SHAPE = decoder_config(
    vocab_size=304, context=64, d_model=64, n_layers=3, n_heads=4, n_kv_heads=4, d_ff=160
)


def training(**changes) -> DecoderTrainConfig:
    values = {
        "batch_rows": 2 * ROWS,
        "accumulation_steps": 2,
        "schedule": WarmupCosineConfig(learning_rate=1e-3),
        "objective": NextTokenConfig(loss_chunk=32),
    }
    return DecoderTrainConfig(**(values | changes))


def setting(model: ModelConfig = SHAPE, ranks: int = 1, on_cpu: bool = False, **changes) -> Setting:
    parallel = ParallelConfig(**changes.pop("parallel", {}))
    return Setting(
        model=model, training=training(**changes), parallel=parallel, ranks=ranks, on_cpu=on_cpu
    )


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [LoRAConfig, DoRAConfig])
@pytest.mark.parametrize("rows", [(), ("image",)])
def test_the_plan_of_an_adapter_is_what_a_step_holds(dtype, kind, rows):
    """Weights, gradients and moments are exact; the peak of a step is met within a half."""
    adapter = kind(rank=4, base_dtype=dtype, rows=rows)
    model = Decoder(SHAPE).train()
    names = install(model, adapter, [*range(10, 50)] if rows else [])
    initialise(model, 0)
    start(model, adapter, 0)
    planned = dataclasses.replace(
        setting(),
        adapter=Trained(
            parameters=sum(model.get_parameter(name).numel() for name in names),
            trains_rows=bool(rows),
            inside_bytes=4 if dtype == "float32" else 2,
            outside_bytes=4 if dtype == "float32" else 2,
        ),
    )
    memory = memory_of(planned, model_costs(SHAPE), ROWS)
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    optimizer = Optimizer(model, planned.training.optimizer, 1e-3)
    held = [t for values in optimizer.state_dict().values() for t in values.values() if t.ndim]
    assert memory.optimizer == sum(t.nbytes for t in held)
    ids = torch.randint(SHAPE.vocab_size, (ROWS, SHAPE.context))
    positions = torch.arange(SHAPE.context).expand(ids.shape)
    batch = Batch(ids, ids, torch.ones(ids.shape), positions, torch.zeros_like(ids))
    objective = planned.training.objective.build({"image": range(10, 50)})
    with Alive(model) as alive:
        torch.autograd.backward(objective(model, batch).total)
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.requires_grad)
    rest = memory.activations + memory.loss + memory.buffers + memory.gradients
    assert 0.5 * rest < alive.peak < 1.5 * rest


# ── against a real step ──────────────────────────────────────────────────────────────────────────


def measured(planned: Setting) -> dict[str, int]:
    """Do a step in two parts; return what is held after it, and the peak of its second part."""
    config = planned.model
    model = initialise(Decoder(config), 0).train()
    parallelise(model, Layout.alone(), planned.parallel)
    optimizer = Optimizer(model, planned.training.optimizer, 1e-3)
    shape = (ROWS, config.context)
    ids = torch.randint(config.vocab_size, shape)
    documents = (torch.arange(config.context) >= 40).long().expand(shape)
    positions = torch.arange(config.context).expand(shape)
    batch = Batch(ids, ids, torch.ones(shape), positions, documents)

    objective = planned.training.objective.build({"image": range(10, 50)})

    def part() -> None:
        torch.autograd.backward(objective(model, batch).total)

    part()
    with Alive(model) as alive:
        part()
    optimizer.step()
    state = [t for values in optimizer.state_dict().values() for t in values.values() if t.ndim]
    parameters = list(model.parameters())
    return {
        "weights": sum(p.nbytes for p in parameters),
        "gradients": sum(p.grad.nbytes for p in parameters),
        "optimizer": sum(t.nbytes for t in state),
        "peak": alive.peak,  # all but weights and the optimizer's state
    }


@pytest.mark.parametrize(
    ("checkpointing", "bound"),
    [("none", 0.02), ("selective", 0.1), ("full", 0.13)],  # measured: 0.001, 0.08, 0.111
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 2, "norm_placement": "reordered", "dropout": 0.1},
        {"qk_norm": "none", "d_ff": 128, "context": 96, "n_layers": 4},
        {"tie_embeddings": True},
    ],
    ids=str,
)
def test_memory_is_that_of_a_real_step(changes, checkpointing, bound):
    planned = setting(
        changed(SHAPE, **changes),
        on_cpu=True,
        parallel={"activation_checkpointing": checkpointing},
    )
    memory, found = memory_of(planned, model_costs(planned.model), ROWS), measured(planned)
    for kind in ("weights", "gradients", "optimizer"):
        assert getattr(memory, kind) == found[kind]
    rest = memory.total - memory.weights - memory.optimizer
    assert rest == pytest.approx(found["peak"], rel=bound)


def test_the_loss_takes_what_is_counted():
    planned = setting(on_cpu=True)
    model = initialise(Decoder(SHAPE), 0)
    objective = planned.training.objective.build({"image": range(10, 50)})
    ids = torch.randint(SHAPE.vocab_size, (ROWS, SHAPE.context))
    batch = Batch(ids, ids, torch.ones(ids.shape), ids * 0, ids * 0)
    with Alive(model) as alive:
        hidden = model.hidden(batch.ids, batch.positions, attention_mask(batch.documents))
        before = alive.bytes
        del hidden
        objective(model, batch)
    found = alive.peak - before
    # Measured: 0.033, small tensors of a number for each row among them.
    assert memory_of(planned, model_costs(SHAPE), ROWS).loss == pytest.approx(found, rel=0.06)


def test_muon_has_one_moment_where_adam_has_two():
    planned = setting(on_cpu=True, optimizer=MuonConfig())
    model = Decoder(SHAPE)
    optimizer = Optimizer(model, planned.training.optimizer, 1e-3)
    state = [t for values in optimizer.state_dict().values() for t in values.values() if t.ndim]
    found = sum(t.nbytes for t in state)
    assert memory_of(planned, model_costs(SHAPE), ROWS).optimizer == found


# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────


def test_shards_and_tensor_ranks_divide_what_they_hold():
    counts = model_costs(SHAPE)
    alone, shards, split = (
        memory_of(setting(ranks=ranks, parallel=parallel, batch_rows=8), counts, ROWS)
        for ranks, parallel in ((1, {}), (4, {}), (4, {"tensor": 4}))
    )
    assert shards.weights == pytest.approx(alone.weights / 4, rel=1e-4)
    assert shards.activations == alone.activations
    norms = 4 * counts.parts["norms"]
    assert split.weights == (alone.weights - norms) // 4 + norms
    assert split.activations < 0.6 * alone.activations
    assert split.loss < alone.loss


def test_replicas_hold_everything_and_gather_nothing_twice():
    counts = model_costs(SHAPE)
    replicas, shards = (
        memory_of(setting(ranks=4, parallel={"shard": shard}), counts, ROWS) for shard in (1, 0)
    )
    assert replicas.weights == 4 * counts.parameters
    assert replicas.buffers > shards.buffers


def test_the_largest_micro_batch_fits_and_one_more_row_does_not():
    planned, counts = setting(), model_costs(SHAPE)
    for usable in (5 * 2**20, 37 * 2**20):
        rows = largest_rows(planned, counts, usable)
        assert rows >= 1
        assert memory_of(planned, counts, rows).total <= usable
        assert memory_of(planned, counts, rows + 1).total > usable
    assert largest_rows(planned, counts, 2**20) == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_plan(preset):
    recipe = load_recipe(
        RECIPES / "quickstart.toml",
        [f"model.preset={preset}", "prepare.row_tokens=4096", "training.batch_rows=64"],
    )
    made = plan(recipe, gpus=64, device="h200", utilisation=0.5, price=2.0)
    assert made.parameters == sum(made.parts.values())
    assert made.memory_total == made.memory.total
    rate = 64 * 989.4e12 * 0.5 / made.flops_per_token
    assert made.tokens_per_second == pytest.approx(rate)
    assert made.hours == pytest.approx(made.steps * 64 * 4096 / rate / 3600)
    assert made.cost == pytest.approx(made.hours * 64 * 2)


def test_the_vocabulary_is_known_before_the_tokenizers_are():
    config = planned_model(load_recipe(RECIPES / "quickstart.toml"))
    assert (config.vocab_size, config.context) == (8 + 1024 + 2048, 256)


# ── warnings ─────────────────────────────────────────────────────────────────────────────────────


def apply(planned: Setting, changes) -> Setting:
    for table, key, value in changes:
        changed = dataclasses.replace(getattr(planned, table), **{key: value})
        planned = dataclasses.replace(planned, **{table: changed})
    return planned


@pytest.mark.parametrize("part", [0.9, 0.5, 0.2, 0.06, 0.03])
def test_advice_makes_it_fit_and_asks_for_nothing_needless(part):
    model = changed(SHAPE, vocab_size=2048, context=256, n_layers=8)
    planned = setting(model, ranks=4, batch_rows=64, accumulation_steps=1, parallel={"shard": 1})
    counts = model_costs(model)
    usable = int(part * memory_of(planned, counts, planned.micro_rows).total)

    def fits(some: Setting) -> bool:
        return memory_of(some, counts, some.micro_rows).total <= usable

    assert not fits(planned)
    changes = advice(planned, counts, usable)
    assert changes
    assert fits(apply(planned, changes))
    for change in changes:
        assert not fits(apply(planned, [other for other in changes if other != change]))


def test_no_split_is_advised_that_would_be_refused():
    planned = setting(ranks=4, batch_rows=16, parallel={"shard": 4})
    assert advice(planned, model_costs(SHAPE), 2**16) == []
    odd = setting(changed(SHAPE, d_ff=161), ranks=4, batch_rows=16)
    assert advice(odd, model_costs(SHAPE), 2**16) == []


def test_nothing_is_advised_where_nothing_helps():
    assert advice(setting(ranks=4, batch_rows=16), model_costs(SHAPE), 2**16) == []


def warnings_of(*overrides: str, **arguments) -> str:
    return "\n".join(
        plan(load_recipe(RECIPES / "quickstart.toml", overrides), **arguments).warnings
    )


def test_warnings():
    found = warnings_of(gpus=3)
    assert "training.batch_rows (4) is not a multiple of the 3 ranks" in found
    assert "the next multiple is 6." in found
    assert "training.precision is float32" in found
    big = ("model.preset=chameleon_7b", "training.precision=bfloat16")
    assert "It does not fit: a rank needs" in warnings_of(*big, device="rtx4090")
    assert "take more devices" in warnings_of(*big, device="rtx4090")
    assert not warnings_of(*big, gpus=4)


@pytest.mark.parametrize(
    ("overrides", "arguments", "message"),
    [
        ((), {"device": "abacus"}, r"No device 'abacus' is known; choose one of a100, h100, h200"),
        ((), {"gpus": 0}, r"`gpus` must be at least 1, got 0"),
        ((), {"utilisation": 1.5}, r"`utilisation` must lie in \(0, 1\], got 1\.5"),
        (
            ("parallel.tensor=3",),
            {"gpus": 4},
            r"tensor = 3 needs a multiple of 3 processes, .* got 4;",
        ),
        (
            ("parallel.shard=4",),
            {"gpus": 2},
            r"shard = 4 with tensor = 1 needs a multiple of 4 .* got 2;",
        ),
        ((), {"price": -1.0}, r"`price` must be 0 or more, got -1\.0"),
        (
            ("parallel.tensor=3",),
            {"gpus": 3},
            r"tensor = 3 does not divide attention.n_kv_heads = 4",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(overrides, arguments, message):
    recipe = load_recipe(RECIPES / "quickstart.toml", overrides)
    with pytest.raises(ConfigError, match=message):
        plan(recipe, **arguments)


def test_a_recipe_of_tokenizers_has_no_plan():
    with pytest.raises(ConfigError, match="trains no model, so there is nothing to plan"):
        plan(load_recipe(RECIPES / "quantizers.toml"))


def test_this_machine_is_measured():
    cpu = find_accelerator("cpu")
    assert cpu.flops > 1e8
    assert cpu.memory > GIB


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def run_command(*arguments: str) -> None:
    assert main(["plan", str(RECIPES / "quickstart.toml"), *arguments]) == 0


def test_people_get_a_table_and_programs_get_json(capsys):
    run_command("--gpus", "2", "--device", "h100", "--price", "3")
    shown = capsys.readouterr().out
    for line in (
        "quickstart on 2 x h100",
        "parameters                     1,643,648",
        "work per token        8.26 MFLOP",
        "ranks                 1 x 2 x 1: replicate, shard, tensor",
        "batch                 4 rows of 256: 1,024 tokens",
        "assuming 40% of 989 TFLOP/s a device",
        "\ncost ",
        "\n! training.precision is float32",
    ):
        assert line in shown
    run_command("--json")
    made = json.loads(capsys.readouterr().out)
    assert made["parameters"] == 1_643_648
    assert sum(made["memory"].values()) == made["memory_total"]
    assert made["cost"] is None
    assert (
        configs.to_dict(load_recipe(RECIPES / "quickstart.toml"))["training_loop"]["steps"]
        == (made["steps"])
    )


def test_little_time_is_written_without_an_exponent(capsys):
    run_command("--device", "h200")
    assert "3,000 steps           0.0641 s, 0.0000214 s each" in capsys.readouterr().out


def test_without_a_number_of_devices_it_takes_the_fewest() -> None:
    recipe = load_recipe(RECIPES / "chameleon_34b.toml")
    found = plan(recipe)
    assert found.gpus == recipe.parallel.shard * recipe.parallel.tensor > 1


# ── merges ───────────────────────────────────────────────────────────────────────────────────────


def test_the_merges_of_a_recipe_are_compared(capsys):
    options = ["--gpus", "64", "--set", "parallel.activation_checkpointing=full", "--merges"]
    assert main(["plan", "chameleon_7b", *options, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = {each.pop("kind"): each for each in shown["merges"]}
    assert list(found) == ["parent", "uniform", "width", "cross"]
    parent, width, cross = (found[kind] for kind in ("parent", "width", "cross"))
    assert found["uniform"] == parent
    whole = plan(
        load_recipe(RECIPES / "chameleon_7b.toml", ["parallel.activation_checkpointing=full"]),
        gpus=64,
    )
    assert parent["parameters"] == whole.parameters
    assert parent["flops_per_token"] == whole.flops_per_token
    assert parent["memory_total"] == whole.memory_total
    assert 3.8 < width["parameters"] / parent["parameters"] < 4
    assert width["cache_bytes_per_token"] == 2 * parent["cache_bytes_per_token"]
    assert cross["cache_bytes_per_token"] == 3 * parent["cache_bytes_per_token"]
    for each in (width, cross):
        assert each["memory_total"] > 1.9 * parent["memory_total"]
    assert main(["plan", "chameleon_7b", *options]) == 0
    assert capsys.readouterr().out.count("\n") == 7


def test_merges_of_another_kind_of_model_are_not_planned(capsys, tmp_path):
    text = (RECIPES / "quickstart.toml").read_text().replace("[model]", '[model]\nkind = "cross"')
    (tmp_path / "r.toml").write_text(text.replace('preset = "tiny"', ""))
    shape = ["d_model=32", "n_layers=2", "attention={ n_heads = 2 }", "feed_forward={ width = 8 }"]
    sets = [part for each in shape for part in ("--set", f"model.{each}")]
    assert main(["plan", str(tmp_path / "r.toml"), "--merges", *sets]) == 2
    assert "is of kind 'cross'; leave --merges out." in capsys.readouterr().err
