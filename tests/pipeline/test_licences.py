"""What a run says of the licences of its documents, and where."""

import json
import logging
import shutil

import pytest

from pardalis.bundle import LICENCES
from pardalis.data import PrepareConfig, Shards, prepare_source
from pardalis.pipeline.licences import refresh_licences, write_licences
from pardalis.pipeline.recipe import load_recipe
from pardalis.pipeline.stages import RunContext

RECIPE = """
name = "tiny"
[[sources]]
name = "photos"
reader = "folder"
path = "photos"
[[heldout]]
name = "lines"
reader = "jsonl"
path = "lines.jsonl"
[image_tokenizer]
[image_tokenizer_training]
[image_tokenizer_loop]
steps = 1
"""
TRANSFORM = """path = "photos"
transforms = [{ kind = "retrieval", documents = 1, document_tokens = 8, index = "index" }]
"""
MODEL = """
[text_tokenizer]
vocab_size = 400
[prepare]
row_tokens = 64
[model]
d_model = 32
n_layers = 1
attention = { n_heads = 2 }
feed_forward = { width = 64 }
[training]
batch_rows = 1
[training.schedule]
learning_rate = 1e-3
[training_loop]
steps = 1
"""
STATED = ('sources.0.licence="CC BY 4.0"', 'sources.0.attribution="Jane | Doe,\\n2020"')


@pytest.fixture
def project(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "owl.png").write_bytes(b"an owl")
    (tmp_path / "run" / "shards").mkdir(parents=True)
    write_lines(tmp_path, [""])
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def write_lines(project, licences):
    lines = [{"segments": [{"text": "an owl"}], "licence": each} for each in licences]
    (project / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def context(project, *changes):
    return RunContext(load_recipe(project / "recipe.toml", changes), project / "run")


def text(project, folder="shards"):
    return (project / "run" / folder / LICENCES).read_text()


def test_sources_without_a_licence_are_named_once(project, caplog):
    (project / "photos" / "LICENSE.txt").write_text("MIT")
    with caplog.at_level(logging.INFO):
        write_licences(context(project))
    [message] = caplog.messages
    assert "No licence is stated for 'photos', 'lines'" in message
    assert 'licence = "CC BY 4.0"' in message
    assert f"{project / 'photos' / 'LICENSE.txt'} may hold it." in message
    assert "| photos | not stated |  |" in text(project)
    assert "MIT" not in text(project)


def test_what_is_stated_is_carried(project, caplog):
    write_lines(project, ["CC0", "", "CC0", "MIT"])
    with caplog.at_level(logging.INFO):
        write_licences(context(project, *STATED))
    assert not caplog.messages
    assert "# Licences of the sources of tiny" in text(project)
    assert "| photos | CC BY 4.0 | Jane \\| Doe, 2020 |" in text(project)
    assert "| lines | CC0; MIT |  |" in text(project)
    found = json.loads((project / "run" / "shards" / "LICENCES.json").read_text())["sources"]
    assert found[0]["attribution"] == "Jane | Doe,\n2020"


def test_the_licences_of_a_built_corpus_come_first(project, caplog):
    corpus = project / "run" / "corpus"
    corpus.mkdir()
    (corpus / LICENCES).write_text("# Licences\n\nOf packages.\n")
    shutil.move(project / "lines.jsonl", corpus / "lines.jsonl")
    write_licences(context(project, "heldout.0.path={run}/corpus/lines.jsonl"))
    assert text(project).startswith("# Licences\n\nOf packages.\n\n# Licences of the sources")
    assert "| lines |" not in text(project)
    shutil.move(project / "photos", corpus / "photos")
    built = ["heldout.0.path={run}/corpus/lines.jsonl", "sources.0.path={run}/corpus/photos"]
    write_licences(context(project, *built))
    assert text(project) == "# Licences\n\nOf packages.\n"


def test_a_licence_that_is_stated_later_reaches_the_bundle(project):
    write_licences(context(project))
    bundle = project / "run" / "bundle"
    bundle.mkdir()
    (bundle / LICENCES).write_text(f"# Of the base\n\n{text(project)}\nA line of the user.\n")
    refresh_licences(context(project, *STATED))
    assert text(project, "bundle") == f"# Of the base\n\n{text(project)}\nA line of the user.\n"
    assert "CC BY 4.0" in text(project, "bundle")


def test_a_bundle_of_an_earlier_version_gets_the_licences(project):
    (project / "run" / "bundle").mkdir()
    refresh_licences(context(project))
    assert "| photos | not stated |" in text(project, "bundle")


def test_what_has_not_changed_is_not_written(project):
    write_licences(context(project))
    (project / "run" / "bundle").mkdir()
    before = (project / "run" / "shards" / LICENCES).stat().st_mtime_ns
    refresh_licences(context(project))
    assert (project / "run" / "shards" / LICENCES).stat().st_mtime_ns == before
    assert not (project / "run" / "bundle" / LICENCES).exists()


def test_documents_of_another_index_have_licences_too(project):
    """What is retrieved from an index that was built elsewhere is read in training."""
    (project / "index").mkdir()
    (project / "index" / LICENCES).write_text("# Licences of the sources of index\n")
    (project / "run" / "bundle").mkdir()
    recipe = RECIPE.replace('path = "photos"', TRANSFORM, 1) + MODEL
    (project / "recipe.toml").write_text(recipe)
    write_licences(context(project))
    assert text(project).endswith(
        "| lines | not stated |  |\n\n# Licences of the sources of index\n"
    )
    (project / "index" / LICENCES).write_text("# Licences of the sources of index\n\nCC0\n")
    refresh_licences(context(project))
    assert text(project, "bundle").endswith("CC0\n")


def test_documents_and_tokens_are_counted_by_licence(project, codec):
    write_lines(project, ["CC0", "", "CC0", "MIT"])
    run = context(project, *STATED, 'heldout.0.licence="CC BY 4.0"')
    [source] = run.recipe.heldout
    folder = project / "run" / "shards" / "lines"
    prepare_source(source, codec, folder, PrepareConfig(row_tokens=64))
    write_licences(run)
    assert "| lines | CC BY 4.0 (1 document); CC0 (2 documents); MIT (1 document) |" in text(
        project
    )
    found = json.loads((project / "run" / "shards" / "LICENCES.json").read_text())["sources"]
    assert found[0]["counts"] == []  # of shards that are not there yet
    [by, cc0, mit] = found[1]["counts"]
    assert (by["licence"], by["documents"], by["images"]) == ("CC BY 4.0", 1, 0)
    assert by["tokens"] + cc0["tokens"] + mit["tokens"] == Shards.open(folder).n_tokens
    index = json.loads((folder / "index.json").read_text())
    assert [each["licence"] for each in index["licences"]] == ["", "CC0", "MIT"]
    refresh_licences(context(project, *STATED, 'heldout.0.licence="MIT"'))
    assert "| lines | CC0 (2 documents); MIT (2 documents) |" in text(project)
    assert json.loads((folder / "index.json").read_text())["source"]["licence"] == "MIT"
    write_lines(project, ["CC0", "", "CC0", "CC BY-SA 4.0"])  # no other documents
    refresh_licences(context(project, *STATED))
    assert "| lines | CC0; CC BY-SA 4.0 |" in text(project)
