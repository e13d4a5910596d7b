"""Texts of any length and content: time in proportion to length, and Ctrl-C at any moment."""

import os
import random
import signal
import threading
import time

import pytest

from pardalis.errors import TextError
from pardalis.tokens import text, train_text_tokenizer
from pardalis.tokens.background import Feed, in_background
from pardalis.tokens.text import LONGEST_PRE_TOKEN

DRAW = random.Random(0)


def dna(length: int) -> str:
    return "".join(DRAW.choices("ACGT", k=length))


def seconds(work) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


# ── one long word ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("word", [dna(200_000), "-" * 200_000, " " * 200_000, "é" * 100_000])
def test_a_tokenizer_is_trained_on_one_long_word(word):
    seconds_needed = seconds(lambda: train_text_tokenizer([word], 400))
    assert seconds_needed < 10  # minutes, where time grows with the square of the length


def test_a_long_word_is_encoded_and_comes_back():
    tokenizer = train_text_tokenizer([dna(3000)], 400)
    for word in (dna(60_000), "-" * 60_000):
        assert tokenizer.decode(tokenizer.encode(word)) == word


def test_texts_without_a_long_word_are_learnt_as_ever():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = ["An owl sat on the old oak, naïve 🦉.\n\n  The owl." * 3, "-" * LONGEST_PRE_TOKEN]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    plain.train_from_iterator(texts, trainer)
    assert train_text_tokenizer(texts, 320).to_json() == plain.to_str()


def test_a_long_text_has_the_tokens_of_the_library(monkeypatch):
    tokenizer = train_text_tokenizer(["An owl sat on the old oak."] * 3, 300)
    long = "An owl, naïve 🦉\x00\x1b\n" * 40
    expected = tokenizer.encode(long)
    monkeypatch.setattr(text, "_LONG_TEXT", 10)
    assert tokenizer.encode(long) == expected


# ── what is no text ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [1, 60_000])
def test_half_a_surrogate_pair_is_refused(length):
    tokenizer = train_text_tokenizer(["owl"], 256)
    with pytest.raises(TextError, match="has half of a surrogate pair, which is no character"):
        tokenizer.encode("owl \ud800" * length)


def test_half_a_surrogate_pair_ends_no_training():
    broken = train_text_tokenizer(["an owl \ud800an owl"], 260)
    assert broken.to_json() == train_text_tokenizer(["an owl an owl"], 260).to_json()


def test_controls_come_back():
    tokenizer = train_text_tokenizer(["owl"], 256)
    controls = "".join(map(chr, [*range(32), 0x7F, *range(0x80, 0xA0), 0xFFFE, 0xFEFF, 0x2028]))
    assert tokenizer.decode(tokenizer.encode(controls)) == controls


# ── in the background ────────────────────────────────────────────────────────────────────────────


def interrupted_after(delay: float, work) -> float:
    """Return how long work went on after Ctrl-C."""
    timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    return time.monotonic() - begin - delay


def test_ctrl_c_ends_the_wait_for_native_code():
    assert interrupted_after(0.3, lambda: in_background(lambda: time.sleep(8))) < 3


def test_ctrl_c_ends_the_wait_for_a_fed_function():
    def work():
        with Feed(lambda items: [*items, time.sleep(8)]) as feed:
            feed.put(1)

    assert interrupted_after(0.3, work) < 3


def test_an_error_among_the_items_ends_the_iterator():
    ended = []

    def work(items):
        try:
            list(items)
        finally:
            ended.append(True)

    with pytest.raises(ZeroDivisionError), Feed(work) as feed:
        for n in (2, 1, 0):
            feed.put(1 / n)
    feed._thread.join(5)
    assert ended == [True]


def test_an_error_of_the_function_arises_in_the_caller():
    def work(items):
        next(items)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), Feed(work) as feed:
        while True:
            feed.put(1)
    assert in_background(lambda: 3) == 3
    with pytest.raises(ValueError, match="no"):
        in_background(lambda: work(iter([1])))
