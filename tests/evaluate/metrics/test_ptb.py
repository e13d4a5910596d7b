"""The words of captions are those of Stanford's PTBTokenizer 3.4.1, as recorded here."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.evaluate.metrics.ptb import caption_words

# Captions, and what pycocoevalcap 1.2 makes of them with Java.
CAPTIONS = [
    ("A man riding a wave on top of a surfboard.", "a man riding a wave on top of a surfboard"),
    (
        "Two dogs are playing with a frisbee in the grass .",
        "two dogs are playing with a frisbee in the grass",
    ),
    (
        "A black-and-white photo of a man's t-shirt, an x-ray and a 3-year-old.",
        "a black-and-white photo of a man 's t-shirt an x-ray and a 3-year-old",
    ),
    (
        "The kids can't, won't & shouldn't play (with the ball) at the theatre.",
        "the kids ca n't wo n't & should n't play -lrb- with the ball -rrb- at the theatre",
    ),
    ('A sign that says "STOP" in red letters', "a sign that says stop in red letters"),
    (
        "It's 5:30 p.m. in the U.S. and Mr. Smith lives on St. Paul St.",
        "it 's 5:30 p.m. in the u.s. and mr. smith lives on st. paul st.",
    ),
    (
        "A woman, who is smiling, is holding a frisbee; behind her: a dog!",
        "a woman who is smiling is holding a frisbee behind her a dog",
    ),
    (
        "There are 1,000 people, 3.5 inches of snow and 50% off for $5.00",
        "there are 1,000 people 3.5 inches of snow and 50 % off for $ 5.00",
    ),
    (
        "a man in a suit & tie is talking on a cell phone",
        "a man in a suit & tie is talking on a cell phone",
    ),
    (
        "A plate with half-eaten food, fries and ½ cup of sauce",
        "a plate with half-eaten food fries and 1/2 cup of sauce",
    ),
    (
        "The cat isn't on the bed -- it’s under the chair…",
        "the cat is n't on the bed it 's under the chair",
    ),
    ("A baseball player's bat; the players' bench", "a baseball player 's bat the players bench"),
    ("“Curly quotes” and ‘single ones’ around words", "curly quotes and single ones around words"),
    (
        "A double decker bus driving down St. James Ave. at 3:00pm",
        "a double decker bus driving down st. james ave. at 3:00 pm",
    ),
    (
        "A no. 7 bus next to a 7-eleven and McDonald's",
        "a no. 7 bus next to a 7-eleven and mcdonald 's",
    ),
    (
        "people cannot see; they're gonna look, aren't they?",
        "people can not see they 're gon na look are n't they",
    ),
    (
        "A view of the Eiffel Tower [night] <photo> and/or a postcard",
        "a view of the eiffel tower -lsb- night -rsb- <photo> and/or a postcard",
    ),
    ("café naïve Zürich — a table set for two", "café naïve zürich a table set for two"),
    (
        "An o'clock sign, rock 'n' roll in the '80s and 1990's",
        "an o'clock sign rock 'n' roll in the '80s and 1990 's",
    ),
    (
        "AT&T store with e-mail at a@b.com and http://www.x.com/a",
        "at&t store with e-mail at a@b.com and http://www.x.com/a",
    ),
    ("A man is sitting on a bench.The dog sits.", "a man is sitting on a bench.the dog sits"),
    ("   a   zebra\tstanding   in a field  ", "a zebra standing in a field"),
    ("A boy in a #5 jersey & plan b. here", "a boy in a # 5 jersey & plan b. here"),
    ("The T.V. is on, i.e., a show etc.", "the t.v. is on i.e. a show etc."),
    ("A giraffe's head!!! What?? ok...", "a giraffe 's head !!! what ?? ok"),
    (
        "I'm here; you've been, she'd go, we'll see, they're off",
        "i 'm here you 've been she 'd go we 'll see they 're off",
    ),
]


@pytest.mark.parametrize(("caption", "words"), CAPTIONS)
def test_words_are_those_of_the_coco_caption_evaluation(caption, words):
    assert caption_words(caption) == words.split()


def test_the_recorded_words_are_those_of_java(monkeypatch):
    module = pytest.importorskip(
        "pycocoevalcap.tokenizer.ptbtokenizer",
        reason="needs pip install --no-deps pycocoevalcap",
    )
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # else Java reads the captions in another encoding
    captions = {i: [{"caption": caption}] for i, (caption, _) in enumerate(CAPTIONS)}
    found = module.PTBTokenizer().tokenize(captions)
    assert [found[i] for i in range(len(CAPTIONS))] == [[words] for _, words in CAPTIONS]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_is_refused(text):
    words = caption_words(text)
    assert all(word == word.lower() and not word.isspace() for word in words)


def test_what_java_cannot_tokenize_is_left_out():
    assert caption_words("a 😀 face") == ["a", "face"]
    assert caption_words("") == []
