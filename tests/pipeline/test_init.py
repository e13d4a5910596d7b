"""A first recipe: what is found in folders of every kind, what is chosen, and that it runs."""

import errno
import json
import os
import re
import tomllib
from pathlib import Path

import PIL.Image
import pytest
import torch
from documents_on_disk import words, write_documents

from pardalis.errors import ConfigError, DataError
from pardalis.pipeline import dry_run, first_recipe, init, load_recipe, run
from pardalis.pipeline.first_recipe import measure
from pardalis.pipeline.first_recipe.choose import choose
from pardalis.pipeline.first_recipe.found import look, reader_at

N = 30


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture
def machine(monkeypatch):
    """Replace the measurement by a machine of a given rate, in pixels and in weights of tokens."""

    def of(speed: float) -> None:
        def image_step(config, images, batch, device):
            return batch * config.resolution**2 / (1e6 * speed)

        def decoder_step(shape, vocabulary, row_tokens, rows, device):
            return (
                measure.n_parameters(shape, vocabulary, row_tokens)
                * rows
                * row_tokens
                / (1e10 * speed)
            )

        monkeypatch.setattr(measure, "image_tokenizer_step_s", image_step)
        monkeypatch.setattr(measure, "decoder_step_s", decoder_step)

    of(1.0)
    return of


def sources_of(folder: Path) -> dict[str, tuple[str, str]]:
    return {s.name: (s.reader, s.path.relative_to(folder).as_posix()) for s in look(folder).sources}


# ── what is found ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reader", ["folder", "html"])
def test_a_folder_of_one_kind_is_one_source(tmp_path, reader):
    write_documents(reader, tmp_path / "data", range(N))
    found = look(tmp_path / "data")
    assert sources_of(tmp_path / "data") == {"data": (reader, ".")}
    assert (found.n_documents, found.n_images, found.n_different_images) == (N, N, N)
    assert found.median_side == 32
    assert found.notes == []


def test_what_the_pages_of_a_site_repeat_is_left_out(tmp_path):
    folder = write_documents("html", tmp_path / "data", range(N))
    for page in folder.glob("*.html"):
        page.write_text(page.read_text().replace("<body>", "<body><p>Prev Next Home</p>"))
    [source] = look(folder).sources
    assert source.options == {"repeated": 0.5}
    assert source.n_characters < N * len("animal <10> Prev")
    assert reader_at(folder) == ("html", {"repeated": 0.5})  # as `pardalis data look` reads it
    for page in sorted(folder.glob("*.html"))[15:]:
        page.unlink()
    assert look(folder).sources[0].options == {}


def test_kinds_in_subfolders_are_sources_of_their_own(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "photos").mkdir()
    for name in ("birds", "fish"):
        write_documents("folder", data / "photos" / name, range(4))
    write_documents("html", data / "manual", range(4))
    write_documents("jsonl", data / "more", range(4))
    assert sources_of(data) == {
        "photos": ("folder", "photos"),
        "manual": ("html", "manual"),
        "more-documents": ("jsonl", "more/documents.jsonl"),
    }


def test_two_kinds_in_one_folder_are_two_sources(tmp_path):
    write_documents("folder", tmp_path / "data", range(4))
    (tmp_path / "data" / "page.html").write_text("<body><p>Owls.</p><img src='1.png'></body>")
    assert sources_of(tmp_path / "data") == {"data": ("folder", "."), "data-pages": ("html", ".")}


