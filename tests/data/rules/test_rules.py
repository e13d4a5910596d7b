"""Rules of sources: what each removes, and that all readers of a source agree on it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import pytest

from pardalis.config import from_dict, to_dict
from pardalis.data import (
    PrepareConfig,
    Shards,
    SourceConfig,
    prepare_source,
    read_source,
    survey,
    survey_parts,
)
from pardalis.data.ruled import _known
from pardalis.data.rules import (
    C4,
    RULES,
    Classifier,
    DuplicateImages,
    DuplicateTexts,
    GopherQuality,
    GopherRepetition,
    ImageSize,
    Language,
    Removal,
    TextLength,
    allow_classifier,
)
from pardalis.documents import Document, Image, Rejection, Text, write_jsonl
from pardalis.documents.document import named_images
from pardalis.errors import ConfigError, DataError

PROSE = (
    "The owl is a bird of the night, and it is said to have the best ears of all birds. It sits on "
    "a branch with its eyes half closed and waits for the mouse to move. Then it glides down "
    "without a sound, and that is the end of the hunt. Most owls live in the woods, but some have "
    "moved to towns. They nest in towers and barns."
)


@pytest.fixture(autouse=True)
def forgotten():
    _known.clear()


def text(content: str, name: str = "a") -> Document:
    return Document((Text(content),), name)


def pixels(seed: int, size: tuple[int, int] = (64, 64)) -> PIL.Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC)


def source_of(folder: Path, documents: list[Document], rules=(), **changes) -> SourceConfig:
    path = folder / "documents.jsonl"
    write_jsonl(documents, path, folder / "images")
    return SourceConfig(name="owls", reader="jsonl", path=path, rules=tuple(rules), **changes)


def read(source: SourceConfig) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the names of documents, and where and of what kind rejections are."""
    items = list(read_source(source))
    return (
        [item.name for item in items if isinstance(item, Document)],
        [(item.where, item.kind) for item in items if isinstance(item, Rejection)],
    )


# ── rules that look at one document ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rule", "content", "reason"),
    [
        (TextLength(min_words=3), "an owl", "The text has 2 words, and at least 3 count."),
        (TextLength(max_words=1), "an owl", "The text has 2 words, and at most 1 count."),
        (TextLength(min_characters=2), " a ", "The text has 1 character, and at least 2 count."),
        (TextLength(max_characters=3), "owls", "The text has 4 characters, and at most 3 count."),
        (GopherQuality(), "An owl.", "has 2 words; 50 to 100,000 count."),
        (GopherQuality(), "ab " * 60, "words have 2.0 characters on average; 3 to 10 count."),
        (GopherQuality(), PROSE + " #" * 9, "has 9 number signs to"),
        (GopherQuality(), PROSE.replace(" a", " … a"), "ellipses to"),
        (GopherQuality(max_symbols=1.0), (PROSE + "...\n") * 9, "100% end with an ellipsis"),
        (GopherQuality(), "\n".join(["- " + PROSE] * 3), "100% begin with a bullet; at most 90%"),
        (GopherQuality(), "12345 owl " * 40, "50% have a letter; at least 80% count."),
        (GopherQuality(), "Eule und Eiche im Wald bei Nacht. " * 9, "has 0 of the stop words"),
        (GopherRepetition(), "one line\n" * 9, "89% of its lines are repeated; at most 30% count."),
        (
            GopherRepetition(lines=1.0, line_characters=1.0),
            "buy now " * 9,
            "in one 2-gram of words",
        ),
        (C4(), "if (x) { return; }", "has a curly bracket"),
        (C4(), "Lorem ipsum dolor.", "says 'lorem ipsum'"),
        (C4(), "An owl.", "has 1 sentence; at least 3 count."),
        (Language(), "Die Eule saß die ganze Nacht auf der alten Eiche im Wald.", "is in 'de'"),
    ],
)
def test_a_text_is_removed_with_a_true_sentence(rule, content, reason):
    removal = rule.removal(text(content))
    assert removal is not None and removal.images is None
    assert reason in removal.reason and removal.reason.endswith(".")


@pytest.mark.parametrize(
    "rule", [TextLength(min_words=3, max_words=200), GopherQuality(), GopherRepetition(), C4(),
             Language()],
)  # fmt: skip
def test_prose_is_kept(rule):
    assert rule.removal(text(PROSE)) is None


@pytest.mark.parametrize("rule", [GopherQuality(), GopherRepetition(), C4(), Language()])
@pytest.mark.parametrize("content", ["", "\x00\ud800", "\n\n", "12 34"])
def test_any_text_is_judged(rule, content):
    rule.removal(text(content))
    assert rule.removal(Document((Image(pixels(0)),))) is None


