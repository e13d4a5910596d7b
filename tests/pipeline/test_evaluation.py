"""Tasks of a recipe: of the trained model, and while it is trained, which changes nothing of it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from shapes import decoder_config
from tiny_tasks import CHOICE, write_task

from pardalis.bundle import Bundle, load
from pardalis.cli.main import main
from pardalis.codec import Codec
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks.results import read_results
from pardalis.model import Decoder, initialise
from pardalis.pipeline import load_recipe
from pardalis.pipeline.runner import run
from pardalis.train import DecoderTask, read_metrics

RECIPE = """
name = "measured"
start_from = "start"
[[sources]]
name = "texts"
reader = "jsonl"
path = "texts.jsonl"
[prepare]
row_tokens = 24
[model]
dropout = 0.1
[training]
batch_rows = 2
[training.schedule]
learning_rate = 1e-2
warmup_steps = 1
[training_loop]
steps = 4
save_every = 2
report_every = 1
"""
EVALUATION = """
[evaluation]
files = ["tasks/animals.toml"]
[evaluation.training]
every = 2
limit = 3
"""
ADAPTER = """
[adapter]
kind = "lora"
rank = 2
"""
STAGES = ("prepare", "train", "evaluate")


@pytest.fixture(scope="module")
def start(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "bundle"
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=40, d_model=16, n_layers=1, n_heads=2,
        n_kv_heads=2, d_ff=16,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(folder)
    return folder


@pytest.fixture
def project(start: Path, tmp_path: Path) -> Path:
    (tmp_path / "start").symlink_to(start)
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks")
    lines = [{"name": str(i), "segments": [{"text": f"The owl is old {i}"}]} for i in range(12)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.toml").write_text(RECIPE + EVALUATION)
    (tmp_path / "plain.toml").write_text(RECIPE)
    return tmp_path


def go(project: Path, *changes: str, recipe: str = "recipe", only=STAGES, at: str = "run") -> Path:
    loaded = load_recipe(project / f"{recipe}.toml", changes)
    stages = only if loaded.evaluation else only[:2]
    run(loaded, project / at, stages)
    return project / at


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder / "bundle").model.state_dict()


def tasks_of(folder: Path) -> dict[int, dict[str, float]]:
    """Return what each line of metrics has of tasks, by its step."""
    lines = read_metrics(folder / "training" / "metrics.jsonl")
    found = {
        int(line["step"]): {n: v for n, v in line.items() if n.startswith("tasks/")}
        for line in lines
    }
    return {step: numbers for step, numbers in found.items() if numbers}


def points(folder: Path) -> list[int]:
    """Return the steps of a curve in TensorBoard."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = module.EventAccumulator(str(folder / "training" / "tensorboard"))
    board.Reload()
    return [each.step for each in board.Scalars("tasks/animals/accuracy")]


@pytest.mark.parametrize("adapter", ["", ADAPTER], ids=["whole", "adapter"])
def test_evaluation_during_training_changes_no_bit_of_it(project, adapter):
    for name in ("recipe", "plain"):
        path = project / f"{name}.toml"
        path.write_text(path.read_text() + adapter)
    measured = go(project, "training_loop.tensorboard=true")
    plain = go(project, recipe="plain", at="plain")
    found, expected = weights(measured), weights(plain)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert list(tasks_of(measured)) == [2, 4] and not tasks_of(plain)
    for numbers in tasks_of(measured).values():
        assert 0 <= numbers["tasks/animals/accuracy"] <= 1
    steps = measured / "training" / "tasks"
    assert sorted(path.name for path in steps.iterdir()) == ["step-00000002", "step-00000004"]
    if not adapter:
        assert points(measured) == [2, 4]
    last, final = read_results(steps / "step-00000004"), read_results(measured / "evaluation")
    assert last["bundle"]["digest"] == final["bundle"]["digest"]  # the very model that is kept
    assert final["bundle"]["digest"] in (measured / "bundle" / "README.md").read_text()
    if not adapter:
        command = ["export", str(measured), "--to", "bundle", "-o", str(project / "exported")]
        assert main(command) == 0
        assert "| animals |" in (project / "exported" / "README.md").read_text()
    assert last["tasks"]["animals"]["items"] == 3 and final["tasks"]["animals"]["items"] == 5


