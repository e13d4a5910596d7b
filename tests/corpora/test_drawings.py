"""Five styles of drawing: who is held out of what, captions, and packages that are checked."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from fake_drawings import (
    HEXCODES,
    IBIS,
    JAPAN,
    N_THINGS,
    WAVE,
    colour,
    pinned_hash,
    write_fake_packages,
)

from pardalis.corpora import DrawingsConfig, build_drawings, packages
from pardalis.corpora.captions import with_article
from pardalis.corpora.drawings.concepts import Concept
from pardalis.corpora.drawings.styles import STYLES
from pardalis.documents import read_jsonl
from pardalis.errors import ConfigError, DataError

FILES = ("pairs.train", "pairs.heldout", "pairs.test", "cells")
SHA256 = packages._sha256  # before the fakes take its place
STYLE = {style.name: style for style in STYLES}


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("npm") / "packages"
    write_fake_packages(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "_sha256", pinned_hash)
        yield folder


@pytest.fixture(scope="module")
def corpus(fakes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "drawings"
    config = DrawingsConfig(packages=fakes, image_side=16)
    return folder, build_drawings(config, folder)


def cells_of(folder, name):
    """Return {(key, style): document} of a file."""
    documents = list(read_jsonl(folder / f"{name}.jsonl"))
    return {tuple(document.name.split("/")[1:]): document for document in documents}


@pytest.fixture(scope="module")
def parts(corpus):
    return {name: cells_of(corpus[0], name) for name in FILES}


def test_counts_are_those_of_the_files(corpus, parts):
    counts = corpus[1]
    for name in FILES:
        found = [style for _, style in parts[name]]
        assert counts[name] == {style: found.count(style) for style in set(found)}
    assert counts["concepts"] == N_THINGS + 4  # the hand, the square, the flag and the ibis
    assert counts["dropped_identical"] == 1


def test_a_split_holds_whole_concepts(parts):
    keys = {name: {key for key, _ in parts[name]} for name in FILES}
    assert all(keys.values())
    assert keys["pairs.train"].isdisjoint(keys["pairs.heldout"] | keys["pairs.test"])
    assert keys["pairs.heldout"].isdisjoint(keys["pairs.test"])
    for name, low, high in (("train", 0, 90), ("heldout", 90, 95), ("test", 95, 100)):
        for key in keys[f"pairs.{name}"]:
            assert low <= int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100 < high


def test_a_cell_is_a_style_that_training_lacks_of_a_concept_it_knows(parts):
    styles_of = {}
    for key, style in parts["pairs.train"]:
        styles_of.setdefault(key, set()).add(style)
    for key, style in parts["cells"]:
        assert styles_of[key] == STYLE.keys() - {style}


def test_a_tenth_of_the_concepts_lose_one_style_and_all_styles_lose_some():
    concepts = [Concept(f"{0x1F000 + i:x}", "") for i in range(2_000)]
    lost = [concept.held_out_style(STYLE) for concept in concepts]
    assert 160 < len(concepts) - lost.count(None) < 240
    assert all(25 < lost.count(style) < 60 for style in STYLE)
    # Without one style, only those that lost it lose another.
    fewer = [concept.held_out_style(STYLE.keys() - {"openmoji"}) for concept in concepts]
    assert all(was in (now, "openmoji") for was, now in zip(lost, fewer, strict=True))


def test_more_cells_can_be_held_out(fakes, tmp_path, parts):
    config = DrawingsConfig(packages=fakes, image_side=8, one_cell_in=1)
    build_drawings(config, tmp_path / "cells")
    found = {name: cells_of(tmp_path / "cells", name) for name in FILES}
    styles_of = {}
    for key, style in (*found["pairs.train"], *found["cells"]):
        styles_of.setdefault(key, set()).add(style)
    whole = {key for key, styles in styles_of.items() if styles == STYLE.keys()}
    assert {key for key, _ in found["cells"]} == whole  # each concept that has all styles lost one
    assert found["cells"].keys() > parts["cells"].keys()
    assert found["pairs.heldout"].keys() == parts["pairs.heldout"].keys()


def test_fewer_concepts_can_be_taken_and_the_rest_stands_apart(fakes, tmp_path, parts):
    config = DrawingsConfig(packages=fakes, image_side=8, train_concepts=5)
    build_drawings(config, tmp_path / "few")
    found = {name: cells_of(tmp_path / "few", name) for name in (*FILES, "pairs.others")}
    taken = {key for key, _ in (*found["pairs.train"], *found["cells"])}
    assert len(taken) == 5
    assert found["cells"].keys() <= parts["cells"].keys()
    for key in taken:
        styles = {s for k, s in (*found["pairs.train"], *found["cells"]) if k == key}
        assert styles == STYLE.keys()
    train, others = found["pairs.train"].keys(), found["pairs.others"].keys()
    assert train | others == parts["pairs.train"].keys() and not train & others
    assert found["pairs.heldout"].keys() == parts["pairs.heldout"].keys()
    redrawn, _ = redraws_of(tmp_path / "few", "train")
    assert {key for key, _, _ in redrawn} <= taken


def redraws_of(folder, split):
    """Return the (key, style, style) of the documents of a file, and the documents."""
    documents = list(read_jsonl(folder / f"redraws.{split}.jsonl"))
    return [tuple(document.name.split("/")[1:]) for document in documents], documents


@pytest.mark.parametrize("split", ["train", "heldout", "test"])
def test_a_redraw_shows_one_concept_in_two_styles_each_first_and_second_once(corpus, parts, split):
    cells, documents = redraws_of(corpus[0], split)
    pairs = parts[f"pairs.{split}"]
    styles_of = {}
    for key, style in pairs:
        styles_of.setdefault(key, []).append(style)
    in_several = {cell for cell in pairs if len(styles_of[cell[0]]) > 1}
    assert sorted((key, a) for key, a, _ in cells) == sorted(in_several)
    assert sorted((key, b) for key, _, b in cells) == sorted(in_several)
    assert corpus[1][f"redraws.{split}"].values() and all(a != b for _, a, b in cells)
    for (key, a, b), document in zip(cells, documents, strict=True):
        given = tuple(replace(segment, weight=0.0) for segment in pairs[key, a].segments)
        assert document.segments == (*given, *pairs[key, b].segments)
        for style in (a, b):
            assert STYLE[style].licence in document.licence


@pytest.mark.parametrize("split", ["train", "heldout", "test"])
def test_an_image_that_is_described_is_not_learnt(corpus, parts, split):
    documents = list(read_jsonl(corpus[0] / f"captions.{split}.jsonl"))
    pairs = parts[f"pairs.{split}"]
    assert len(documents) == len(pairs)
    for document in documents:
        key, style = document.name.removeprefix("caption/").split("/")
        text, image = pairs[key, style].segments
        assert document.segments == (replace(image, weight=0.0), text)


def test_a_held_out_cell_is_redrawn_from_a_style_of_training(corpus, parts):
    cells, _ = redraws_of(corpus[0], "cells")
    assert {(key, after) for key, _, after in cells} == parts["cells"].keys()
    assert all((key, before) in parts["pairs.train"] for key, before, _ in cells)
    seen, _ = redraws_of(corpus[0], "train")
    assert {(key, b) for key, _, b in seen}.isdisjoint(parts["cells"])


def test_captions_and_images(corpus, parts):
    everything = {cell: document for name in FILES for cell, document in parts[name].items()}
    for (key, style), document in everything.items():
        caption, image = document.segments
        assert caption.text.startswith(f"{STYLE[style].phrase} of ")
        assert image.source == corpus[0] / "images" / f"{key}.{style}.png"
        assert document.licence == STYLE[style].licence
    japan = everything[JAPAN.lower(), "noto"]
    assert japan.text == "a shaded illustration of the flag of Japan"
    assert japan.images[0].alt == "flag of Japan"
    square = everything["25fb", "fluent-3d"]
    assert square.text == "a 3D rendering of a man's square"
    hand = everything[WAVE.lower(), "fluent-flat"]
    assert hand.text == "a flat drawing of a waving hand"


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_drawing_is_that_of_its_package_on_white(corpus, style):
    pixels = np.asarray(
        PIL.Image.open(corpus[0] / f"images/{HEXCODES[0].lower()}.{style.name}.png")
    )
    assert pixels.shape == (16, 16, 3)
    assert (pixels[:4] == colour(style.package, HEXCODES[0])).all()
    assert (pixels[12:] == 255).all()


def test_a_view_that_is_no_square_is_centred(corpus):
    pixels = np.asarray(PIL.Image.open(corpus[0] / f"images/{JAPAN.lower()}.noto.png"))
    assert (pixels[:7, :3] == 255).all()
    assert (pixels[:7, 5:11] == colour(STYLE["noto"].package, JAPAN)).all()


def test_of_drawings_that_look_the_same_one_remains(parts):
    """Of things 0 and 1 in twemoji, that of training; thing 2 was never drawn there."""
    found = {cell for name in FILES for cell in parts[name]}
    first, second, third = (code.lower() for code in HEXCODES[:3])
    assert ((first, "twemoji") in found) != ((second, "twemoji") in found)
    assert (first, "noto") in found and (second, "noto") in found
    assert (third, "twemoji") not in found


def test_what_is_left_out(parts):
    keys = {key for name in FILES for key, _ in parts[name]}
    assert IBIS.lower() in keys
    assert keys.isdisjoint({"1f595", "f000", "e000", f"{WAVE.lower()}-1f3fb"})


def test_skin_tones_share_the_split_and_the_cell(fakes, tmp_path):
    config = DrawingsConfig(packages=fakes, image_side=8, skin_tones=True)
    build_drawings(config, tmp_path / "tones")
    parts = {name: cells_of(tmp_path / "tones", name) for name in FILES}
    toned = f"{WAVE.lower()}-1f3fb"
    for style in STYLE:
        (where,) = (name for name in FILES if (toned, style) in parts[name])
        assert (WAVE.lower(), style) in parts[where]
    caption = parts[where][toned, style].text
    assert caption.endswith("of a waving hand, light skin tone")


def test_permissive_licences_leave_the_share_alike_style_out(fakes, tmp_path):
    config = DrawingsConfig(packages=fakes, image_side=8, licences="permissive")
    counts = build_drawings(config, tmp_path / "free")
    assert counts["concepts"] == N_THINGS + 3
    assert not list((tmp_path / "free" / "images").glob("*.openmoji.png"))
    manifest = (tmp_path / "free" / "LICENCES.md").read_text()
    assert "SA" not in manifest
    assert "Twemoji, by Twitter" in manifest and "Emojibase" in manifest


def test_the_manifest_names_every_package(corpus):
    manifest = json.loads((corpus[0] / "LICENCES.json").read_text())["packages"]
    assert [record["package"] for record in manifest] == [
        *(style.package.name for style in STYLES),
        "emojibase-data",
    ]
    assert all(record["count"] and record["attribution"] for record in manifest)


def test_concepts_are_listed(corpus, parts):
    entries = {e["key"]: e for e in json.loads((corpus[0] / "concepts.json").read_text())}
    cells = {key: entry["cell"] for key, entry in entries.items() if entry["cell"]}
    assert cells == dict(parts["cells"].keys())
    ibis = entries[IBIS.lower()]
    assert (ibis["name"], ibis["styles"]) == ("extra animals-nature", ["openmoji"])


def test_the_same_config_gives_the_same_bytes(corpus, fakes, tmp_path):
    def contents(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [(path.relative_to(folder), path.read_bytes()) for path in files]

    build_drawings(DrawingsConfig(packages=fakes, image_side=16), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(corpus[0])


def test_families_share_split_and_cell():
    """Man and woman teacher, in any tone: their drawings are nearly the same."""
    man, woman = Concept("1f468-200d-1f3eb", "man teacher"), Concept("1f469-1f3fd-200d-1f3eb", "")
    assert man.family == woman.family == "1f9d1-200d-1f3eb"
    assert man.held_out_style(STYLE) == woman.held_out_style(STYLE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deer", "a deer"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("cooked rice", "cooked rice"),
        ("men holding hands", "men holding hands"),
        ("person lifting weights", "a person lifting weights"),
        ("globe showing Americas", "a globe showing Americas"),
        ("Statue of Liberty", "Statue of Liberty"),
        ("Christmas tree", "a Christmas tree"),
        ("no bicycles", "no bicycles"),
        ("kiss, woman, man", "a kiss, woman, man"),
        ("flag of Japan", "the flag of Japan"),
        ("keycap 3", "keycap 3"),
    ],
)
def test_articles(name, expected):
    assert with_article(name) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_side": 4}, r"image_side must be from 8 to 1024, got 4\."),
        ({"train_concepts": 0}, r"train_concepts must be at least 1, got 0\."),
        ({"one_cell_in": 0}, r"one_cell_in must be at least 1, got 0\."),
        ({"image_side": 2048}, r"image_side must be from 8 to 1024, got 2048\."),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        DrawingsConfig(packages=Path("npm"), **changes)


def test_packages_that_are_not_there(tmp_path):
    config = DrawingsConfig(packages=Path("npm"))
    with pytest.raises(DataError, match="does not exist; `fetch_packages` downloads it"):
        build_drawings(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_another(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "_sha256", lambda path: "0" * 64)
    config = DrawingsConfig(packages=fakes)
    with pytest.raises(DataError, match=r"is not emojibase-data 17\.0\.0 as it was released: its"):
        build_drawings(config, tmp_path / "out")


def test_hashes_are_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"owl")
    assert SHA256(tmp_path / "a") == hashlib.sha256(b"owl").hexdigest()


def test_what_renders_them_is_missing(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"rendered by resvg-py, which is not installed: run pip"):
        build_drawings(DrawingsConfig(packages=fakes), tmp_path / "out")
