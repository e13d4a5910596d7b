import math

import pytest

from pardalis.evaluate.metrics.text_in_image import asked_words, word_recall


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('A sign that says "STOP here"', ["stop", "here"]),
        ("a board with 'Open' and “closed now”", ["open", "closed", "now"]),
        ("„Halt“ and «non»", ["halt", "non"]),
        ("the dog's bone and the cats' toy", []),
        ('the letter "A"', []),
        ("no words", []),
    ],
)
def test_words_that_are_asked_for(text, words):
    assert asked_words(text) == words


def test_the_recall_of_words():
    found = word_recall('A sign: "Snowy owl, owl"', ["SNOWYOWL", "tree"])
    assert found == (2, 3)
    assert found.recall == pytest.approx(2 / 3)
    assert math.isnan(word_recall("an owl", ["owl"]).recall)
