import sys

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageDraw

from pardalis.errors import ConfigError
from pardalis.evaluate.ocr import load_ocr, n_recalled, words_of

lines = st.lists(st.text(alphabet="ab cÄ7-", max_size=12), max_size=4)


@given(lines)
def test_unchanged_text_is_recalled_completely(some):
    words = words_of(some)
    assert n_recalled(words, some) == len(words)


@given(lines)
def test_spaces_and_case_are_ignored(some):
    glued = ["".join(line.split()).upper() for line in some]
    words = words_of([line.replace(" ", "") for line in some])
    assert n_recalled(words, [" ".join(line) for line in glued]) == len(words)


@given(lines, lines)
def test_recall_is_bounded(some, others):
    assert 0 <= n_recalled(words_of(some), others) <= len(words_of(some))


@pytest.mark.parametrize(
    ("words", "lines", "recalled"),
    [
        (["owl", "owl"], ["one owl"], 1),  # each occurrence once
        (["in", "inn"], ["inn"], 1),
        (["inn", "in"], ["inn in"], 2),
        (["owl"], ["0wl"], 0),
        (["snowy", "owl"], ["snowyowl"], 2),
        (["snowyowl"], ["snowy owl"], 1),
        (["snowyowl"], ["snowy", "owl"], 0),  # a word does not span lines
        (["7c", "cä"], ["7 c - ä", "c ä"], 2),  # nor punctuation
        ([], ["owl"], 0),
    ],
)
def test_recall_of_examples(words, lines, recalled):
    assert n_recalled(words, lines) == recalled


def test_printed_text_is_read():
    read = load_ocr()
    page = PIL.Image.new("RGB", (256, 96), "white")
    assert read(page) == []
    ImageDraw.Draw(page).text((10, 30), "Snowy OWL", fill="black", font_size=32)
    assert n_recalled(["snowy", "owl"], read(page)) == 2


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(
        ConfigError, match=r"Reading words in images needs the package .*pardalis\[ocr\]"
    ):
        load_ocr()
