import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.errors import BundleError, ConfigError
from pardalis.tokens import TextTokenizer, train_text_tokenizer

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


def test_too_few_pieces():
    with pytest.raises(ConfigError, match="at least 256 pieces, got 100"):
        train_text_tokenizer(["a"], 100)