def test_a_run_that_is_interrupted_has_the_same_numbers(project):
    whole = go(project, at="whole")
    step = DecoderTask.step

    def fail(task, number):
        if number == 3:
            raise KeyboardInterrupt
        return step(task, number)

    with patch.object(DecoderTask, "step", fail), pytest.raises(KeyboardInterrupt):
        go(project)
    assert list(tasks_of(project / "run")) == [2]
    resumed = go(project)
    assert tasks_of(resumed) == tasks_of(whole)
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in weights(resumed).items())


def test_tasks_decide_nothing_of_the_training(project, caplog):
    caplog.set_level(logging.INFO)
    folder = go(project)

    def ran(*changes: str) -> list[str]:
        caplog.clear()
        go(project, *changes)
        return [name for name in STAGES if f"{name}: done" in caplog.text]

    assert ran() == []
    assert ran("evaluation.training.every=1", "evaluation.training.limit=1") == []
    before = read_results(folder / "evaluation")
    assert ran("evaluation.limit=2") == ["evaluate"]
    assert read_results(folder / "evaluation")["tasks"]["animals"]["items"] == 2
    [kept] = folder.glob("evaluation.*")
    assert read_results(kept) == before
    assert ran() == ["evaluate"] and read_results(folder / "evaluation")["tasks"]["animals"]
    write_task(project / "tasks", toml=CHOICE.replace("} is", "} was"))
    assert ran() == ["evaluate"]
    (project / "tasks" / "items.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"items\.jsonl, which does not exist; put it there, or set"
    ):
        ran()


def test_an_evaluation_that_fails_does_not_end_the_training(project, caplog):
    long = {"id": "a", "animal": "owl " * 60, "choices": ["old", "an owl"], "answer": 0}
    write_task(project / "tasks", items=[long])
    with pytest.raises(DataError, match="No item of the task 'animals' could be evaluated"):
        go(project)
    assert "Step 2 is not evaluated on its tasks: No item of the task 'animals'" in caplog.text
    assert (project / "run" / "bundle").is_dir() and not tasks_of(project / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["evaluation.files=[]"], "evaluation names no task; set tasks or files"),
        (["evaluation.tasks=['piqa']"], "evaluation.data is missing"),
        (["evaluation.tasks=['a.toml']"], "evaluation.tasks has 'a.toml', but names no files"),
        (["evaluation.tasks=['arc_esy']"], "did you mean 'arc_easy'"),
        (["evaluation.training.tasks=['owls']"], "has 'owls', but the tasks of the evaluation are"),
        (["evaluation.training.every=0"], "evaluation.training.every must be at least 1, got 0"),
        (["evaluation.data='{run}/corpus'"], "the recipe has no corpus that the run"),
        (["evaluation.seeds=0"], "evaluation.seeds must be at least 1, got 0"),
    ],
)
def test_mistakes_are_found_before_anything_runs(project, changes, message):
    with pytest.raises(ConfigError) as caught:
        go(project, *changes)
    assert message in str(caught.value)
    assert not (project / "run" / "shards").exists()


def test_data_of_the_run_itself_are_read_when_they_are_there(project, capsys):
    """Before that, a dry run says nothing of them."""
    changes = ["--set", "evaluation.data='{run}/tasks'"]
    command = ["run", str(project / "recipe.toml"), "--out", str(project / "run"), *changes]
    assert main([*command, "--dry-run"]) == 0
    (project / "run").mkdir()
    (project / "run" / ".lock").touch()
    write_task(project / "run" / "tasks")
    go(project, "evaluation.data='{run}/tasks'")
    entry = read_results(project / "run" / "evaluation")["tasks"]["animals"]
    assert entry["items"] == 5 and entry["data"]["folder"].endswith("run/tasks")


def test_two_processes_have_the_numbers_of_one(project):
    """The first of two processes evaluates, and the model is then the one that both trained.

    Each holds half of every tensor, so that the whole model has to be gathered.
    """
    path = project / "recipe.toml"
    path.write_text(path.read_text().replace("dropout = 0.1", "dropout = 0.0"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "pardalis", "run", str(path)]
    done = subprocess.run(
        [*command, "--out", str(project / "both"), "--set", "parallel.shard=2"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    both, one = project / "both", go(project)
    steps = both / "training" / "tasks"
    last, final = read_results(steps / "step-00000004"), read_results(both / "evaluation")
    assert last["bundle"]["digest"] == final["bundle"]["digest"]  # gathered, to the last bit
    found, expected = tasks_of(both), tasks_of(one)
    assert list(found) == list(expected) == [2, 4]
    for step, numbers in expected.items():
        assert found[step] == pytest.approx(numbers, abs=1e-4)
