"""Text as it comes joins to the text of the whole, whatever the pieces are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from pardalis.tokens import TextStream, TextTokenizer

WORDS = ["▁", "a", "▁an", "owl", "▁owl", "\ufffd", "<0x41>x"]


@pytest.fixture(scope="module")
def fallback() -> TextTokenizer:
    """As Llama's: a space begins a word, and bytes are pieces, of which a run is decoded whole."""
    pieces = [*WORDS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return TextTokenizer(tokenizer)


def streamed(tokenizer: TextTokenizer, pieces: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push([piece]) for piece in pieces), stream.end()]


@settings(deadline=None)
@given(st.data())
def test_deltas_join_to_the_whole(text_tokenizer, data):
    pieces = data.draw(st.lists(st.integers(0, text_tokenizer.size - 1), max_size=40))
    assert "".join(streamed(text_tokenizer, pieces)) == text_tokenizer.decode(pieces)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_deltas_of_byte_pieces_join_to_the_whole(fallback, data):
    byte = st.sampled_from([0x41, 0x80, 0xA9, 0xC3, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xFF])
    piece = st.integers(0, len(WORDS) - 1) | byte.map(lambda b: b + len(WORDS))
    pieces = data.draw(st.lists(piece, max_size=20))
    assert "".join(streamed(fallback, pieces)) == fallback.decode(pieces)


@settings(deadline=None)
@given(st.text(max_size=12))
def test_no_character_comes_in_halves(text_tokenizer, text):
    deltas = streamed(text_tokenizer, text_tokenizer.encode(text))
    assert "".join(deltas) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in delta for delta in deltas)


def test_text_comes_at_once(text_tokenizer):
    pieces = text_tokenizer.encode("An owl.")
    assert streamed(text_tokenizer, pieces) == [*(text_tokenizer.decode([p]) for p in pieces), ""]


def test_an_emoji_waits_for_its_last_byte(text_tokenizer):
    pieces = text_tokenizer.encode("🐙")  # never merged: four bytes
    assert streamed(text_tokenizer, pieces)[-2:] == ["🐙", ""]


def test_what_never_became_a_character_comes_at_the_end(text_tokenizer):
    half = text_tokenizer.encode("🐙")[:2]
    assert streamed(text_tokenizer, half) == ["", "", "\ufffd"]


def test_a_new_text_begins_after_the_end(text_tokenizer):
    stream = TextStream(text_tokenizer)
    half = text_tokenizer.encode("🐙")
    assert stream.push(half[:2]) + stream.end() == "\ufffd"
    assert stream.push(half) == "🐙"
