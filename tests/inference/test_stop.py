"""Stop strings end a completion before them, wherever tokens begin and end."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from naive_loop import NaiveLoop

import pardalis
from pardalis.errors import RequestError
from pardalis.inference import (
    Engine,
    EngineConfig,
    TextDelta,
    TokenLoop,
    generate_many,
    generate_reference,
    to_request,
)
from pardalis.inference.events import EventWriter
from pardalis.inference.stop import held_length, stop_start
from pardalis.tokens import TextStream

LETTERS = st.text("ab", max_size=12)
STOP = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def naive_stop(text, stop):
    """Read character by character until the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        if found := [s for s in stop if text[:end].endswith(s)]:
            return end - max(map(len, found))
    return None


@given(LETTERS, STOP)
def test_the_stop_string_that_is_complete_first_counts(text, stop):
    assert stop_start(text, stop) == naive_stop(text, stop)


@given(LETTERS, STOP)
def test_what_may_become_a_stop_string_is_held_back(text, stop):
    """The longest end of a text that is the beginning of a stop string, and no more."""
    assume(stop_start(text, stop) is None)
    beginnings = [s[:n] for s in stop for n in range(1, len(s))]
    assert held_length(text, stop) == max(
        (len(b) for b in beginnings if text.endswith(b)), default=0
    )


@given(text=LETTERS, stop=STOP, data=st.data())
def test_parts_of_a_text_give_what_the_whole_gives(text, stop, data, codec):
    """The tokens come in any parts; what is shown is the text before the stop string."""
    ids = codec.encode(pardalis.Document((pardalis.Text(text),))).ids.tolist()[1:-1]
    writer, shown, stopped_at = EventWriter(0, codec, stop), "", naive_stop(text, stop)
    while ids and not writer.stopped:
        n = data.draw(st.integers(1, len(ids)))
        shown += "".join(event.text for event in writer.write(ids[:n]))
        ids = ids[n:]
        assert text[:stopped_at].startswith(shown)
    shown += "".join(event.text for event in writer.end())
    assert shown == text[:stopped_at]
    assert writer.stopped == (stopped_at is not None)


# ── completions ──────────────────────────────────────────────────────────────────────────────────


def tokens_until(stop, ids, codec):
    """Return how many tokens it takes until whole characters give a stop string, and their text."""
    stream, text = TextStream(codec.text_tokenizer), ""
    for n, token_id in enumerate(ids, 1):
        if token_id in codec.vocabulary.text:
            text += stream.push([codec.vocabulary.text_token(token_id)])
        else:
            text += stream.end()
        if stop in text:
            return n, text
    raise AssertionError(f"{stop!r} is not in {text!r}")


@pytest.mark.parametrize(
    ("loop", "steps_per_sync"),
    [(NaiveLoop, 1), (TokenLoop, 1), (TokenLoop, 5)],
    ids=["naive", "single steps", "several steps"],
)
def test_a_completion_ends_before_the_stop_string(loop, steps_per_sync, bundle, monkeypatch):
    monkeypatch.setattr("pardalis.inference.engine.TokenLoop", loop)
    options = {"mode": "text", "temperature": 1.5, "max_new_tokens": 25}
    n_inside = 0
    with Engine(bundle, EngineConfig(steps_per_sync=steps_per_sync)) as engine:
        for seed in range(3):
            request = to_request(bundle, "An owl", seed=seed, **options)
            ids = generate_reference(bundle.model, bundle.codec.grammar, request)
            text = engine.submit_request(request).wait().text
            for start, length in product((1, 5), (1, 3, 5)):
                stop = (text[start : start + length], "never")
                first = text.find(stop[0])
                completion = engine.submit("An owl", seed=seed, stop=stop, **options)
                deltas = [event.text for event in completion if isinstance(event, TextDelta)]
                assert "".join(deltas) == text[:first]
                assert completion.document.text == text[:first]
                assert completion.finished.reason == "stop"
                n_tokens, read = tokens_until(stop[0], ids, bundle.codec)
                assert completion.finished.usage.completion_tokens == n_tokens
                n_inside += not read.endswith(stop[0])
        assert engine.idle
    assert n_inside > 2  # a stop string began or ended inside a token


def texts_of(document):
    """Return the text of each segment, None for an image."""
    return [s.text if isinstance(s, pardalis.Text) else None for s in document.segments]


def test_stop_strings_of_interleaved_completions(bundle):
    """Text on either side of an image does not join to a stop string."""
    with torch.no_grad():
        bundle.model.head.weight[bundle.codec.vocabulary.begin_image_id] *= 8
    n_after_images = 0
    with Engine(bundle) as engine:
        for seed in range(12):
            options = {"temperature": 2.0, "max_new_tokens": 30, "seed": seed}
            whole = engine.submit("owl", **options).wait()
            texts = texts_of(whole)
            for text in texts:
                ascii_pairs = [s for s in map("".join, pairwise(text or "")) if s.isascii()]
                if not ascii_pairs:
                    continue
                stop = ascii_pairs[-1]
                found = next(n for n, t in enumerate(texts) if t is not None and stop in t)
                kept = texts[found][: texts[found].find(stop)]
                completion = engine.submit("owl", stop=(stop,), **options)
                document = completion.wait()
                assert completion.finished.reason == "stop"
                expected = [*texts[:found], *([kept] if kept else [])]
                assert texts_of(document) == expected
                n_after_images += None in expected
    assert n_after_images > 2


def test_log_probs_go_on_to_the_end_of_the_stop_string(bundle):
    options = {"mode": "text", "temperature": 1.5, "max_new_tokens": 25, "logprobs": 2}
    with Engine(bundle) as engine:
        whole = engine.submit("An owl", **options)
        text = whole.wait().text
        completion = engine.submit("An owl", stop=(text[4:7],), **options)
        completion.wait()
    n = completion.finished.usage.completion_tokens
    assert 0 < n < len(whole.log_probs)
    assert completion.log_probs == whole.log_probs[:n]


def test_a_stop_string_that_never_comes_changes_nothing(bundle):
    options = {"temperature": 1.5, "max_new_tokens": 25, "seed": 2}
    with Engine(bundle) as engine:
        whole = engine.submit("An owl", **options)
        text = whole.wait().text
        completion = engine.submit("An owl", stop=(text[-1] + "never",), **options)
        deltas = [event.text for event in completion if isinstance(event, TextDelta)]
    assert "".join(deltas) == text == completion.document.text
    assert completion.finished.reason == whole.finished.reason


def test_the_functions_take_stop_strings(bundle):
    options = {"mode": "text", "temperature": 1.5}
    text = pardalis.generate(bundle, "An owl", **options).text
    assert pardalis.generate(bundle, "An owl", stop=[text[3:5]], **options).text == text[:3]
    first, second = generate_many(bundle, ["An owl", "An owl"], stop=(text[3:5],), **options)
    assert first.text == text[:3] != second.text
    [turn] = pardalis.generate(bundle, "An owl", chat=True, temperature=1.5, seed=1).segments
    stopped = pardalis.generate(
        bundle, "An owl", chat=True, temperature=1.5, seed=1, stop=(turn.text[2:4],)
    )
    assert [(s.text, s.role) for s in stopped.segments] == [(turn.text[:2], "assistant")]


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (("",), "stop must hold texts of at least one character"),
        ("owl", "stop must be a list, got 'owl'"),
        ((1,), "stop.0 must be of type str, got 1"),
    ],
)
def test_refuses_other_stop_strings(stop, message, bundle):
    with pytest.raises(RequestError, match=message):
        pardalis.generate(bundle, "owl", stop=stop)
