"""Documents to ids and back, with a real (untrained) image tokenizer."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.codec import Codec
from pardalis.documents import Document, Image, Text
from pardalis.errors import DataError, GrammarError
from pardalis.tokens import Vocabulary
from pardalis.tokens.vocabulary import SPECIAL
from pardalis.vq import to_square


def image(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))


def test_the_form_of_a_document(codec: Codec):
    ids = codec.vocabulary
    document = Document((Text("An owl"), Image(image(0)), Text("sat.")))
    encoded = codec.encode(document).ids.tolist()
    codes = codec.image_tokenizer.codes_of([image(0)])[0].tolist()
    assert encoded == [
        ids.bos_id,
        *[ids.text.start + p for p in codec.text_tokenizer.encode("An owl")],
        ids.begin_image_id,
        *[ids.image.start + c for c in codes],
        ids.end_image_id,
        *[ids.text.start + p for p in codec.text_tokenizer.encode("sat.")],
        ids.eos_id,
    ]
    assert len(codes) == codec.grammar.codes_per_image == 4
    codec.grammar.validate(encoded)


parts_of_a_document = st.lists(
    st.one_of(st.text(min_size=1, max_size=20), st.integers(0, 9)), max_size=5
)


def document_of(parts: list[str | int]) -> Document:
    """Return a document of texts, and of images by their seeds."""
    segments = (Text(p) if isinstance(p, str) else Image(image(p)) for p in parts)
    return Document(tuple(segments), name="d")


@settings(deadline=None)  # the network's first call takes long on a busy machine
@given(parts_of_a_document)
def test_ids_survive_the_round_trip(codec: Codec, parts):
    """Text comes back exactly, images as their codes decode, and encoding is always valid."""
    document = document_of(parts)
    encoded = codec.encode(document).ids.tolist()
    codec.grammar.validate(encoded)
    decoded = codec.decode(encoded, name="d")
    assert decoded.name == "d"
    assert decoded.text == document.text
    assert len(decoded.images) == len(document.images)
    for was, came in zip(document.images, decoded.images, strict=True):
        codes = codec.image_tokenizer.codes_of([was.source])
        expected = codec.image_tokenizer.images_of(codes)[0]
        assert np.array_equal(np.asarray(came.source), np.asarray(expected))


def test_turns_become_end_turn_and_come_back(codec: Codec):
    document = Document(
        (
            Text("Draw an owl.", role="user"),
            Image(image(1), role="assistant"),
            Text("Done.", role="assistant"),
        )
    )
    encoded = codec.encode(document).ids.tolist()
    assert encoded.count(codec.vocabulary.end_turn_id) == 1
    assert [segment.role for segment in codec.decode(encoded).segments] == [
        "user",
        "assistant",
        "assistant",
    ]


roles = st.sampled_from(["system", "user", "assistant"])
conversations = st.lists(
    st.tuples(roles, st.one_of(st.text(min_size=1, max_size=8), st.integers(0, 3))), min_size=1
)


def conversation(parts: list[tuple[str, str | int]]) -> Document:
    segments = (
        Text(part, role=role) if isinstance(part, str) else Image(image(part), role=role)
        for role, part in parts
    )
    return Document(tuple(segments))


def turns_of(document: Document) -> list[tuple[str | None, list[str | None]]]:
    """Return the role of each turn, its texts joined and None for each image."""
    turns = []
    for role, group in groupby(document.segments, key=lambda segment: segment.role):
        texts = []
        for segment in group:
            if isinstance(segment, Image):
                texts.append(None)
            elif texts and texts[-1] is not None:
                texts[-1] += segment.text
            else:
                texts.append(segment.text)
        turns.append((role, texts))
    return turns


@settings(deadline=None, max_examples=50)
@given(conversations)
def test_every_conversation_survives(codec: Codec, foreign_codec: Codec, parts):
    document = conversation(parts)
    has_role = {role for role, _ in parts} != {"user"}  # no end_turn stands in one turn of a user
    for some in (codec, foreign_codec):
        ids = some.encode(document).ids
        some.grammar.validate(ids)
        expected = turns_of(document)
        assert turns_of(some.decode(ids)) == (expected if has_role else [(None, expected[0][1])])


U, A, S = ("user", "u"), ("assistant", "a"), ("system", "s")


@pytest.mark.parametrize(
    ("parts", "form"),
    [
        ([U, A, U, A], "u|a|u|a"),
        ([S, U, A], "s||u|a"),
        ([S, A, U], "s|||a|u"),
        ([A, U], "|a|u"),
        ([U, S, A], "u|s|||a"),
        ([U, A, S], "u|a|s||"),
        ([S, ("user", ""), A], "s|||a"),
        ([("system", ""), U, A], "u|a"),
        ([(None, "n"), U, (None, "n"), S, (None, "n")], "n|u|n|s|n"),
    ],
)
def test_the_form_of_turns(codec: Codec, parts, form):
    line = codec.render(codec.encode(conversation(parts)).ids)
    assert line.replace("<end_turn>", "|") == f"<bos>{form}<eos>"


@pytest.mark.parametrize(
    ("parts", "form"), [([U], "u|"), ([S, U], "s||u|"), ([S], "s|||"), ([U, A, U], "u|a|u|")]
)
def test_after_a_prompt_comes_the_assistant(codec: Codec, parts, form):
    prompt = codec.encode_prompt(conversation(parts))
    assert codec.render(prompt).replace("<end_turn>", "|") == f"<bos>{form}"
    completion = [codec.vocabulary.text_id(p) for p in codec.text_tokenizer.encode("yes")]
    assert turns_of(codec.decode(prompt)) == turns_of(conversation(parts))
    assert turns_of(codec.decode(prompt + completion))[-1] == ("assistant", ["yes"])


def test_a_prompt_has_no_eos_and_a_conversation_hands_over_the_turn(codec: Codec):
    plain = codec.encode_prompt(Document((Text("An owl"),)))
    assert plain == codec.encode(Document((Text("An owl"),))).ids[:-1].tolist()
    asked = codec.encode_prompt(Document((Text("An owl?", role="user"),)))
    assert asked[-1] == codec.vocabulary.end_turn_id
    assert codec.encode_prompt(Document(())) == [codec.vocabulary.bos_id]


@pytest.mark.parametrize("role", ["system", "user", "assistant", None])
def test_only_images_of_a_prompt_are_padded(codec: Codec, role):
    wide = PIL.Image.fromarray(np.random.default_rng(3).integers(0, 256, (16, 40, 3), np.uint8))
    document = Document((Image(wide, role=role),))
    padding = Codec(codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer, "pad")
    fit = "pad" if role in ("system", "user") else "crop"
    square_ = PIL.Image.fromarray(to_square(wide, 16, image_fit=fit))
    (codes,) = codec.image_tokenizer.codes_of([square_]).tolist()
    assert padding.grammar.codes(padding.encode(document).ids) == codes
    assert (padding.encode(document) == codec.encode(document)) == (fit == "crop")


def test_the_fingerprint_depends_on_the_fit_only_where_it_is_padded(codec: Codec):
    parts = (codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    assert Codec(*parts, "crop").fingerprint == codec.fingerprint
    assert Codec(*parts, "pad").fingerprint != codec.fingerprint
    assert Codec.of(codec.text_tokenizer, codec.image_tokenizer, "pad").image_fit == "pad"


def test_many_documents_equal_one_by_one_and_a_bad_one_stands_alone(codec: Codec, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    good = [Document((Image(image(n)), Text(f"number {n}"))) for n in range(3)]
    bad = Document((Image(image(7)), Image(tmp_path / "broken.png")))
    together = codec.encode_many([good[0], bad, good[1], good[2]])
    assert isinstance(together[1], DataError)
    assert "broken.png" in str(together[1])
    assert [together[0], together[2], together[3]] == [codec.encode(document) for document in good]
    with pytest.raises(DataError, match=r"broken\.png"):
        codec.encode(bad)


@pytest.mark.parametrize("n_codes", [0, 1, 3])
def test_an_unfinished_image_repeats_its_first_code(codec: Codec, n_codes):
    ids = codec.vocabulary
    start = [ids.bos_id, ids.begin_image_id]
    cut = codec.decode([*start, *range(ids.image.start + 5, ids.image.start + 5 + n_codes)])
    codes = [*range(5, 5 + n_codes), *[5 if n_codes else 0] * (4 - n_codes)]
    whole = codec.decode([*start, *[ids.image.start + c for c in codes], ids.end_image_id])
    assert np.array_equal(np.asarray(cut.images[0].source), np.asarray(whole.images[0].source))


def test_malformed_ids_are_refused(codec: Codec):
    with pytest.raises(GrammarError, match="expected <bos>"):
        codec.decode([codec.vocabulary.text.start])


def test_the_fingerprint_follows_the_weights(codec: Codec):
    again = Codec(codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    assert again.fingerprint == codec.fingerprint
    weight = codec.image_tokenizer.quantize.embedding.weight
    before = weight[0, 0].item()
    try:
        weight.data[0, 0] += 1e-3
        assert (
            Codec(codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer).fingerprint
            != codec.fingerprint
        )
    finally:
        weight.data[0, 0] = before


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def weights_line(codec: Codec, *segments: Text | Image) -> str:
    """Return a document with the weight of each token in front of its name."""
    encoded = codec.encode(Document(segments))
    assert encoded.ids.shape == encoded.weights.shape
    return " ".join(
        f"{weight:g}{codec.render([int(token_id)])}"
        for token_id, weight in zip(encoded.ids, encoded.weights, strict=True)
    )


def test_all_weights_are_1_by_default(codec: Codec):
    encoded = codec.encode(document_of(["An owl", 3, "sat."]))
    assert (encoded.weights == 1).all() and not encoded.is_weighted


def test_tokens_have_the_weight_of_their_segment(codec: Codec):
    line = weights_line(codec, Text("q", weight=0.0), Image(image(1), weight=2.0), Text("a"))
    codes = " ".join(["2[1 codes]"] * 4)
    assert line == f"0<bos> 0q 2<begin_image> {codes} 2<end_image> 1a 1<eos>"
    assert weights_line(codec, Text("a"), Text("q", weight=0.5)) == "1<bos> 1a 0.5q 0.5<eos>"


@pytest.mark.parametrize(
    ("roles_", "line"),
    [
        ("ua", "0<bos> 0u 0<end_turn> 1a 1<eos>"),
        ("uaua", "0<bos> 0u 0<end_turn> 1a 1<end_turn> 0u 0<end_turn> 1a 1<eos>"),
        ("sa", "0<bos> 0s 0<end_turn> 0<end_turn> 0<end_turn> 1a 1<eos>"),
        ("au", "1<bos> 1<end_turn> 1a 1<end_turn> 0u 0<eos>"),
        ("uas", "0<bos> 0u 0<end_turn> 1a 1<end_turn> 0s 0<end_turn> 0<end_turn> 0<eos>"),
    ],
)
def test_an_end_turn_belongs_to_the_segment_before_it(codec: Codec, roles_, line):
    named = {"u": "user", "a": "assistant", "s": "system"}
    segments = [Text(r, named[r], weight=1.0 if r == "a" else 0.0) for r in roles_]
    assert weights_line(codec, *segments) == line


def test_a_document_is_shown_with_a_line_for_each_weight(codec: Codec):
    document = Document((Text("An owl?", "user", 0.0), Text("yes", "assistant"), Image(image(1))))
    assert codec.render_weighted(codec.encode(document)) == (
        "[weight 0] <bos>An owl?<end_turn>\n"
        "[weight 1] yes<end_turn><begin_image>[4 codes]<end_image><eos>"
    )
    plain = codec.encode(document_of(["An owl"]))
    assert codec.render_weighted(plain) == "<bos>An owl<eos>"


@settings(deadline=None, max_examples=30)
@given(conversations, st.data())
def test_weights_do_not_change_ids(codec: Codec, parts, data):
    plain = conversation(parts)
    weighted = replace(
        plain,
        segments=tuple(
            replace(s, weight=data.draw(st.sampled_from([0.0, 0.5, 1.0]))) for s in plain.segments
        ),
    )
    encoded, expected = codec.encode(weighted), codec.encode(plain)
    assert (encoded.ids == expected.ids).all()
    assert set(encoded.weights.tolist()) <= {s.weight for s in weighted.segments}


# ── an imported vocabulary ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def foreign_codec(codec: Codec) -> Codec:
    """The same tokenizers with text before images, and single ids between and behind them."""
    n_text, n_codes = codec.text_tokenizer.size, codec.vocabulary.n_codes
    text = range(4, 4 + n_text)
    image = range(text.stop + 2, text.stop + 2 + n_codes)
    size = image.stop + 3  # two ids that stand for nothing
    # In its own file text is numbered from 0, which must not matter here.
    foreign_ids = (*range(n_text, n_text + 4), *range(n_text), *range(n_text + 4, size))
    vocabulary = Vocabulary(
        modalities={"image": image, "text": text},
        special=SPECIAL
        | {"end_image": text.stop, "begin_image": text.stop + 1, "end_turn": image.stop},
        foreign_ids=foreign_ids,
    )  # fmt: skip
    return Codec(vocabulary, codec.text_tokenizer, codec.image_tokenizer)


@settings(max_examples=30, deadline=None)
@given(parts_of_a_document)
def test_ids_of_another_layout_say_the_same(codec: Codec, foreign_codec: Codec, parts):
    document = document_of(parts)
    ids = foreign_codec.encode(document).ids.tolist()
    plain = codec.encode(document).ids.tolist()
    foreign_codec.grammar.validate(ids)
    ours, theirs = codec.decode(plain), foreign_codec.decode(ids)
    assert theirs.text == ours.text
    assert foreign_codec.render(ids) == codec.render(plain)
    names = [foreign_codec.vocabulary.name_of(i) for i in ids]
    assert names == [codec.vocabulary.name_of(i) for i in plain]


def test_the_fingerprint_follows_the_foreign_ids(foreign_codec: Codec):
    """The same ids with another meaning in their file would be other text."""
    unchanged = range(foreign_codec.vocabulary.size)
    other = replace(foreign_codec.vocabulary, foreign_ids=unchanged)
    assert (
        Codec(other, foreign_codec.text_tokenizer, foreign_codec.image_tokenizer).fingerprint
        != foreign_codec.fingerprint
    )


def test_ids_that_stand_for_nothing_are_refused(foreign_codec: Codec):
    last = foreign_codec.vocabulary.size - 1
    with pytest.raises(GrammarError, match=f"Found <unused {last}> at position 1"):
        foreign_codec.decode([0, last])
