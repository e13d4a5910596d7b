"""Which items of a task training has seen: against brute force, and in the results."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.documents import Document, Image, Text
from pardalis.errors import ConfigError
from pardalis.evaluate.contamination import (
    ContaminationConfig,
    TrainingDocuments,
    difference_hash,
    find_overlaps,
    words_of,
)
from pardalis.evaluate.tasks import Item, evaluate_tasks

LONG = "An owl sat on the old oak and the naïve fox ran home again"


def overlaps(items, documents, **config):
    training = TrainingDocuments("run", documents, len(documents))
    return find_overlaps(items, training, ContaminationConfig(**config) if config else None)


def texts(*found: str) -> list[Document]:
    return [Document((Text(text),), name=f"d{n}") for n, text in enumerate(found)]


def photo(seed: int, side: int = 64) -> PIL.Image.Image:
    """Return a smooth image of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).resize((side, side), PIL.Image.Resampling.BICUBIC)


# ── texts ────────────────────────────────────────────────────────────────────────────────────────


def test_words():
    assert words_of("Naïve — ﬁne, 3.14 STRASSE straße!") == [
        "naïve", "fine", "3", "14", "strasse", "strasse",
    ]  # fmt: skip
    assert words_of("猫が来た owl") == ["猫", "が", "来", "た", "owl"]


def test_thirteen_words_in_another_form_are_seen():
    words = LONG.split()
    items = [
        Item("same", {"text": LONG}),
        Item("part", {"text": "Who? " + " ".join(words[:13]) + " never"}),
        Item("less", {"text": "Who? " + " ".join(words[:12]) + " never"}),
        Item("listed", {"id": "x", "choices": [{"text": LONG}, "no"]}),
    ]
    same, part, less, listed = overlaps(
        items, texts("nothing", f'He says: "{LONG.upper().replace(" ", ", ")}"')
    )
    assert len(words) == 14
    assert (same.grams, same.seen, same.document) == (2, 2, "d1")
    assert (part.grams, part.seen) == (3, 1)
    assert (less.grams, less.seen, less.document) == (2, 0, "")
    assert (listed.grams, listed.seen) == (2, 2)
    assert [each.group for each in (same, part, less, listed)] == [
        "contaminated", "contaminated", "clean", "contaminated",
    ]  # fmt: skip


def test_short_texts_count_whole():
    items = [
        Item("nine", {"question": "An owl sat on the old oak and slept.", "answer": "owl"}),
        Item("other", {"question": "A fox sat on the old oak and slept"}),
        Item("seven", {"question": "An owl sat on the old oak"}),
        Item("none", {"number": 3}),
    ]
    found = overlaps(items, texts("Then an owl sat on the old oak and slept there"))
    assert [(each.grams, each.seen) for each in found] == [(1, 1), (1, 0), (0, 0), (0, 0)]
    assert [each.group for each in found[1:]] == ["clean", "not_judged", "not_judged"]


def test_texts_around_an_image_are_one_text():
    words = LONG.split()
    halves = [Text(" ".join(words[:7])), Image(photo(0)), Text(" ".join(words[7:]))]
    [found] = overlaps([Item("a", {"text": LONG})], [Document(tuple(halves))])
    assert found.seen == 2


def brute(item: list[list[str]], documents: list[list[str]], n: int, fewest: int) -> tuple:
    """Return the n-grams of an item and how many of them stand in documents, by comparing all."""
    grams = {tuple(t[i : i + n]) for t in item for i in range(len(t)) if len(t[i : i + n]) == n}
    longest = max(item, key=len, default=[])
    if not grams and len(longest) >= fewest:
        grams = {tuple(longest)}
    seen = {
        gram
        for gram in grams
        if any(
            tuple(words[i : i + len(gram)]) == gram
            for words in documents
            for i in range(len(words))
        )
    }
    return len(grams), len(seen)


WORDS = st.lists(st.sampled_from("abc"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(WORDS, max_size=3), min_size=1, max_size=3), st.lists(WORDS, max_size=4),
    st.integers(1, 5), st.integers(1, 5),
)  # fmt: skip
def test_overlaps_are_those_of_brute_force(items, documents, n, fewest):
    found = overlaps(
        [
            Item(str(number), {str(k): " ".join(text) for k, text in enumerate(item)})
            for number, item in enumerate(items)
        ],
        texts(*map(" ".join, documents)),
        n=n,
        fewest=fewest,
    )
    expected = [brute(item, documents, n, fewest) for item in items]
    assert [(each.grams, each.seen) for each in found] == expected


