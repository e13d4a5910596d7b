import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.tokens import TextTokenizer, Vocabulary, train_text_tokenizer

TOKENIZER = train_text_tokenizer(["An owl sat on the old oak. The owl."] * 3, 280)


@given(st.text())
def test_any_text_survives_the_round_trip(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_merges_shorten_what_was_seen():
    assert len(TOKENIZER.encode(" owl")) < len(" owl")
    assert len(TOKENIZER.encode("zzzz")) == 4


def test_training_is_deterministic():
    again = train_text_tokenizer(["An owl sat on the old oak. The owl."] * 3, 280)
    assert again.to_json() == TOKENIZER.to_json()


def test_a_cut_character_becomes_a_replacement_character():
    assert "\ufffd" in TOKENIZER.decode(TOKENIZER.encode("🦉")[:-1])


def test_survives_a_file(tmp_path):
    TOKENIZER.save(tmp_path / "t.json")
    loaded = TextTokenizer.load(tmp_path / "t.json")
    assert loaded.encode("An owl, naïve 🦉") == TOKENIZER.encode("An owl, naïve 🦉")
    assert loaded.size == TOKENIZER.size


def test_a_missing_file(tmp_path):
    with pytest.raises(BundleError, match="No text tokenizer"):
        TextTokenizer.load(tmp_path / "t.json")


def test_a_broken_file(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(BundleError, match="is not a text tokenizer"):
        TextTokenizer.load(tmp_path / "t.json")


def test_too_few_tokens():
    with pytest.raises(ConfigError, match="at least 256 tokens, got 100"):
        train_text_tokenizer(["a"], 100)


# ── an imported tokenizer, whose file numbers more than text ─────────────────────────────────────


def imported(pieces: list[str], special: list[str]) -> TextTokenizer:
    """A tokenizer of single letters, numbered from the back; its other tokens come first."""
    vocab = {name: i for i, name in enumerate([*special, *reversed(pieces)])}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_str(json.dumps({"model": model, "decoder": {"type": "Fuse"}}))
    tokenizer.add_special_tokens(special)
    return TextTokenizer(tokenizer, [vocab[piece] for piece in pieces], vocab["<unk>"])


def test_text_tokens_are_numbered_as_they_are_given():
    tokenizer = imported(["o", "w", "l"], ["<s>", "<unk>"])
    assert tokenizer.text_tokens == [4, 3, 2]
    assert tokenizer.size == 3
    assert tokenizer.encode("owl") == [0, 1, 2]
    assert tokenizer.decode([2, 1, 0]) == "lwo"


def test_what_has_no_piece_is_numbered_last():
    tokenizer = imported(["o", "w", "l"], ["<s>", "<unk>"])
    assert tokenizer.encode("fowl") == [3, 0, 1, 2]
    assert tokenizer.decode([3, 0]) == "<unk>o"
    assert tokenizer.decode([99, 0]) == "o"  # an id that no text has


def test_what_is_no_text_is_refused():
    tokenizer = imported(["o", "w"], ["<s>", "<unk>"])
    narrow = TextTokenizer(Tokenizer.from_str(tokenizer.to_json()), [3], 1)
    with pytest.raises(DataError, match="encodes 'wow' with the special token 'w', which is not a"):
        narrow.encode("wow")


def test_an_imported_one_is_loaded_with_its_vocabulary(tmp_path):
    tokenizer = imported(["o", "w", "l"], ["<s>", "<unk>"])
    tokenizer.save(tmp_path / "t.json")
    vocabulary = Vocabulary(
        modalities={"image": range(7, 8), "text": range(8, 11)},
        foreign_ids=(0, 5, 6, 1, 7, 8, 9, 10, 4, 3, 2),
    )
    loaded = TextTokenizer.load(tmp_path / "t.json", vocabulary)
    assert loaded.encode("<s>owl") == tokenizer.encode("<s>owl")
    assert loaded.encode("owl") == [0, 1, 2]
    assert loaded.size == 3
    ours = TextTokenizer.load(tmp_path / "t.json", Vocabulary.build(n_codes=1, n_text=5))
    assert ours.encode("owl") == [4, 3, 2]


def test_a_length_that_was_once_saved_with_a_tokenizer_does_not_count():
    """Others save the truncation and padding of the last call in tokenizer.json."""
    file = Tokenizer.from_str(TOKENIZER.to_json())
    file.enable_truncation(max_length=3)
    file.enable_padding(length=8)
    text = "An owl sat on the old oak."
    assert TextTokenizer(file).encode(text) == TOKENIZER.encode(text)


# ── tokenizers of other people ───────────────────────────────────────────────────────────────────

LENGTHENING = {"type": "Replace", "pattern": {"String": "l"}, "content": "l" * 40}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TWICE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
    "pair": [],
    "special_tokens": {},
}


def changed(tokenizer: TextTokenizer, part: str, value: object) -> str:
    return json.dumps({**json.loads(tokenizer.to_json()), part: value})


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [LENGTHENING] * 8}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}),
        ("normalizer", {"type": "Prepend", "prepend": "l" * 10_000}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 10_000}),
        ("normalizer", {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "\ufdfa"},
        ] * 9}),
        ("normalizer", {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": "(?=l)"}, "content": "l"}] * 30}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTES] * 40}),
        ("post_processor", TWICE | {"single": TWICE["single"] * 1000}),
        ("decoder", {"type": "Sequence", "decoders": [LENGTHENING] * 8}),
    ],
)  # fmt: skip
def test_a_tokenizer_that_lengthens_text_without_end_is_refused(text_tokenizer, part, value):
    with pytest.raises(BundleError, match="may lengthen a text more than"):
        TextTokenizer.from_json(changed(text_tokenizer, part, value))


