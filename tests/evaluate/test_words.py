import sys

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageDraw

from pardalis.errors import ConfigError
from pardalis.evaluate.words import line_reader, n_kept, words_of

lines = st.lists(st.text(alphabet="ab cÄ7-", max_size=12), max_size=4)


@given(lines)
def test_what_comes_back_unchanged_is_kept_whole(some):
    words = words_of(some)
    assert n_kept(words, some) == len(words)


@given(lines)
def test_spaces_and_case_do_not_count(some):
    glued = ["".join(line.split()).upper() for line in some]
    words = words_of([line.replace(" ", "") for line in some])
    assert n_kept(words, [" ".join(line) for line in glued]) == len(words)


@given(lines, lines)
def test_no_more_is_kept_than_was_there(some, others):
    assert 0 <= n_kept(words_of(some), others) <= len(words_of(some))


@pytest.mark.parametrize(
    ("words", "lines", "kept"),
    [
        (["owl", "owl"], ["one owl"], 1),  # each place once
        (["in", "inn"], ["inn"], 1),
        (["inn", "in"], ["inn in"], 2),
        (["owl"], ["0wl"], 0),
        (["snowy", "owl"], ["snowyowl"], 2),
        (["snowyowl"], ["snowy owl"], 1),
        (["snowyowl"], ["snowy", "owl"], 0),  # a word does not go over lines
        (["7c", "cä"], ["7 c - ä", "c ä"], 2),  # nor over a sign
        ([], ["owl"], 0),
    ],
)
def test_kept_by_hand(words, lines, kept):
    assert n_kept(words, lines) == kept


def test_print_is_read_and_a_blank_image_is_not():
    read = line_reader()
    page = PIL.Image.new("RGB", (256, 96), "white")
    assert read(page) == []
    ImageDraw.Draw(page).text((10, 30), "Snowy OWL", fill="black", font_size=32)
    assert n_kept(["snowy", "owl"], read(page)) == 2


def test_a_missing_reader_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(
        ConfigError, match=r"Reading words in images needs the package .*pardalis\[ocr\]"
    ):
        line_reader()
