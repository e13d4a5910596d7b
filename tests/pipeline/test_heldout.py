"""``heldout_fraction``: what is held out reaches no training, through every reader and stage."""

import json
import tomllib
from pathlib import Path

import pytest
import tomli_w
from documents_on_disk import words, write_documents
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.data import Shards
from pardalis.errors import ConfigError, DataError
from pardalis.model import Decoder, initialise
from pardalis.pipeline import builders, dry_run, load_codec, load_recipe, run, training_loader
from pardalis.pipeline.stages import sample, text_tokenizer

N = 40
HELD_OUT = 0.3
RECIPE = """
name = "divided"
heldout_fraction = {fraction}
heldout_rows = 4
{sources}
[text_tokenizer]
vocab_size = 300
[image_tokenizer]
resolution = 32
channels = 8
n_codes = 32
[image_tokenizer_training]
batch_images = 4
[image_tokenizer_training.schedule]
learning_rate = 1e-3
[image_tokenizer_loop]
steps = 2
[prepare]
row_tokens = 64
[model]
d_model = 16
n_layers = 1
attention.n_heads = 2
feed_forward.width = 16
[training]
batch_rows = 4
[training.schedule]
learning_rate = 1e-3
[training_loop]
steps = 2
[sample]
images = 2
captions = 2
pages = 0
caption_tokens = 4
"""
SOURCE = """
[[sources]]
name = "{name}"
reader = "{reader}"
path = "{path}"
"""


def write_recipe(folder: Path, *readers: str, fraction: float = HELD_OUT) -> Path:
    """Write a recipe with a source for each reader, which is called like it."""
    sources = "".join(
        SOURCE.format(
            name=reader, reader=reader, path=write_documents(reader, folder / reader, range(N))
        )
        for reader in readers
    )
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(fraction=fraction, sources=sources))
    return path


def numbers_in(text: str) -> set[int]:
    return {number for number in range(N) if words(number) in text}


def shards_text(codec: Codec, folder: Path) -> str:
    shards = Shards.open(folder, codec.fingerprint)
    return "\n".join(codec.decode(shards.document(i).ids).text for i in range(len(shards.names)))


def test_nothing_held_out_is_trained_on(tmp_path, monkeypatch):
    """Documents of three readers at once, through all stages, with the report."""
    seen: dict[str, str] = {}
    train_tokenizer, write = text_tokenizer.train_text_tokenizer, sample.write_samples

    def train_text(texts, size):
        listed = list(texts)
        seen["text tokenizer"] = "\n".join(listed)
        return train_tokenizer(listed, size)

    class Task(builders.ImageTokenizerTask):
        def __init__(self, model, config, images, heldout, **more):
            for name, some in (("images", images), ("held-out images", heldout)):
                seen[name] = " ".join(words(int(image.source.stem)) for image in some)
            super().__init__(model, config, images, heldout, **more)

    def write_samples(bundle, documents, config, run):
        listed = {split: list(of_split) for split, of_split in documents.items()}
        for split, of_split in listed.items():
            seen[f"samples of {split}"] = "\n".join(document.text for document in of_split)
        write(bundle, listed, config, run)

    monkeypatch.setattr(text_tokenizer, "train_text_tokenizer", train_text)
    monkeypatch.setattr(builders, "ImageTokenizerTask", Task)
    monkeypatch.setattr(sample, "write_samples", write_samples)
    readers = ["folder", "html", "jsonl"]
    folder, recipe = tmp_path / "run", load_recipe(write_recipe(tmp_path, *readers))
    run(recipe, folder)

    codec = load_codec(folder)
    for reader in readers:
        seen[f"shards {reader}"] = shards_text(codec, folder / "shards" / reader)
        seen[f"held-out shards {reader}"] = shards_text(
            codec, folder / "shards" / f"{reader}.heldout"
        )
    numbers = {what: numbers_in(text) for what, text in seen.items()}
    heldout = numbers["samples of heldout"]
    training = set(range(N)) - heldout
    assert 4 < len(heldout) < N / 2
    assert numbers == {
        "text tokenizer": training,
        "images": training,
        "held-out images": heldout,
        "samples of train": training,
        "samples of heldout": heldout,
        **{f"shards {reader}": training for reader in readers},
        **{f"held-out shards {reader}": heldout for reader in readers},
    }
    loader = training_loader(recipe, folder, codec)
    assert {loader.locate(position).source for position in range(40)} == {*readers}
    metrics = (folder / "training" / "metrics.jsonl").read_text().splitlines()
    assert "heldout_loss_text" in json.loads(metrics[-1])
    samples = json.loads((folder / "samples" / "samples.json").read_text())
    assert {each["split"] for each in samples["images"]} == {"train", "heldout"}
    assert (folder / "report.html").is_file()


