"""A stability study: its grid, processes, outputs and errors."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pardalis.cli import stability as command
from pardalis.cli.common import Parser, echo_json
from pardalis.errors import ConfigError, TrainingError
from pardalis.pipeline import load_recipe
from pardalis.studies import stability as studies
from pardalis.studies.stability import study_stability
from pardalis.train.settings import check_settings

RECIPE = """
name = "small"
[[sources]]
name = "images"
reader = "folder"
path = "train"
[text_tokenizer]
vocab_size = 260
[image_tokenizer]
preset = "tiny"
resolution = 16
channels = 16
z_channels = 16
code_width = 8
n_codes = 32
[image_tokenizer_training]
batch_images = 4
[image_tokenizer_training.schedule]
learning_rate = 1e-3
[image_tokenizer_loop]
steps = 1
[prepare]
row_tokens = 32
[model]
preset = "tiny"
d_model = 16
n_layers = 1
n_heads = 2
n_kv_heads = 2
d_ff = 16
[training]
batch_rows = 2
[training.schedule]
learning_rate = 1e-3
[training_loop]
steps = 20
report_every = 2
save_every = 2
[stability]
learning_rates = [1e-2, 1e30]
seeds = [3]
[[stability.variants]]
name = "plain"
set = ["model.qk_norm=none"]
[[stability.variants]]
name = "default"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "train").mkdir()
    for i in range(6):
        pixels = generator.integers(0, 255, (16, 16, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "train" / f"{i}.png")
        (tmp_path / "train" / f"{i}.txt").write_text(f"image number {i}")
    (tmp_path / "small.toml").write_text(RECIPE)
    return tmp_path


def run_command(folder: Path, *options: str) -> None:
    parser = Parser()
    command.add(parser.add_subparsers())
    arguments = ["stability", str(folder / "small.toml"), "--out", str(folder / "run"), *options]
    parsed = parser.parse_args(arguments)
    parsed.run(parsed)
    if parsed.json:
        echo_json(parsed.result)


def the_runs(folder: Path) -> dict[str, Path]:
    root = folder / "run" / "stability"
    return {str(p.parent.relative_to(root)): p.parent for p in root.rglob("settings.json")}


def test_a_study_trains_its_grid_and_resumes(folder, capsys):
    run_command(folder)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["variant", "plain", "default"]
    assert lines[1].split()[-3:] == ["1", "of", "2"]  # the largest rate diverges
    assert lines[-1].count("stability.") == 3

    runs = the_runs(folder)
    rates = ("1e-02", "1e+30")
    assert set(runs) == {f"{v}/lr-{r}/seed-3" for v in ("plain", "default") for r in rates}
    settings = {
        name: json.loads((path / "settings.json").read_text())["settings"]
        for name, path in runs.items()
    }
    plain = settings["plain/lr-1e+30/seed-3"]
    assert plain["model"]["attention"]["qk_norm"] == {"kind": "none"}
    default = settings["default/lr-1e+30/seed-3"]
    assert default["model"]["attention"]["qk_norm"]["kind"] == "layer_norm"
    assert plain["training"]["schedule"]["learning_rate"] == 1e30
    assert plain["training"]["seed"] == 3
    for name, path in runs.items():
        assert not (path / "checkpoints").exists()  # many runs would fill the disk
        result = json.loads((path / "result.json").read_text())
        assert (result["diverged"] is not None) == ("1e+30" in name)
        # nearly uniform over 298 tokens: log 298 = 5.7
        assert result["start"]["loss"] == pytest.approx(5.7, abs=0.2)
    written = json.loads((folder / "run" / "stability.json").read_text())
    [[trained], [diverged]] = written["variants"][0]["final_losses"]["loss"]
    start = json.loads((runs["plain/lr-1e+30/seed-3"] / "result.json").read_text())["start"]["loss"]
    assert trained < diverged == start
    assert (folder / "run" / "stability.html").is_file()
    assert (folder / "run" / "stability.png").is_file()

    # Finished runs are not trained again, deleted ones are.
    gone = runs["default/lr-1e-02/seed-3"]
    lost = (gone / "metrics.jsonl").read_text()
    kept = runs["plain/lr-1e-02/seed-3"] / "metrics.jsonl"
    before = kept.stat().st_mtime_ns
    for path in gone.iterdir():
        path.unlink()
    run_command(folder, "--json", "--jobs", "1")
    again = json.loads(capsys.readouterr().out)
    assert again["variants"] == written["variants"]
    assert kept.stat().st_mtime_ns == before
    losses = [[line["loss"] for line in map(json.loads, text.splitlines())] for text in
              (lost, (gone / "metrics.jsonl").read_text())]  # fmt: skip
    assert losses[0] == losses[1]

    # Other settings are refused.
    with pytest.raises(ConfigError, match=r"begun with other settings: .*steps was 20 and is 22"):
        study_stability(folder / "small.toml", folder / "run", ["training_loop.steps=22"])


def test_a_failed_run_ends_the_study_with_its_message(folder):
    overrides = ["training.schedule.warmup_steps=30"]
    with pytest.raises(TrainingError) as caught:
        study_stability(folder / "small.toml", folder / "run", overrides, jobs=1)
    assert str(caught.value).startswith("The run plain/lr-1e-02/seed-3 failed (warmup_steps (30)")
    assert "log.txt. Finished runs are kept." in str(caught.value)


STUDY = """
import sys
from pathlib import Path
from pardalis.errors import TrainingError
from pardalis.studies.stability import study_stability
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    try:
        study_stability(folder / "small.toml", folder / "run", sys.argv[2:], jobs=2)
    except TrainingError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_signal_all_runs_save_and_the_study_resumes(folder, number):
    """A signal to the whole process group reaches each run once."""
    long = ["training_loop.steps=100000", "stability.learning_rates=[1e-3, 1e-2]"]
    (folder / "study.py").write_text(STUDY)
    started = subprocess.Popen(
        [sys.executable, str(folder / "study.py"), str(folder), *long],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    root, deadline = folder / "run" / "stability", time.monotonic() + 120
    while len(list(root.rglob("step-*/run.json"))) < 2 and time.monotonic() < deadline:
        assert started.poll() is None, started.communicate()
        time.sleep(0.1)
    os.killpg(started.pid, number)
    _, words = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "Stopped with 0 of 4 runs finished; run the study again to continue." in words
    assert "Traceback" not in words

    logs = [path.read_text() for path in root.rglob("log.txt")]
    assert ["Stopped at step" in log for log in logs] == [True, True]
    assert not list(root.rglob("result.json"))

    # The same study resumes the runs from their checkpoints.
    started_runs = [each for each in trials_of(folder, long) if each.folder.exists()]
    assert len(started_runs) == 2
    assert all(list(each.folder.glob("checkpoints/step-*/run.json")) for each in started_runs)
    for each in started_runs:
        check_settings(each.folder, each.steps, each.settings)


def trials_of(folder: Path, overrides: list[str]) -> list[studies.Trial]:
    recipe = load_recipe(folder / "small.toml", overrides)
    return studies._trials(folder / "small.toml", overrides, recipe.stability, folder / "run")


def test_runs_of_the_first_seed_come_first(folder, monkeypatch):
    order = []

    def note(trials, *rest):
        order.extend(trials)
        raise TrainingError("stop here")

    monkeypatch.setattr(studies, "_train_all", note)
    overrides = ["stability.seeds=[3, 1]", "stability.learning_rates=[1.5e-3, 0.2]"]
    with pytest.raises(TrainingError, match="stop here"):
        study_stability(folder / "small.toml", folder / "run", overrides)
    assert [trial.name for trial in order] == [
        f"{variant}/lr-{rate}/seed-{seed}"
        for seed in (3, 1)
        for variant in ("plain", "default")
        for rate in ("1.5e-03", "2e-01")
    ]
    assert {trial.folder.parents[3] for trial in order} == {folder / "run"}


def test_a_study_ignores_loss_explosions(folder):
    overrides = ["training_loop.alarms.loss_explosion=1e-3", "training_loop.evaluate_every=5"]
    loop = load_recipe(folder / "small.toml", overrides).training_loop
    assert loop is not None
    study_loop = studies._study_loop(loop)
    assert study_loop.alarms.loss_explosion == math.inf
    assert (study_loop.steps, study_loop.evaluate_every, study_loop.on_divergence) == (
        20,
        0,
        "stop",
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "learning_rates=[1e-3]",
            "learning_rates must be at least two numbers above 0, each large",
        ),
        ("learning_rates=[1e-2, 1e-3]", "learning_rates must be at least two numbers above 0"),
        ("learning_rates=[0.0, 1e-3]", "learning_rates must be at least two numbers above 0"),
        ("seeds=[]", "seeds must be one or more different numbers, got []"),
        ("seeds=[1, 1]", "seeds must be one or more different numbers, got [1, 1]"),
        ("variants=[]", "variants must be one or more with different names, got []"),
        (
            "variants.1.name=plain",
            "variants must be one or more with different names, got ['plain'",
        ),
        ("high_learning_rate=1e-3", "high_learning_rate (0.001) must be one of learning_rates"),
        (
            'variants.0.set=["prepare.row_tokens=8"]',
            "variants: 'plain' sets prepare.row_tokens, but all variants use the same data",
        ),
        (
            'variants.0.set=["training.seed=8"]',
            "variants: 'plain' sets training.seed, which learning_rates and seeds determine",
        ),
    ],
)
def test_invalid_studies_are_refused(folder, override, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe(folder / "small.toml", [f"stability.{override}"])
    assert str(caught.value).startswith(f"stability.{message}")


def test_a_study_needs_its_tables(folder):
    (folder / "small.toml").write_text(RECIPE.split("[stability]")[0])
    with pytest.raises(ConfigError, match=r"needs the tables \[stability\] and \[model\]"):
        study_stability(folder / "small.toml", folder / "run")
    (folder / "small.toml").write_text(RECIPE)
    with pytest.raises(ConfigError, match="`jobs` must be at least 1, got 0"):
        study_stability(folder / "small.toml", folder / "run", jobs=0)


def test_the_high_learning_rate_defaults_to_the_largest(folder):
    config = load_recipe(folder / "small.toml").stability
    assert config is not None and config.high == 1e30
    named = load_recipe(folder / "small.toml", ["stability.high_learning_rate=1e-2"]).stability
    assert named is not None and named.high == 1e-2