def test_an_unknown_language_is_named():
    with pytest.raises(
        ConfigError, match="languages names 'xx', which is not known; known are ace, af"
    ):
        Language(languages=("en", "xx")).removal(text(PROSE))


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((40, 100), "The image has 40 x 100 pixels; the shorter side must have at least 48."),
        ((300, 100), "The image has 300 x 100 pixels; the longer side may have at most 200."),
        ((196, 50), "may be at most 3 times the shorter one."),
    ],
)
def test_an_image_is_removed_by_its_size(size, reason):
    rule = ImageSize(min_side=48, max_side=200, max_aspect=3.0)
    removal = rule.removal(Document((Text("a"), Image(pixels(0)), Image(pixels(0, size)))))
    assert removal is not None and removal.images == (1,) and reason in removal.reason


# ── what is left of a document ───────────────────────────────────────────────────────────────────


def test_what_is_left_of_a_document(tmp_path):
    small, large = Image(pixels(0, (20, 20))), Image(pixels(1))
    documents = [
        Document((Text("an owl"), small), "pair"),
        Document((Text("one"), small, Text("two"), large), "mixed"),
        Document((small,), "alone"),
        Document((Text("what?", "user"), small, Text("an owl", "assistant")), "chat"),
        Document((small, large), "images"),
    ]
    source = source_of(tmp_path, documents, [ImageSize(min_side=48)])
    names, rejections = read(source)
    assert names == ["mixed", "images"]
    assert rejections == [
        (n, "rule:image_size") for n in ("pair", "mixed", "alone", "chat", "images")
    ]
    left = [item for item in read_source(source) if isinstance(item, Document)]
    assert [len(item.segments) for item in left] == [3, 1]
    found = survey(source)
    assert found.n_images == len(list(named_images(read_source(source))))
    assert (found.n_items, found.n_rejections) == (5, 3)


def test_a_page_is_kept_without_an_image(tmp_path):
    pixels(0, (60, 60)).save(tmp_path / "owl.png")
    (tmp_path / "a.html").write_text("<p>An owl.</p><img src=owl.png>")
    source = SourceConfig(name="a", reader="html", path=tmp_path, rules=(ImageSize(min_side=100),))
    [rejection, page] = list(read_source(source))
    assert isinstance(rejection, Rejection) and isinstance(page, Document)
    assert page.text.strip() == "An owl." and not page.images


# ── duplicates ───────────────────────────────────────────────────────────────────────────────────