def test_pairs_are_divided_whole(tmp_path, codec):
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=64, d_model=16, n_layers=1, n_heads=2,
        n_kv_heads=1, d_ff=16,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0), codec, {}).save(tmp_path / "base")
    path = write_recipe(tmp_path, "pairs")
    values = tomllib.loads(path.read_text()) | {"start_from": "base"}
    own = {name for name in values if "tokenizer" in name or name == "model"}
    path.write_text(tomli_w.dumps({k: v for k, v in values.items() if k not in own}))
    recipe = load_recipe(path)
    run(recipe, tmp_path / "run", only=("prepare",))
    names = [
        Shards.open(tmp_path / "run" / "shards" / source.name, codec.fingerprint).names
        for source in recipe.all_sources
    ]
    training, heldout = ({name.partition("#")[0] for name in some} for some in names)
    assert len(training) + len(heldout) == N and not training & heldout
    assert [2 * len(training), 2 * len(heldout)] == [len(some) for some in names]


def test_the_resolved_recipe_names_both_parts_and_reads_back(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, "folder", "jsonl"))
    assert [(s.name, s.part) for s in recipe.all_sources] == [
        ("folder", (HELD_OUT, 1.0)),
        ("jsonl", (HELD_OUT, 1.0)),
        ("folder.heldout", (0.0, HELD_OUT)),
        ("jsonl.heldout", (0.0, HELD_OUT)),
    ]
    run(recipe, tmp_path / "run", only=("text_tokenizer",))
    assert load_recipe(tmp_path / "run" / "recipe.toml") == recipe
    decisions = dry_run(load_recipe(tmp_path / "run" / "recipe.toml"), tmp_path / "run")
    assert decisions[0].action == "skip"


def test_a_change_of_the_fraction_trains_anew_and_a_held_out_addition_does_not(tmp_path):
    path, folder = write_recipe(tmp_path, "folder"), tmp_path / "run"

    def actions(*changes: str) -> dict[str, str]:
        decisions = dry_run(load_recipe(path, changes), folder)
        return {each.stage: each.action for each in decisions}

    run(load_recipe(path), folder, only=("text_tokenizer", "image_tokenizer"))
    assert actions()["text_tokenizer"] == actions()["image_tokenizer"] == "skip"
    changed = actions("heldout_fraction=0.6")
    assert changed["text_tokenizer"] == changed["image_tokenizer"] == "run"
    (recipe,) = load_recipe(path).heldout
    copied = next(builders.documents_of([recipe], folder))
    (tmp_path / "folder" / "copy.png").write_bytes(copied.images[0].source.read_bytes())
    (tmp_path / "folder" / "copy.txt").write_text(copied.text)
    assert actions()["text_tokenizer"] == actions()["image_tokenizer"] == "skip"


@pytest.mark.parametrize(("fraction", "name"), [(1e-6, "folder.heldout"), (1 - 1e-6, "folder")])
def test_a_fraction_that_leaves_a_side_empty_is_refused(tmp_path, fraction, name):
    recipe = load_recipe(write_recipe(tmp_path, "folder", fraction=fraction))
    with pytest.raises(DataError, match=rf"^None of the {N} documents .* source '{name}' takes"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "text_tokenizer").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("heldout_fraction=0", "^heldout_fraction must lie between 0 and 1, got 0.0; leave it out"),
        ("heldout_fraction=1", "^heldout_fraction must lie between 0 and 1, got 1.0"),
        ("heldout_fraction=nan", "heldout_fraction must be a number"),
        ("sources.0.part=[0.5, 1]", "^heldout_fraction cannot stand beside part, which source"),
        (
            'heldout=[{name="b", reader="folder", path="folder"}]',
            "^heldout_fraction cannot stand beside heldout, which names",
        ),
        ("sources.0.name=folder.heldout", None),
    ],
)
def test_what_it_cannot_stand_beside(tmp_path, change, message):
    path = write_recipe(tmp_path, "folder")
    if message is None:
        load_recipe(path, [change])
        return
    with pytest.raises(ConfigError, match=message):
        load_recipe(path, [change])


def test_parts_may_be_named_by_hand(tmp_path):
    path = write_documents("folder", tmp_path / "folder", range(N))
    text = RECIPE.partition("[text_tokenizer]")[2]
    sources = SOURCE.format(name="a", reader="folder", path=path) + "part = [0.2, 1.0]\n"
    heldout = SOURCE.replace("sources", "heldout").format(name="b", reader="folder", path=path)
    (tmp_path / "recipe.toml").write_text(
        f'name = "own"\n{sources}{heldout}part = [0.0, 0.1]\n[text_tokenizer]{text}'
    )
    recipe = load_recipe(tmp_path / "recipe.toml")
    training, other = (
        {document.text for document in builders.documents_of(sources, tmp_path)}
        for sources in (recipe.sources, recipe.heldout)
    )
    assert training and other and not training & other
    assert len(training | other) < N
