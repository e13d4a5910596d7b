"""Foreign vocabularies: Chameleon's ids, remapping into ranges, and equal tokenization."""

import json
import random
import re

import PIL.Image
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import ChameleonProcessor

import pardalis
from pardalis.codec import Codec
from pardalis.documents import Document, Image, Text
from pardalis.errors import BundleError, GrammarError
from pardalis.interop.model import reorder_ids
from pardalis.interop.tensors import lazy
from pardalis.interop.vocabulary import (
    PLACEHOLDER,
    PLACEHOLDER_AT_META,
    SINGLE_NAMES,
    chameleon_tokenizer,
    from_foreign,
    image_code,
    image_name,
    read_vocabulary,
    to_foreign,
    token_ids,
)
from pardalis.tokens import State, TextTokenizer, Vocabulary, train_text_tokenizer
from pardalis.tokens.grammar import Phase
from pardalis.tokens.vocabulary import SPECIAL
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig, chameleon

# The kinds of a folder: ids in one run or not, and how the tokenizer cuts text.
KINDS = {
    "bytes": {},
    "bytes, scattered ids": {"scattered": True, "num_key_value_heads": 8},
    "sentencepiece": {"text": "sentencepiece"},
    "letters": {"text": "letters", "scattered": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


# ── facts ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "code"),
    [("IMGIMGAZ", 0), ("IMGIMGIBJBZ", 8191), ("IMGIMGBHZ", 17), ("IMGIMGBAAZ", 100)],
)
def test_names_of_image_codes(name, code):
    assert image_name(code) == name
    assert image_code(name) == code


@pytest.mark.parametrize("name", ["IMGIMGZ", "IMGIMGKZ", "IMGIMGA", "imgimgaz", "IMGIMGAZ ", "owl"])
def test_names_that_are_not_image_codes(name):
    assert image_code(name) is None


@given(st.integers(0, 10**9))
def test_names_and_codes_are_one_to_one(code):
    assert image_code(image_name(code)) == code


@pytest.fixture(scope="module")
def released(chameleon_folder) -> tuple[str, Vocabulary]:
    """A tokenizer file whose ids are those of the release, up to the text, and what we read."""
    text = (chameleon_folder() / "tokenizer.json").read_text()
    return text, read_vocabulary(text, 9118, "tokenizer.json")


def test_chameleons_ids(released):
    text, vocabulary = released
    assert (vocabulary.bos_id, vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (
        0, 1, 2, 3,
    )  # fmt: skip
    assert (vocabulary.end_image_id, vocabulary.begin_image_id) == (8196, 8197)
    assert vocabulary.end_turn_id == 8710
    assert vocabulary.image == range(4, 8196)
    assert vocabulary.foreign_ids == range(9118)
    names = token_ids(text, "tokenizer.json")
    assert names["<image>"] == 8711
    assert names["IMGIMGAZ"] == 4
    assert names["IMGIMGIBJBZ"] == 8195
    for name, i in names.items():
        if name.startswith("<reserved"):
            assert i == int(name[9:14]) + 4
            assert i not in vocabulary.text


def test_the_size_of_an_image():
    """512 x 512 pixels are 32 x 32 codes, with begin and end 1,026 tokens."""
    config = chameleon()
    assert (config.resolution, config.grid, config.codes_per_image) == (512, 32, 1024)
    small = ImageTokenizerConfig(
        resolution=512, channels=4, channel_multipliers=(1,) * 5, n_res_blocks=1, norm_groups=2,
        z_channels=4, code_width=4, n_codes=8192, has_decoder=False,
    )  # fmt: skip
    vocabulary = Vocabulary(
        modalities={"image": range(4, 8196), "text": range(8806, 9100)},
        special=SPECIAL | {"end_image": 8196, "begin_image": 8197, "end_turn": 8710},
        foreign_ids=range(9100),
    )  # fmt: skip
    text = TextTokenizer(Tokenizer.from_str(train_text_tokenizer(["a"], 256).to_json()))
    codec = Codec(vocabulary, text, ImageTokenizer(small).eval())
    ids = codec.encode(Document((Image(PIL.Image.radial_gradient("L").resize((60, 40))),))).ids
    bos, *image, eos = ids
    assert (bos, eos) == (0, 2)
    assert len(image) == codec.grammar.tokens_per_image == 1026
    assert (image[0], image[-1]) == (8197, 8196)
    assert all(4 <= i <= 8195 for i in image[1:-1])


# ── ids into ranges ──────────────────────────────────────────────────────────────────────────────


@st.composite
def shuffled(draw) -> tuple[str, dict[str, int], int]:
    """Any vocabulary with Chameleon's names: a tokenizer file, its names, the number of ids."""
    n_codes, n_text, n_reserved, n_nameless = (draw(st.integers(1, 12)) for _ in range(4))
    names = [*SINGLE_NAMES.values(), PLACEHOLDER]
    names += [image_name(code) for code in range(n_codes)]
    names += [f"<reserved{n:05}>" for n in range(n_reserved)]
    names += [f"piece {n}" for n in range(n_text)]
    size = len(names) + n_nameless
    ids = draw(st.permutations(range(size)))[: len(names)]
    if draw(st.booleans()):
        ids.sort()
    placed = dict(zip(names, ids, strict=True))
    added = [
        {"id": placed[name], "content": name, "special": True}
        for name in names
        if draw(st.booleans()) and not name.startswith("piece")
    ]
    content = {"model": {"type": "BPE", "vocab": placed, "merges": []}, "added_tokens": added}
    return json.dumps(content), placed, size


@given(shuffled())
def test_any_order_of_ids_becomes_ranges(case):
    text, names, size = case
    vocabulary = read_vocabulary(text, size, "tokenizer.json")
    foreign, ours = to_foreign(vocabulary), from_foreign(vocabulary)
    assert vocabulary.size == len(foreign) == size
    assert sorted(foreign) == list(range(size))
    assert [ours[i] for i in foreign] == [foreign[i] for i in ours] == list(range(size))

    assert [foreign[i] for i in vocabulary.image] == [
        names[image_name(code)] for code in range(vocabulary.n_codes)
    ]
    pieces = {i for name, i in names.items() if name.startswith("piece")}
    assert [foreign[i] for i in vocabulary.text] == sorted(pieces)
    for single, name in SINGLE_NAMES.items():
        assert foreign[vocabulary.special[single]] == names[name]
    image, text_ids = set(vocabulary.image), set(vocabulary.text)
    special = set(range(size)) - image - text_ids
    assert not image & text_ids
    assert {vocabulary.special[single] for single in SINGLE_NAMES} <= special
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@given(shuffled())
def test_embedding_rows_move_with_their_ids(case):
    text, _, size = case
    vocabulary = read_vocabulary(text, size, "tokenizer.json")
    rows = torch.arange(size)[:, None] * torch.ones(1, 3, dtype=torch.long)
    tensors = {
        name: lazy(rows) for name in ("embedding.weight", "head.weight", "trunk.norm.weight")
    }
    inward = reorder_ids(tensors, to_foreign(vocabulary))
    for name in ("embedding.weight", "head.weight"):
        assert inward[name].read()[:, 0].tolist() == list(to_foreign(vocabulary))
    assert inward["trunk.norm.weight"].read() is rows
    back = reorder_ids(inward, from_foreign(vocabulary))
    assert torch.equal(back["head.weight"].read(), rows)


def test_ids_in_runs_stay_where_they_are(released):
    tensors = {"embedding.weight": lazy(torch.zeros(9118, 1))}
    assert reorder_ids(tensors, to_foreign(released[1])) == tensors


# ── text, as their processor cuts it ─────────────────────────────────────────────────────────────

# Chameleon's names do not occur in it: theirs would take them for tokens.
NAMES = re.compile(r"</?s>|<(pad|unk|image|eoss|racm3:break|reserved\d+)>|IMGIMG[A-J]+Z")
texts = st.text(max_size=12) | st.sampled_from(
    [
        "An owl",
        "naïve 🦉",
        "\tab",
        " spaces  ",
        "\n\n",
        "3 < 4 </b>",
        "fox</",
        "<",
        "▁",
        "日本語",
        "é",
    ]
)
prompts = st.lists(st.none() | texts, min_size=1, max_size=5)


@pytest.fixture(scope="module")
def loaded(chameleon_folder, imported_bundle):
    """Return our codec and their processor of a kind."""

    def load(kind: str) -> tuple[Codec, ChameleonProcessor]:
        if kind not in made:
            codec = pardalis.load(imported_bundle(**KINDS[kind])).codec
            made[kind] = codec, ChameleonProcessor.from_pretrained(chameleon_folder(**KINDS[kind]))
        return made[kind]

    made = {}
    return load


GREY = PIL.Image.new("RGB", (8, 8), "grey")


def our_ids(codec: Codec, parts: list[str | None], role: str | None, placeholder: int) -> list[int]:
    """Return ids of a prompt as they are called there, every code as the placeholder."""
    segments = [Image(GREY, role=role) if part is None else Text(part, role) for part in parts]
    foreign = to_foreign(codec.vocabulary)
    return [
        placeholder if i in codec.vocabulary.image else foreign[i]
        for i in codec.encode_prompt(Document(tuple(segments)))
    ]


@each_kind
def test_interleaved_prompts(kind, loaded, compare):
    codec, processor = loaded(kind)

    @settings(max_examples=25)
    @given(prompts, st.booleans())
    def check(parts, chat):
        # Neighbouring texts are one text there; here each is cut for itself.
        joined: list[str | None] = []
        for part in parts:
            if part is not None and joined and joined[-1] is not None:
                joined[-1] += part
            else:
                joined.append(part)
        assume(not any(part and NAMES.search(part) for part in joined))
        theirs = processor(
            images=[GREY] * joined.count(None) or None,
            text="".join("<image>" if part is None else part for part in joined),
            return_for_text_completion=not chat,
        )["input_ids"][0].tolist()
        ours = our_ids(codec, joined, "user" if chat else None, processor.image_token_id)
        compare(f"Chameleon's processor, {kind}", "ids of prompts", ours, theirs)

    check()


@each_kind
@given(texts)
def test_decoded_text_equals_that_of_their_tokenizer(kind, loaded, text):
    assume(not NAMES.search(text))
    codec, processor = loaded(kind)
    theirs = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded = codec.decode(codec.encode(Document((Text(text),))).ids).text
    assert decoded == processor.tokenizer.decode(theirs, skip_special_tokens=False)
    if "bytes" in kind:
        assert decoded == text


def test_sentencepiece_puts_a_space_before_every_text(loaded):
    """And takes one away: a text that begins with one comes back with it."""
    codec, _ = loaded("sentencepiece")
    pieces = codec.text_tokenizer
    assert pieces.encode("owl") == pieces.encode("\u2581owl".removeprefix("\u2581"))
    for text in ("owl", " owl", "  owl", "\x00\x7f", "日"):
        assert pieces.decode(pieces.encode(text)) == text
    document = Document((Text("An"), Text("owl")))
    assert codec.decode(codec.encode(document).ids).text == "An owl"  # not "Anowl"


def test_a_special_tokens_name_in_a_text_is_text_here_and_a_token_there(loaded):
    codec, processor = loaded("bytes")
    text = "a </s> b <image> c <racm3:break> IMGIMGAZ <reserved08706> d"
    ids = codec.encode(Document((Text(text),))).ids.tolist()
    assert all(i in codec.vocabulary.text for i in ids[1:-1])
    assert codec.decode(ids).text == text
    theirs = processor.tokenizer(text)["input_ids"]
    assert {2, 8711, 8197, 4, 8710} <= set(theirs)


def test_a_prefix_of_a_special_token_is_text(loaded):
    codec, processor = loaded("bytes")
    names = token_ids(codec.text_tokenizer.to_json(), "")
    pieces = [name for name in names if "<" in name and names[name] in codec.vocabulary.text]
    assert "Ġ</" in pieces
    for text in ("</", "</b>", "<p>", "<reserved>", "<images>", "IMGIMG", "<s"):
        theirs = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert codec.encode(Document((Text(text),))).ids[1:-1].tolist() == theirs


# ── what has no piece ────────────────────────────────────────────────────────────────────────────


def test_the_unknown_token_is_read_and_never_written(loaded):
    codec, _ = loaded("letters")
    vocabulary, grammar = codec.vocabulary, codec.grammar
    ids = codec.encode(Document((Text("fox%fox"),))).ids.tolist()
    assert ids.count(vocabulary.unk_id) == 1
    assert ids.index(vocabulary.unk_id) > 1
    grammar.validate(ids)
    assert codec.decode(ids).text == "fox<unk>fox"
    assert codec.render(ids) == "<bos>fox<unk>fox<eos>"

    assert not grammar.allowed_ids()[:, vocabulary.unk_id].any()
    writing = State(Phase.TEXT, budget=9)
    with pytest.raises(GrammarError, match="Found <unk> at position 0"):
        grammar.advance(writing, vocabulary.unk_id)
    assert grammar.advance(State(Phase.TEXT), vocabulary.unk_id).phase is Phase.TEXT
    inside = grammar.state_after([vocabulary.bos_id, vocabulary.begin_image_id])
    with pytest.raises(GrammarError, match="expected an image id"):
        grammar.advance(inside, vocabulary.unk_id)


def test_our_own_vocabulary_has_no_unknown_token(codec):
    assert codec.vocabulary.readable_unk_id is None
    with pytest.raises(GrammarError, match="Found <unk>"):
        codec.grammar.state_after([codec.vocabulary.bos_id, codec.vocabulary.unk_id])


def test_what_merges_to_the_name_of_a_special_token_is_text(chameleon_folder, tmp_path):
    content = json.loads((chameleon_folder(**KINDS["letters"]) / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab |= {">": vocab.get(">", len(vocab)), "<s": len(vocab) + 1}
    content["model"]["merges"] = [["<", "s"], ["<s", ">"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    size = max(vocab.values()) + 1
    tokenizer = TextTokenizer.load(path, read_vocabulary(path.read_text(), size, ""))
    ids = tokenizer.encode("a <s>")
    assert [tokenizer.name_of(tokenizer.text_tokens[i]) for i in ids][-2:] == ["<s", ">"]


# ── going out ────────────────────────────────────────────────────────────────────────────────────


@each_kind
def test_an_imported_tokenizer_is_written_as_it_came(kind, loaded, chameleon_folder):
    came = json.loads((chameleon_folder(**KINDS[kind]) / "tokenizer.json").read_text())
    codec, _ = loaded(kind)
    went = json.loads(
        chameleon_tokenizer(
            codec.vocabulary, codec.text_tokenizer, placeholder=PLACEHOLDER, adds_bos=True
        )
    )
    assert went.pop("added_tokens") == came.pop("added_tokens")
    assert went["model"].pop("vocab") == came["model"].pop("vocab")
    # The library writes the same template in another form when it has once been read.
    went.pop("post_processor"), came.pop("post_processor")
    assert went == came


@pytest.mark.parametrize("kind", ["bytes", "bytes, scattered ids"])
def test_the_placeholder_has_another_name_in_the_release(kind, loaded):
    codec, _ = loaded(kind)
    arguments = codec.vocabulary, codec.text_tokenizer
    text = chameleon_tokenizer(*arguments, placeholder=PLACEHOLDER_AT_META, adds_bos=False)
    here = token_ids(codec.text_tokenizer.to_json(), "")
    there = token_ids(text, "")
    assert there.pop("<reserved08707>") == here.pop("<image>")
    assert there == here
    assert json.loads(text)["post_processor"] is None
    assert read_vocabulary(text, codec.vocabulary.size, "") == codec.vocabulary
    assert Tokenizer.from_str(text).encode("An owl").ids == [
        to_foreign(codec.vocabulary)[i] for i in codec.encode(Document((Text("An owl"),))).ids[1:-1]
    ]


def test_our_own_vocabulary_gets_chameleons_names(codec):
    text = chameleon_tokenizer(
        codec.vocabulary, codec.text_tokenizer, placeholder=PLACEHOLDER, adds_bos=True
    )
    names, vocabulary = token_ids(text, ""), codec.vocabulary
    assert sorted(names.values()) == list(range(vocabulary.size))
    assert names["<s>"] == vocabulary.bos_id
    assert names["<reserved08706>"] == vocabulary.end_turn_id
    assert names["<image>"] == 7
    assert names["IMGIMGBHZ"] == vocabulary.image[17]
    document = Document((Text("An owl </s> 🦉"),))
    tokenizer = Tokenizer.from_str(text)
    assert (
        tokenizer.encode("An owl </b> 🦉").ids
        == codec.encode(Document((Text("An owl </b> 🦉"),))).ids[:-1].tolist()
    )
    assert tokenizer.decode(codec.encode(document).ids.tolist(), skip_special_tokens=False) == (
        "<s>An owl </s> 🦉</s>"
    )
    again = read_vocabulary(text, vocabulary.size, "")
    assert again.to_dict() == vocabulary.to_dict() | {"foreign_ids": vocabulary.size}


@pytest.mark.parametrize("name", ["<s>", "<image>", "IMGIMGAZ", "IMGIMG", "<reserved00001>"])
def test_a_token_of_ours_named_like_a_special_token_is_refused(name):
    """Training on text that often contains a name merges it into one token."""
    content = json.loads(train_text_tokenizer(["owl"], 260).to_json())
    content["model"]["vocab"][name] = len(content["model"]["vocab"])
    tokenizer = TextTokenizer(Tokenizer.from_str(json.dumps(content)))
    vocabulary = Vocabulary.build(n_codes=3, n_text=tokenizer.size)
    with pytest.raises(BundleError, match=f"a token '{name}', .* on text without it"):
        chameleon_tokenizer(vocabulary, tokenizer, placeholder=PLACEHOLDER, adds_bos=True)


def test_a_vocabulary_without_a_free_id_is_refused(loaded):
    codec, _ = loaded("bytes")
    content = json.loads(codec.text_tokenizer.to_json())
    del content["model"]["vocab"]["<image>"]
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<image>"]
    content["model"]["vocab"] |= {f"filler {i}": i for i in (8711, *range(9112, 9118))}
    text = TextTokenizer(Tokenizer.from_str(json.dumps(content)))
    with pytest.raises(
        BundleError, match=r"No id of the vocabulary is free for <image>.*; export it as a bundle"
    ):
        chameleon_tokenizer(codec.vocabulary, text, placeholder=PLACEHOLDER, adds_bos=True)


# ── files that are no such vocabulary ────────────────────────────────────────────────────────────


def small_tokenizer(n_codes: int = 20) -> dict[str, int]:
    names = [*SINGLE_NAMES.values(), *map(image_name, range(n_codes)), "owl", "fox"]
    random.Random(0).shuffle(names)
    return {name: i for i, name in enumerate(names)}


def as_file(vocab) -> str:
    return json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []})


@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        (["<s>", "<eoss>"], {}, "no <s>; no <eoss>. Use the tokenizer that belongs"),
        (["IMGIMGHZ", "<pad>"], {}, "no <pad>; no IMGIMGHZ among its 19 image tokens"),
        ([image_name(c) for c in range(20)], {}, "no image token (IMGIMG...Z)"),
        (["owl", "fox"], {}, "no text token"),
        ([], {"cat": 99}, "cat with id 99, but the model has 29 ids"),
        ([], {"IMGIMGJJJJJJJJJJJJZ": 29}, "no IMGIMGCAZ among its 21 image tokens; IMGIMGJJJ"),
        (["<unk>", "owl"], {"cat": 99}, "no <unk>; cat with id 99"),
        ([], {"cat": 5}, "gives the id 5 to two tokens"),
        ([], {"cat": -1}, "cat with id -1"),
        ([], {"cat": "five"}, "is not a tokenizer that can be read"),
    ],
)
def test_all_errors_of_a_vocabulary(removed, added, message):
    vocab = {name: i for name, i in small_tokenizer().items() if name not in removed} | added
    with pytest.raises(BundleError) as caught:
        read_vocabulary(as_file(vocab), 29, "some/tokenizer.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("some/tokenizer.json ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"model": {}}',
        '{"model": {"vocab": {"a": 1}}}',
        '{"model": {"type": "Unigram", "vocab": [["a", -1.5]]}, "added_tokens": []}',
    ],
)
def test_a_file_that_is_no_tokenizer(text):
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer that can be read"):
        read_vocabulary(text, 10, "tokenizer.json")