def test_many_alternating_folders_become_one_source_of_each_kind(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(6):
        write_documents("folder", tmp_path / "data" / f"{number}a", [number])
        write_documents("html", tmp_path / "data" / f"{number}b", [number])
    assert sorted(sources_of(tmp_path / "data").values()) == [("folder", "."), ("html", ".")]


def test_figures_of_pages_are_no_source_of_their_own(tmp_path):
    write_documents("html", tmp_path / "data", range(2))
    (tmp_path / "data" / "figures").mkdir()
    (tmp_path / "data" / "0.png").rename(tmp_path / "data" / "figures" / "0.png")
    page = tmp_path / "data" / "page-0.html"
    page.write_text(page.read_text().replace("0.png", "figures/0.png"))
    assert sources_of(tmp_path / "data") == {"data": ("html", ".")}
    assert look(tmp_path / "data").n_images == 2


def test_a_list_of_captions_describes_its_folder(tmp_path):
    write_documents("folder", tmp_path / "data", range(2))
    lines = [{"file_name": f"{n}.png", "text": words(n)} for n in range(2)]
    (tmp_path / "data" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for n in range(2):
        (tmp_path / "data" / f"{n}.txt").unlink()
    assert sources_of(tmp_path / "data") == {"data": ("folder", ".")}
    assert look(tmp_path / "data").sources[0].n_pairs == 2


def test_a_list_beside_the_folder_of_images_describes_it(tmp_path):
    (tmp_path / "data").mkdir()
    write_documents("folder", tmp_path / "data" / "train2017", range(2))
    names = [f"{n}.png" for n in range(2)]
    for n in range(2):
        (tmp_path / "data" / "train2017" / f"{n}.txt").unlink()
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    annotations = [{"image_id": n, "caption": words(n)} for n in range(2)]
    (tmp_path / "data" / "annotations").mkdir()
    (tmp_path / "data" / "annotations" / "captions_train2017.json").write_text(
        json.dumps({"images": images, "annotations": annotations})
    )
    assert sources_of(tmp_path / "data") == {"data": ("folder", ".")}
    assert look(tmp_path / "data").sources[0].n_pairs == 2


def test_what_is_no_file_is_left_out(tmp_path):
    write_documents("folder", tmp_path / "data", range(2))
    for name in ("a.jsonl", "a.html", "a.png", "a.txt"):
        os.mkfifo(tmp_path / "data" / name)
    (tmp_path / "data" / "b.jsonl").symlink_to("/dev/zero")
    assert sources_of(tmp_path / "data") == {"data": ("folder", ".")}
    assert look(tmp_path / "data").sources[0].n_pairs == 2


@pytest.mark.parametrize(
    "reader", ["csv", "parquet", "obelics", "mmc4", "webdataset", "markdown", "text", "pdf"]
)
def test_other_formats_are_sources(tmp_path, reader):
    (tmp_path / "data").mkdir()
    write_documents(reader, tmp_path / "data" / "more", range(4))
    write_documents("folder", tmp_path / "data" / "photos", range(4))
    if reader != "markdown":
        (tmp_path / "data" / "more" / "README.md").write_text("About these.")
    (tmp_path / "data" / "more" / ".DS_Store").write_bytes(b"x")
    found = look(tmp_path / "data")
    assert {source.reader: source.n_documents for source in found.sources} == {
        reader: 4,
        "folder": 4,
    }


def test_the_splits_of_a_dataset_are_sources_and_one_is_held_out(tmp_path, machine):
    (tmp_path / "data").mkdir()
    for split, numbers in (("train", range(20)), ("test", range(20, 24))):
        path = write_documents("parquet", tmp_path / split, numbers)
        path.rename(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    recipe = load_recipe(init(Path("data")).path)
    [train], [test] = recipe.sources, recipe.heldout
    assert (train.name, train.options) == ("data-train", {"split": "train"})
    assert (test.name, test.options) == ("data-test", {"split": "test"})
    assert dry_run(recipe, Path("run"))


def test_files_that_are_named_after_a_test_are_held_out(tmp_path, machine):
    write_documents("jsonl", tmp_path / "data", range(8))
    for name in ("train", "test"):
        text = (tmp_path / "data" / "documents.jsonl").read_text()
        (tmp_path / "data" / f"owls.{name}.jsonl").write_text(text)
    (tmp_path / "data" / "documents.jsonl").unlink()
    recipe = load_recipe(init(Path("data")).path)
    assert [source.name for source in recipe.sources] == ["owls.train"]
    assert [source.name for source in recipe.heldout] == ["owls.test"]


def test_what_is_left_out_is_told(tmp_path, machine):
    data = tmp_path / "data"
    write_documents("folder", data, range(N))
    write_documents("pairs", data / "more", range(2))
    (data / "more" / "other.jsonl").write_text('{"words": "of another shape"}\n')
    (data / "notes.odt").write_text("Notes.")
    (data / "3.txt").write_text("")
    notes = " ".join(look(data).notes)
    assert "more/pairs.jsonl holds pairs of completions" in notes
    assert "more/other.jsonl holds records of a layout that no reader reads" in notes
    assert "Left out, as files of kinds that are not read: 1 .odt." in notes
    assert look(data).sources[0].rejected == {"bad-caption": 1}
    assert "left out: 1 bad-caption" in init(Path("data")).path.read_text()


def test_files_of_kinds_that_are_not_read_are_counted(tmp_path, monkeypatch):
    """Captions in a table, photos of a phone; but nothing of what belongs to a page."""
    monkeypatch.setattr("pardalis.documents.readers.folder.can_read_heic", lambda: False)
    write_documents("folder", tmp_path / "data", range(4))
    for name in ("IMG_1.HEIC", "IMG_2.HEIC", "0.json", "style.css"):
        (tmp_path / "data" / name).write_text("{}")
    note, first = look(tmp_path / "data").notes
    assert note == "Left out, as files of kinds that are not read: 2 .heic, 1 .json, 1 .css."
    assert "IMG_1.HEIC: It is an HEIC image, which is read with the extra heic" in first
    (tmp_path / "data" / "page.html").write_text("<body><p>Owls.</p><img src='1.png'></body>")
    assert ".css" not in look(tmp_path / "data").notes[0]


def test_images_of_jsonl_are_not_told_to_be_in_no_document(tmp_path):
    write_documents("jsonl", tmp_path / "data", range(4))
    assert look(tmp_path / "data").notes == []
    PIL.Image.new("RGB", (32, 32)).save(tmp_path / "data" / "more.png")
    assert look(tmp_path / "data").notes == [
        "1 images have no caption and are in no document; they are left out."
    ]


@pytest.mark.parametrize(
    ("reader", "record"),
    [
        ("chat", {"messages": [{"role": r, "content": "Owl?"} for r in ("user", "assistant")]}),
        ("sharegpt", {"conversations": [{"from": f, "value": "Owl?"} for f in ("human", "gpt")]}),
        ("cauldron", {"images": [], "texts": [{"user": "Owl?", "assistant": "Owl."}]}),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_conversations_are_named_with_what_to_do(tmp_path, reader, record, suffix):
    file = tmp_path / "data" / f"talk{suffix}"
    file.parent.mkdir()
    file.write_text(json.dumps([record] if suffix == ".json" else record))
    told = (
        f"talk{suffix} holds conversations, which train a finished model further and are no part "
        "of a first recipe; run the recipe 'chat' with start_from = the folder of your model, "
        f"sources.0.reader = '{reader}' and sources.0.path = '{file}' (docs/fine-tune.md)."
    )
    with pytest.raises(DataError, match="none of these files can be read") as refused:
        look(tmp_path / "data")
    assert told in str(refused.value)
    write_documents("folder", tmp_path / "data" / "photos", range(4))
    assert look(tmp_path / "data").notes == [told]


def test_equal_captions_are_not_called_too_few(tmp_path, machine):
    write_documents("folder", tmp_path / "data", range(N))
    for number in range(N):
        (tmp_path / "data" / f"{number}.txt").write_text("a photo")
    assert init(Path("data")).reasons["held out"] == (
        "Nothing: the documents have the same text, so they are all on one side."
    )


def test_the_command_can_be_pasted(tmp_path, machine):
    write_documents("folder", tmp_path / "my photos", range(4))
    made = init(tmp_path / "my photos", Path("my photos.toml"))
    assert made.path.read_text().startswith("# pardalis run 'my photos.toml'\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", r"^none does not exist; `folder` must be a folder that holds documents\.$"),
        ("file.txt", r"^file.txt is a file; `folder` must be a folder"),
        ("empty", r"^empty holds no file; what is read are images with captions"),
        ("texts", r"^The documents in texts hold no image, and a model of text and images"),
        ("pages", r"^The documents in pages hold no image, and a model of text and images"),
        ("broken", r"^None of 3 sampled images in broken can be decoded; the first: .*0\.png"),
        (
            "unusable",
            r"^Nothing in unusable can be used: unusable has no usable .* 1 empty-d.* The first, ",
        ),
        ("pairs", r"^pairs holds .* pairs\.jsonl holds pairs of completions"),
    ],
)
def test_a_folder_without_use_is_refused_in_a_sentence(tmp_path, name, message):
    (tmp_path / "file.txt").write_text("a file")
    for folder in ("empty", "texts", "pages", "broken", "unusable"):
        (tmp_path / folder).mkdir()
    for file in ("a.md", "b.md", "c.txt"):
        (tmp_path / "texts" / file).write_text("words")
    (tmp_path / "pages" / "page.html").write_text("<body><p>Words.</p></body>")
    for number in range(3):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"no image")
        (tmp_path / "broken" / f"{number}.txt").write_text("a caption")
    (tmp_path / "unusable" / "x.txt").write_bytes(b"")
    (tmp_path / "pairs").mkdir()
    pair = {"prompt": "What is red?", "chosen": "A rose.", "rejected": "A tree."}
    (tmp_path / "pairs" / "pairs.jsonl").write_text(json.dumps(pair))
    with pytest.raises(DataError, match=message) as refused:
        init(Path(name), Path("recipe.toml"))
    assert "\n" not in str(refused.value)
    assert not Path("recipe.toml").exists()


# ── what is chosen ───────────────────────────────────────────────────────────────────────────────


def test_a_faster_machine_gets_more(tmp_path, machine):
    data = tmp_path / "data"
    write_documents("folder", data, range(N))
    for path in data.glob("*.png"):
        PIL.Image.new("RGB", (200, 160), "red").save(path)
    cpu = torch.device("cpu")
    slow = choose(look(data), 10, cpu)
    machine(100.0)
    fast = choose(look(data), 10, cpu)
    assert slow.images.resolution == 64 < fast.images.resolution <= 192
    assert slow.images.codes_per_image < fast.model.row_tokens


def test_much_text_gets_a_larger_model_and_vocabulary_if_there_is_time(tmp_path, machine):
    (tmp_path / "data").mkdir()
    PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / "data" / "a.png")
    lines = []
    for n in range(60):
        text = " ".join(f"owl {n * k % 7919}" for k in range(9000))
        lines.append(json.dumps({"segments": [{"text": text}, {"image": "a.png"}]}))
    (tmp_path / "data" / "long.jsonl").write_text("\n".join(lines))
    found, cpu = look(tmp_path / "data"), torch.device("cpu")
    short, long = choose(found, 5, cpu).model, choose(found, 500, cpu).model
    assert short.parameters < long.parameters
    assert not short.sees_enough and long.sees_enough
    assert short.vocab_size == long.vocab_size > 2000
    assert short.learning_rate > long.learning_rate


@pytest.mark.parametrize("minutes", [2, 10, 100])
def test_the_stated_time_is_kept(tmp_path, machine, minutes):
    write_documents("folder", tmp_path / "data", range(N))
    choice = choose(look(tmp_path / "data"), minutes, torch.device("cpu"))
    assert 0 < choice.seconds <= 60 * minutes
    assert choice.model.row_tokens >= choice.images.codes_per_image + 2


def test_too_little_time_is_told(tmp_path, machine):
    machine(0.01)
    write_documents("folder", tmp_path / "data", range(N))
    made = init(Path("data"), minutes=1)
    assert "1 minute is short for these documents" in " ".join(made.choice.warnings)
    assert "1 minute is short" in made.path.read_text()
    told = [warning for warning in made.choice.warnings if "more than the 1 " in warning]
    assert bool(told) == (made.choice.seconds > 66)


def test_a_training_of_many_passes_is_not_called_short(tmp_path, machine):
    machine(0.01)
    write_documents("folder", tmp_path / "data", range(2))
    choice = choose(look(tmp_path / "data"), 10, torch.device("cpu"))
    assert min(choice.images.steps, choice.model.steps) < 500
    assert choice.model.epochs > 60
    assert not any("short for" in warning for warning in choice.warnings)


def test_the_first_document_that_is_left_out_is_named(tmp_path):
    write_documents("folder", tmp_path / "data", range(N))
    (tmp_path / "data" / "lonely.txt").write_text("An owl.")
    notes = look(tmp_path / "data").notes
    assert any("lonely.txt: The caption has no image beside it." in note for note in notes)


def test_every_source_has_documents_on_both_sides(tmp_path, machine):
    (tmp_path / "data").mkdir()
    write_documents("folder", tmp_path / "data" / "photos", range(N))
    write_documents("html", tmp_path / "data" / "pages", range(100, 100 + N))
    made = init(Path("data"))
    recipe = load_recipe(made.path)
    assert made.choice.heldout_fraction and len(recipe.heldout) == 2
    assert dry_run(recipe, Path("run"))  # no part is empty


def test_too_few_documents_are_not_divided(tmp_path, machine):
    write_documents("folder", tmp_path / "data", [0])
    made = init(Path("data"))
    assert made.reasons["held out"] == "Nothing: the documents are too few to divide."


def test_a_small_source_that_keeps_all_from_being_divided_is_named(tmp_path, machine):
    write_documents("folder", tmp_path / "data", range(N))
    write_documents("html", tmp_path / "data" / "manual", range(1))
    made = init(Path("data"))
    assert made.choice.heldout_fraction is None
    assert made.reasons["held out"] == (
        "Nothing: every source would be divided, and the 1 of manual are too few."
    )
    assert load_recipe(made.path).heldout == ()


def test_images_without_captions_train_an_image_tokenizer_alone(tmp_path, machine):
    write_documents("folder", tmp_path / "data", range(N))
    for path in (tmp_path / "data").glob("*.txt"):
        path.unlink()
    made = init(Path("data"))
    assert made.reasons["model"].startswith("None: the documents have no text")
    assert "owl.txt for owl.png" in made.reasons["model"]
    recipe = load_recipe(made.path)
    assert not recipe.has_model
    assert [each.stage for each in dry_run(recipe, Path("run"))] == ["image_tokenizer"]


def test_long_pages_get_long_rows_and_pairs_both_orders(tmp_path, machine):
    (tmp_path / "data").mkdir()
    write_documents("folder", tmp_path / "data" / "photos", range(N))
    write_documents("html", tmp_path / "data" / "manual", range(N))
    for page in (tmp_path / "data" / "manual").glob("*.html"):
        page.write_text(
            page.read_text()
            .replace("</h1>", "</h1>" + f"An owl sits on {page.stem}. " * 200)
            .replace("</body>", f"<p>End of {page.stem}.</p></body>")
        )
    recipe = load_recipe(init(Path("data")).path)
    short = load_recipe(init(Path("data") / "photos").path)
    assert recipe.prepare.row_tokens > short.prepare.row_tokens
    transforms = {source.name: len(source.transforms) for source in recipe.sources}
    assert transforms == {"photos": 1, "manual": 0}
    assert recipe.sample.pages and not short.sample.pages
    assert sum(source.weight for source in recipe.sources) == pytest.approx(1, abs=0.05)


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def test_the_recipe_runs_to_its_report(tmp_path):
    """With real measurements; the run is shortened, and not a size of it changed."""
    (tmp_path / "data").mkdir()
    write_documents("folder", tmp_path / "data" / "photos", range(N))
    write_documents("html", tmp_path / "data" / "pages", range(N))
    made = init(Path("data"), Path("recipes.toml"), minutes=1)
    loop = ("steps=2", "evaluate_every=2", "report_every=1")
    changes = [
        f"{name}.{each}" for name in ("training_loop", "image_tokenizer_loop") for each in loop
    ]
    changes += [
        f"{name}.schedule.warmup_steps=1" for name in ("training", "image_tokenizer_training")
    ]
    changes += ["sample.images=2", "sample.captions=2", "sample.pages=1", "heldout_rows=4"]
    run(load_recipe(made.path, changes), Path("run"))
    assert (tmp_path / "run" / "report.html").is_file()
    assert {path.name for path in Path("run/shards").iterdir() if path.is_dir()} == {
        "photos", "pages", "photos.heldout", "pages.heldout",
    }  # fmt: skip


def test_the_file_explains_itself_and_stays_valid_from_elsewhere(tmp_path, machine):
    write_documents("folder", tmp_path / 'odd "name" ü', range(N))
    (tmp_path / "recipes").mkdir()
    made = init(tmp_path / 'odd "name" ü', Path("recipes/mine.toml"), minutes=5)
    text = made.path.read_text()
    values = tomllib.loads(text)
    assert values["sources"][0]["path"] == '../odd "name" ü'
    assert values["name"] == "mine"
    assert text.startswith("# pardalis run mine.toml\n")
    for reason in made.reasons.values():
        assert reason.split(".")[0][:40] in re.sub(r"\n# ", " ", text)
    assert max(map(len, text.splitlines())) <= 100
    assert dry_run(load_recipe(made.path), tmp_path / "run")


@pytest.mark.parametrize(
    ("folder", "file"),
    [("my photos", "my-photos.toml"), ("Bu\u0308cher", "B\u00fccher.toml"), ("写真", "写真.toml")],
)
def test_the_default_file_is_named_after_the_folder(tmp_path, machine, folder, file):
    write_documents("folder", tmp_path / folder, range(N))
    made = init(Path(folder))
    assert made.path == Path(file)
    assert load_recipe(made.path).name == made.path.stem


def test_a_file_that_exists_is_never_overwritten(tmp_path, machine):
    write_documents("folder", tmp_path / "data", range(N))
    Path("data.toml").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"^data.toml exists already and is not overwritten; give"
    ):
        init(Path("data"))
    assert Path("data.toml").read_text() == "mine"
    Path("link.toml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"^link.toml exists already"):
        init(Path("data"), Path("link.toml"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"minutes": 0.5}, r"^minutes must lie from 1 to 43,200, got 0.5\.$"),
        ({"minutes": float("nan")}, r"^minutes must lie from 1 to 43,200, got nan"),
        ({"minutes": 1e9}, r"^minutes must lie from"),
        ({"device": "tpu"}, r"^No device 'tpu' can be used here"),
        ({"output": Path("none/a.toml")}, r"^none/a.toml cannot be written: none is not a folder"),
        ({"output": Path("data/1.txt/a.toml")}, r"cannot be written: data/1.txt is not a folder"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(tmp_path, machine, how, message):
    write_documents("folder", tmp_path / "data", [1])
    with pytest.raises(ConfigError, match=message):
        init(Path("data"), **how)


def test_a_full_disk_leaves_no_empty_recipe_in_the_way(machine, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_documents("folder", Path("data"), range(N))
    with monkeypatch.context() as patched:
        patched.setattr(first_recipe, "write_text", full)
        with pytest.raises(ConfigError, match=r"a\.toml cannot be written: No space"):
            init(Path("data"), Path("a.toml"))
    assert not Path("a.toml").exists()


def test_a_folder_that_may_not_be_written(tmp_path, machine, monkeypatch):
    write_documents("folder", tmp_path / "data", range(N))

    opened = Path.open

    def refuse(self, mode="r", *how, **more):
        if mode == "x":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, mode, *how, **more)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"^a.toml cannot be written: Permission denied; give"):
        init(Path("data"), Path("a.toml"))