def test_the_steps_of_published_tokenizers_are_taken(text_tokenizer):
    clip = [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"}]  # fmt: skip
    llama = [{"type": "Prepend", "prepend": "▁"},
             {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]  # fmt: skip
    for steps in (clip, llama):
        value = {"type": "Sequence", "normalizers": steps}
        TextTokenizer.from_json(changed(text_tokenizer, "normalizer", value)).encode("An owl")


def test_a_token_longer_than_any_text_is_refused(text_tokenizer):
    token = {"id": text_tokenizer.size, "content": "x" * 1001, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False, "special": True}  # fmt: skip
    with pytest.raises(BundleError, match="it has a token of 1,001 characters"):
        TextTokenizer.from_json(changed(text_tokenizer, "added_tokens", [token]))


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("pre_tokenizer", SPLIT | {"pattern": {"Regex": "(a+)+$"}}),
        ("model", {"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "c"}),
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
    ],
)
def test_a_text_at_which_the_library_fails_is_refused(text_tokenizer, part, value):
    tokenizer = TextTokenizer.from_json(changed(text_tokenizer, part, value))
    with pytest.raises(DataError, match=r"The text tokenizer fails at 'a+b' \(.*\); use the"):
        tokenizer.encode("a" * 40 + "b")


def test_dropout_of_training_is_off(text_tokenizer):
    model = json.loads(text_tokenizer.to_json())["model"] | {"dropout": 0.9}
    tokenizer = TextTokenizer.from_json(changed(text_tokenizer, "model", model))
    text = "An owl sat on the old oak."
    assert [tokenizer.encode(text) for _ in range(9)] == [text_tokenizer.encode(text)] * 9


# ── how much text a token stands for ─────────────────────────────────────────────────────────────


def shortening(**steps) -> TextTokenizer:
    """The tokenizer of this file with other steps before its model."""
    content = json.loads(TOKENIZER.to_json())
    return TextTokenizer.from_json(json.dumps(content | steps))


NFKC = shortening(normalizer={"type": "NFKC"})
DROPPING = shortening(normalizer={"type": "Strip", "strip_left": True, "strip_right": True})


@given(
    st.text() | st.text("ＡＢ𝐀가 \u1100\u1161\u0301ﷺ") | st.lists(st.sampled_from(["owl", " owl"]))
)
def test_no_token_stands_for_more_bytes(text):
    text = "".join(text)
    for tokenizer in (TOKENIZER, NFKC):
        assert len(text.encode()) <= tokenizer.most_bytes * len(tokenizer.encode(text))


def test_the_most_bytes_of_a_token():
    names = list(json.loads(TOKENIZER.to_json())["model"]["vocab"])
    assert TOKENIZER.most_bytes == max(4, *map(len, names)) < 16
    assert NFKC.most_bytes == 4 * TOKENIZER.most_bytes
    assert DROPPING.most_bytes == 1000
    llama = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "▁▁": 257},
            [("▁", "▁")], byte_fallback=True, fuse_unk=True, unk_token="▁",
        )
    )  # fmt: skip
    assert TextTokenizer(llama).most_bytes == 6
    llama.model.byte_fallback = False  # one token for any number of unknown characters
    assert TextTokenizer(llama).most_bytes == 1000