def test_duplicate_texts(tmp_path):
    near = "See: " + PROSE.replace("barns", "trees")
    documents = [
        text(PROSE, "first"), text("Another owl.", "other"), text(PROSE.upper() + "!", "same"),
        text(near, "near"), text("Another  OWL", "same other"), text("", "empty"),
        text(PROSE[: len(PROSE) // 3], "a part"),
    ]  # fmt: skip
    judge = DuplicateTexts().begin()
    removals = {each.name: judge.removal(each) for each in documents}
    reasons = {name: removal.reason for name, removal in removals.items() if removal}
    assert reasons == {
        "same": "The text is the same as that of first.",
        "near": "The text is nearly the same as that of first.",
        "same other": "The text is the same as that of other.",
    }
    exact = DuplicateTexts(near=False).begin()
    assert [each.name for each in documents if exact.removal(each)] == ["same", "same other"]


def test_near_duplicates_are_found_as_often_as_promised():
    draw = np.random.default_rng(0)
    found = {0.5: 0, 0.8: 0}
    for similarity in found:
        for n in range(60):
            # Sets of 1-grams: words of two texts with that Jaccard similarity.
            shared = round(200 * 2 * similarity / (1 + similarity))
            words = [f"w{n}x{i}" for i in draw.permutation(400)]
            one, other = words[:200], words[200 - shared : 400 - shared]
            judge = DuplicateTexts(ngram=1).begin()
            judge.removal(text(" ".join(one)))
            found[similarity] += judge.removal(text(" ".join(other))) is not None
    assert found[0.8] >= 0.8 * 60 and found[0.5] <= 0.2 * 60


def test_duplicate_images(tmp_path):
    first = pixels(0, (64, 64))
    first.resize((40, 40)).save(tmp_path / "small.jpg", quality=60)
    flipped = first.transpose(PIL.Image.Transpose.ROTATE_180)
    (tmp_path / "broken.png").write_bytes(b"no")
    documents = [
        Document((Text("a"), Image(first), Text("b"), Image(flipped), Text("c")), "first"),
        Document((Text("a"), Image(tmp_path / "small.jpg"), Text("b"), Image(pixels(5))), "second"),
        Document((Image(tmp_path / "broken.png"),), "broken"),
    ]
    judge = DuplicateImages().begin()
    removals = [judge.removal(each) for each in documents]
    assert removals[0] is None and removals[2] is None
    assert removals[1].images == (0,)
    assert removals[1].reason == "The image looks the same as one of first."


@pytest.mark.parametrize("bits", [0, 1, 3, 7, 15])
def test_hashes_within_the_distance_are_found(bits, monkeypatch):
    from pardalis.data.rules import duplicate_images

    draw = np.random.default_rng(bits)
    hashes = iter(
        found
        for value in draw.integers(0, 2**63, 20).tolist()
        for found in (value, value ^ sum(1 << int(i) for i in draw.permutation(63)[:bits]))
    )
    monkeypatch.setattr(duplicate_images, "difference_hash", lambda image: next(hashes))
    judge = DuplicateImages(bits=bits).begin()
    document = Document((Image(pixels(0)),), "a")
    for _ in range(20):
        assert judge.removal(document) is None
        assert judge.removal(document) is not None


def test_what_is_held_out_counts_as_seen(tmp_path):
    image = Image(pixels(3))
    heldout = source_of(tmp_path, [text(PROSE, "q"), Document((Text("x"), image), "p")])
    heldout.path.rename(tmp_path / "heldout.jsonl")
    others = [{"reader": "jsonl", "path": str(tmp_path / "heldout.jsonl")}]
    source = source_of(tmp_path, [text(PROSE, "a"), text("An owl.", "b"),
                                  Document((Text("c"), image), "c")])  # fmt: skip
    rules = [{"kind": kind, "against": others} for kind in ("duplicate_texts", "duplicate_images")]
    source = from_dict(SourceConfig, to_dict(source) | {"rules": rules})
    names, _ = read(source)
    assert names == ["b"]
    reasons = [item.reason for item in read_source(source) if isinstance(item, Rejection)]
    assert reasons[0] == "The text is the same as that of q of heldout.jsonl."
    gone = from_dict(
        SourceConfig,
        to_dict(source) | {"rules": [rules[0] | {"against": [others[0] | {"path": "no.jsonl"}]}]},
    )
    with pytest.raises(DataError, match=r"no\.jsonl does not exist"):
        survey(gone)


def test_the_table_of_hashes_grows():
    from pardalis.data.rules.seen import Seen

    draw, seen, expected = np.random.default_rng(0), Seen(), {}
    keys = [*draw.integers(0, 2**64, 5000, dtype=np.uint64).tolist(), *range(0, 2**40, 2**28)]
    for number, key in enumerate([*keys, *keys[::3]]):
        assert seen.first(key, number) == expected.get(key or 1)
        expected.setdefault(key or 1, number)


# ── all readings of a source ─────────────────────────────────────────────────────────────────────

MIXED = [text(f"{PROSE} {n % 4}", f"d{n}") for n in range(12)] + [text("short", "s")]
RULE_LIST = [TextLength(min_words=3), DuplicateTexts(near=False)]


def test_every_reading_and_every_part_agree(tmp_path):
    source = source_of(tmp_path, MIXED, RULE_LIST)
    before = read(source)  # without a survey, which it makes itself
    assert before[0] == ["d0", "d1", "d2", "d3"]
    _known.clear()
    whole = survey(source)
    assert read(source) == before
    assert (whole.n_items, whole.n_rejections) == (13, 9)
    halves = [(0.0, 0.5), (0.5, 1.0)]
    surveys = survey_parts(source, halves)
    parts = [read(SourceConfig(**_values(source, part=part))) for part in halves]
    assert sorted(parts[0][0] + parts[1][0]) == sorted(before[0])
    assert [len(n) + len(r) for n, r in parts] == [each.n_items for each in surveys]


def _values(source: SourceConfig, **changes) -> dict:
    names = ("name", "reader", "path", "part", "rules")
    return {name: getattr(source, name) for name in names} | changes


def test_the_rules_are_part_of_what_identifies_a_source(tmp_path):
    digests = {
        survey(source_of(tmp_path, MIXED, rules)).digest
        for rules in ([], [TextLength(min_words=3)], RULE_LIST, [TextLength(max_words=3)])
    }
    assert len(digests) == 4
    plain = source_of(tmp_path, MIXED)
    assert survey(plain).digest == survey(source_of(tmp_path, MIXED, [TextLength()])).digest


def test_a_changed_source_is_judged_anew(tmp_path):
    source = source_of(tmp_path, MIXED, RULE_LIST)
    survey(source)
    source_of(tmp_path, MIXED[::-1])
    survey(source)
    assert read(source)[0] == ["d11", "d10", "d9", "d8"]


def test_what_rules_remove_is_reported(tmp_path, codec):
    source = source_of(tmp_path, MIXED, RULE_LIST)
    report = prepare_source(source, codec, tmp_path / "shards", PrepareConfig(row_tokens=600))
    counts = {kind: each.count for kind, each in report.rejected.items()}
    assert counts == {"rule:text_length": 1, "rule:duplicate_texts": 8}
    assert report.rejected["rule:duplicate_texts"].examples[0] == {
        "where": "d4", "reason": "The text is the same as that of d0."
    }  # fmt: skip
    assert (report.read, report.written) == (13, 4)
    assert Shards.open(tmp_path / "shards").names == ["d0", "d1", "d2", "d3"]
    fewer = source_of(tmp_path, MIXED, RULE_LIST[1:])
    assert not prepare_source(
        fewer, codec, tmp_path / "shards", PrepareConfig(row_tokens=600)
    ).unchanged


def test_pairs_take_no_rules(tmp_path):
    with pytest.raises(ConfigError, match="rules must be empty for reader 'pairs', got 1"):
        SourceConfig(name="p", reader="pairs", path=tmp_path, rules=(TextLength(),))


def test_a_rule_of_ones_own(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class OddNames:
        kind: Literal["odd_names"] = "odd_names"

        def removal(self, document: Document) -> Removal | None:
            return Removal("Its name is odd.") if int(document.name[1:]) % 2 else None

    RULES.add(OddNames)
    try:
        plain = to_dict(source_of(tmp_path, MIXED[:4]))
        source = from_dict(SourceConfig, plain | {"rules": [{"kind": "odd_names"}]})
        assert read(source) == (["d0", "d2"], [("d1", "rule:odd_names"), ("d3", "rule:odd_names")])
    finally:
        del RULES["odd_names"]
    with pytest.raises(ConfigError, match=r"rules.*no_such"):
        from_dict(SourceConfig, plain | {"rules": [{"kind": "no_such"}]})


# ── a classifier of the user's ───────────────────────────────────────────────────────────────────

JUDGES = """
raise_at_import = None
calls = []

def judge(document):
    calls.append(document.name)
    if document.name == "d1":
        raise ValueError("no")
    if document.name == "d2":
        return "It is about owls."
    return document.name != "d0"
"""


def test_a_recipe_alone_runs_no_code(tmp_path):
    (tmp_path / "judges.py").write_text("raise SystemExit('code was run')")
    source = source_of(tmp_path, MIXED, [Classifier(function=f"{tmp_path}/judges.py:judge")])
    for reading in (survey, lambda source: list(read_source(source))):
        with pytest.raises(ConfigError, match=r"a recipe alone runs no code\. If you trust"):
            reading(source)


@pytest.mark.parametrize("how", ["environment", "call"])
def test_an_allowed_function_is_asked_once(tmp_path, how, monkeypatch):
    module = f"judges_{how}"
    (tmp_path / f"{module}.py").write_text(JUDGES)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"{module}:judge"
    if how == "call":
        allow_classifier(name)
    else:
        monkeypatch.setenv("PARDALIS_CLASSIFIERS", f"other:f, {name}")
    source = source_of(tmp_path, MIXED, [Classifier(function=name)])
    survey(source)
    names, rejections = read(source)
    assert names == [each.name for each in MIXED[3:]]
    assert rejections == [(f"d{n}", "rule:classifier") for n in range(3)]
    reasons = [item.reason for item in read_source(source) if isinstance(item, Rejection)]
    assert reasons == [
        f"{name} removes it.", f"{name} fails at it: ValueError: no.", "It is about owls."
    ]  # fmt: skip
    assert len(__import__(module).calls) == len(MIXED)


def test_a_function_that_is_not_there(monkeypatch):
    monkeypatch.setenv("PARDALIS_CLASSIFIERS", "json:no_such")
    with pytest.raises(ConfigError, match="The module json has no function 'no_such'"):
        Classifier(function="json:no_such").begin()
    with pytest.raises(ConfigError, match="function must read module:function, got 'json'"):
        Classifier(function="json")


def test_rules_survive_a_recipe_file(tmp_path):
    source = source_of(tmp_path, MIXED, [ImageSize(min_side=3), *RULE_LIST])
    assert from_dict(SourceConfig, json.loads(json.dumps(to_dict(source)))) == source