def test_a_config_out_of_range():
    with pytest.raises(ConfigError, match="n must be"):
        ContaminationConfig(n=0)


# ── images ───────────────────────────────────────────────────────────────────────────────────────


def test_a_difference_hash():
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))
    assert (
        difference_hash(PIL.Image.fromarray(ramp)) == 2**64 - 1
    )  # each pixel before a lighter one
    assert difference_hash(PIL.Image.fromarray(ramp[:, ::-1].copy())) == 0
    ramp[0, 1] = 0  # no longer lighter than the first
    assert difference_hash(PIL.Image.fromarray(ramp)) == 2**64 - 1 - 2**63


def test_copies_of_images_are_seen_and_other_images_are_not(tmp_path: Path):
    def jpeg(image: PIL.Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=60)
        return file.getvalue()

    (tmp_path / "broken.png").write_bytes(b"no image")
    items = [Item(str(n), {"image": Image(photo(n)), "list": [Image(photo(9))]}) for n in range(4)]
    items.append(Item("broken", {"image": Image(tmp_path / "broken.png")}))
    documents = [
        Document((Image(tmp_path / "broken.png"), Image(jpeg(photo(1)))), name="jpeg"),
        Document((Text("small"), Image(photo(2).resize((40, 40)))), name="small"),
        Document((Image(photo(20)), Image(photo(21))), name="others"),
    ]
    found = overlaps(items, documents)
    assert [each.images for each in found] == [2, 2, 2, 2, 0]
    assert [each.images_seen for each in found] == [0, 1, 1, 0, 0]
    assert [each.document for each in found] == ["", "jpeg", "small", "", ""]
    assert found[-1].group == "not_judged"


def test_flags_of_other_colours_are_other_images():
    def flag(*colours: str) -> Image:
        image = PIL.Image.new("RGB", (48, 32))
        for place, colour in enumerate(colours):
            image.paste(PIL.Image.new("RGB", (16, 32), colour), (16 * place, 0))
        return Image(image)

    france, italy = flag("#0055a4", "white", "#ef4135"), flag("#009246", "white", "#ce2b37")
    assert difference_hash(france.source) == difference_hash(italy.source)
    items = [Item("france", {"flag": france}), Item("italy", {"flag": italy})]
    found = overlaps(items, [Document((italy,))])
    assert [each.group for each in found] == ["clean", "contaminated"]


# ── results ──────────────────────────────────────────────────────────────────────────────────────

TOML = """\
kind = "choice"
prompt = "{text}"
choices = ["old", "an owl"]
answer = "old"

[data]
path = "items.jsonl"
"""


def test_results_tell_clean_items_from_contaminated_ones(bundle, tmp_path):
    rows = [f"{LONG} {n}" for n in range(3)]
    rows += ["The cat and the dog ran over the green hills at noon on a day", "Too short"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
    (tmp_path / "items.jsonl").write_text(lines)
    (tmp_path / "t.toml").write_text(TOML)
    training = TrainingDocuments("RUN", texts("nothing", f"{LONG} 1"), 2)
    out = tmp_path / "out"
    entry = evaluate_tasks(bundle, [tmp_path / "t.toml"], out, training=training)["tasks"]["t"]
    found = entry["contamination"]
    assert (found["training"], found["documents"], found["share"]) == ("RUN", 2, 3 / 4)
    groups = [found[name] for name in ("clean", "contaminated", "not_judged")]
    assert [group["items"] for group in groups] == [1, 3, 1]
    whole = sum(group["items"] * group["numbers"]["accuracy"]["value"] for group in groups)
    assert whole / 5 == pytest.approx(entry["numbers"]["accuracy"]["value"])
    kept = [json.loads(line) for line in (out / "t/contamination.jsonl").read_text().splitlines()]
    assert [each["group"] for each in kept] == ["contaminated"] * 3 + ["clean", "not_judged"]
    assert kept[1]["document"] == "d1"
    assert "3 of 4 items (75 %)" in (out / "index.html").read_text()
    again = evaluate_tasks(bundle, [tmp_path / "t.toml"], out)["tasks"]["t"]
    assert "contamination" not in again
