import json

import pytest
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
