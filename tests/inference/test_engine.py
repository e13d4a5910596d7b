"""Events of many completions at once: complete, in order, and equal to the naive loop's."""

import threading
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from naive_loop import NaiveLoop

import pardalis
from pardalis.documents import Image, Text
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.inference import (
    Engine,
    EngineConfig,
    Finished,
    ImageBegun,
    ImageDone,
    ImageRows,
    TextDelta,
    TokenLoop,
    generate_reference,
    to_document,
    to_request,
)
from pardalis.model import Decoder


@pytest.fixture(params=[NaiveLoop, TokenLoop], ids=["naive", "token_loop"])
def engine(request, bundle, monkeypatch):
    monkeypatch.setattr("pardalis.inference.engine.TokenLoop", request.param)
    with Engine(bundle, EngineConfig(max_slots=4, max_unread_events=6)) as engine:
        yield engine


@pytest.fixture
def eager(bundle):
    """Make the model begin an image now and then."""
    with torch.no_grad():
        bundle.model.head.weight[bundle.codec.vocabulary.begin_image_id] *= 8


def kinds(events):
    return [type(event) for event in events]


def pixels(segment):
    return np.asarray(segment.source).tolist()


def test_events_of_an_image(engine, bundle):
    completion = engine.submit("owl", mode="image", seed=5)
    events = list(completion)
    assert kinds(events) == [ImageBegun, ImageRows, ImageRows, ImageDone, Finished]
    assert {event.key for event in events} == {completion.key}
    first, whole = events[1:3]
    assert (first.rows, whole.rows) == (1, 2)
    assert whole.codes[:2] == first.codes
    assert len(whole.codes) == 4
    ids = generate_reference(
        bundle.model, bundle.codec.grammar, to_request(bundle, "owl", mode="image", seed=5)
    )
    start = bundle.codec.vocabulary.image.start
    assert list(whole.codes) == [i - start for i in ids[1:-1]]
    drawn = events[3].image
    assert drawn == completion.document.images[0].source
    assert drawn == bundle.codec.image_tokenizer.partial_image(whole.codes)
    usage = events[-1].usage
    assert (usage.completion_tokens, usage.images) == (6, 1)
    assert 0 < usage.first_event_s <= usage.seconds
    assert completion.finished == events[-1]
    assert events[-1].reason == "images"


def test_text_comes_in_whole_characters(engine):
    """The model is random, so its text is full of bytes that form no character."""
    for seed in range(4):
        completion = engine.submit(
            "An owl", mode="text", temperature=2.0, max_new_tokens=15, seed=seed
        )
        *deltas, last = completion
        assert set(kinds(deltas)) <= {TextDelta}
        assert "".join(delta.text for delta in deltas) == completion.document.text
        assert all(delta.text for delta in deltas)
        assert last.reason in ("eos", "length")


def test_interleaved_events_equal_the_document(eager, engine):
    n_images = 0
    for seed in range(6):
        completion = engine.submit("owl", temperature=2.0, max_new_tokens=25, seed=seed)
        events, segments = list(completion), []
        for event in events:
            if isinstance(event, ImageBegun):
                assert event.index == sum(isinstance(s, int) for s in segments)
                segments.append(event.index)
            elif isinstance(event, TextDelta):
                if segments and isinstance(segments[-1], str):
                    segments[-1] += event.text
                else:
                    segments.append(event.text)
        drawn = {e.index: e.image for e in events if isinstance(e, ImageDone)}
        n_images += len(drawn)
        told = [drawn[s] if isinstance(s, int) else s for s in segments]
        found = [s.text if isinstance(s, Text) else s.source for s in completion.document.segments]
        if {segment.role for segment in completion.document.segments} <= {None}:
            assert told == found
        assert [e for e in events if isinstance(e, Finished)] == events[-1:]
        assert completion.finished.usage.images == len(drawn)
    assert n_images > 2


def test_requests_of_many_kinds_at_once_equal_each_alone(engine, bundle):
    asked = [
        ("owl", {"mode": "image", "max_images": 2}),
        ("fox", {"mode": "text", "temperature": 2.0}),
        ("An owl sat", {"temperature": 2.0, "guidance": 3.0}),
        ("cat", {"mode": "image", "contrastive_alpha": 0.1, "contrastive_k": 3}),
        ("oak", {"mode": "image", "max_images": 2, "guidance": 2.0, "image_guidance": 1.2}),
        ("ran", {"chat": True, "max_new_tokens": 5}),
    ]
    completions = [engine.submit(prompt, seed=9, **options) for prompt, options in asked]
    told = {completion.key: [] for completion in completions}
    for event in engine.events():
        told[event.key].append(event)
    assert engine.idle
    for completion, (prompt, options) in zip(completions, asked, strict=True):
        assert isinstance(told[completion.key][-1], Finished)
        assert list(completion) == []  # all was read
        alone = generate_reference(
            bundle.model, bundle.codec.grammar, to_request(bundle, prompt, seed=9, **options)
        )
        assert completion.finished.usage.completion_tokens == len(alone)
        expected = bundle.codec.decode([bundle.codec.vocabulary.bos_id, *alone])
        assert completion.document.text == expected.text
        assert [*map(pixels, completion.document.images)] == [*map(pixels, expected.images)]


def test_requests_join_and_leave(engine):
    first = engine.submit("owl", mode="image", max_images=4)
    engine.step()
    second = engine.submit("fox", mode="text", max_new_tokens=4)
    first.abort()
    assert isinstance(second.wait().text, str)
    first.wait()
    assert first.finished.reason == "aborted"
    assert len(first.document.images) < 4
    assert engine.idle
    first.abort()  # no more to end
    engine.abort(10_000)


def test_abort_inside_an_image_keeps_what_is_complete(bundle, monkeypatch):
    monkeypatch.setattr("pardalis.inference.engine.TokenLoop", NaiveLoop)
    with Engine(bundle) as engine:
        completion = engine.submit("owl", mode="image", max_images=2)
        for _ in range(9):
            engine.step()
        completion.abort()
        assert [type(segment) for segment in completion.wait().segments] == [Image]
        assert completion.finished.usage.completion_tokens == 9


def test_an_unread_completion_pauses_and_resumes(engine):
    slow = engine.submit("owl", mode="image", max_images=4)  # 16 events and Finished
    for _ in range(25):
        list(engine.submit("fox", mode="text", max_new_tokens=2))
    assert not engine.idle  # it waits to be read
    assert slow.finished is None
    events = list(slow)
    assert len(events) == 17
    assert engine.idle


def test_a_bad_request_leaves_the_others_alone(engine):
    completion = engine.submit("owl", mode="image")
    bad = [
        ("x" * 60, {}, "has 61 tokens, which fills the model's context of 40; shorten it"),
        ("x" * 34, {"mode": "image"}, "token budget is 5, but 6 are needed"),
        ("owl", {"max_new_tokens": 0}, "max_new_tokens must be a whole number, 1 or more, got 0"),
        ("owl", {"max_images": -1}, "max_images must be a whole number, 0 or more, got -1"),
    ]
    for prompt, options, message in bad:
        with pytest.raises(RequestError, match=message):
            engine.submit(prompt, **options)
    with pytest.raises(DataError):
        engine.submit([b"no image"])
    assert len(completion.wait().images) == 1


def test_too_many_waiting(bundle, monkeypatch):
    monkeypatch.setattr("pardalis.inference.engine.TokenLoop", NaiveLoop)
    with Engine(bundle, EngineConfig(max_slots=1, max_waiting=2)) as engine:
        completions = [engine.submit("owl", max_new_tokens=3) for _ in range(3)]
        with pytest.raises(RequestError, match="2 requests wait already"):
            engine.submit("owl")
        assert all(completion.wait() is not None for completion in completions)


def test_an_image_that_cannot_be_decoded_fails_alone(engine, bundle, monkeypatch):
    tokenizer = bundle.codec.image_tokenizer
    monkeypatch.setattr(tokenizer, "images_of", lambda codes: 1 / 0)
    completion = engine.submit("owl", mode="image", max_images=4)
    other = engine.submit("fox", mode="text", max_new_tokens=4)
    with pytest.raises(RequestError, match="An image could not be decoded: division by zero"):
        completion.wait()
    assert completion.finished.reason == "failed"
    assert completion.document is None
    assert other.wait() is not None
    assert engine.idle


def test_threads_submit_read_and_abort(engine):
    found, errors = {}, []

    def ask(number):
        try:
            completion = engine.submit("owl", mode="image", max_images=2, seed=number % 3)
            if number == 5:
                completion.abort()
            found[number] = [*map(pixels, completion.wait().images)]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert sorted(found) == list(range(6))
    assert found[0] == found[3]
    assert found[1] == found[4]
    assert found[0] != found[1]
    assert engine.idle


def test_generate_is_the_engine(bundle):
    with Engine(bundle) as engine:
        asked = engine.submit("owl", mode="image", guidance=2.0, seed=4).wait()
    made = pardalis.generate(bundle, "owl", mode="image", guidance=2.0, seed=4)
    assert [*map(pixels, asked.images)] == [*map(pixels, made.images)]


def test_an_image_in_the_prompt(engine):
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    completion = engine.submit([image, "what"], mode="text", max_new_tokens=3)
    assert completion.wait().segments
    assert completion.finished.usage.prompt_tokens > 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_top_k": 10**30}, "^image_top_k must be an integer of 64 bits"),
        ({"temperature": float("nan")}, "^temperature must be a number, got nan"),
        ({"contrastive_alpha": 0.1, "contrastive_k": 10**30}, "^contrastive_k must be an integer"),
        ({"max_images": 10**24}, "^max_images must be an integer of 64"),
    ],
)
def test_numbers_that_no_tensor_holds_are_refused_at_once(options, message, bundle):
    """An error during a step would end the other completions too."""
    with Engine(bundle) as engine:
        neighbour = engine.submit("owl", mode="image")
        with pytest.raises(RequestError, match=message):
            engine.submit("owl", **options)
        assert len(neighbour.wait().images) == 1


def test_a_closed_engine_says_so(bundle):
    with Engine(bundle) as engine:
        unfinished = engine.submit("owl", mode="image")
    with pytest.raises(RequestError, match="engine is closed"):
        unfinished.wait()
    with pytest.raises(RequestError, match="engine is closed"):
        engine.submit("owl")


def test_a_request_aborted_during_a_step_still_finishes(bundle, monkeypatch):
    """A request may be submitted and aborted while another thread waits in a step."""
    with Engine(bundle) as engine:
        real = engine._loop.step

        def step():
            monkeypatch.setattr(engine._loop, "step", real)
            engine.submit("owl").abort()
            return real()

        monkeypatch.setattr(engine._loop, "step", step)
        engine.submit("cat", max_new_tokens=2)
        finished = [event for event in engine.events() if isinstance(event, Finished)]
    assert sorted(event.key for event in finished) == [0, 1]


def test_a_cache_larger_than_memory_is_refused(bundle):
    with pytest.raises(ConfigError, match=r"take [\d,.]+ GiB, which cpu does not have; lower"):
        Engine(bundle, EngineConfig(cache_tokens=10**14))


def test_a_context_of_any_size_takes_the_memory_of_the_cache(bundle):
    config = replace(bundle.model.config, context=2**31 - 1)
    model = Decoder(config).eval()
    model.load_state_dict(bundle.model.state_dict())
    with Engine(replace(bundle, model=model), EngineConfig(cache_tokens=64)) as engine:
        assert engine.submit("owl", max_new_tokens=2).wait().usage.completion_tokens == 2


def test_iterating_one_completion_keeps_the_events_of_others(bundle):
    """Other completions finish meanwhile; their events wait to be read."""
    with Engine(bundle) as engine:
        other = engine.submit("cat", mode="image")
        list(engine.submit("owl", mode="image", max_images=3))
        assert other.finished is not None
        assert not engine.idle
        rest = list(engine.events())
        assert engine.idle
    assert kinds(rest) == [ImageBegun, ImageRows, ImageRows, ImageDone, Finished]


def test_nan_logits_of_one_request_leave_the_others_alone(bundle):
    """A request with NaN logits still gets tokens that the grammar allows."""
    owl = bundle.codec.encode_prompt(to_document("owl"))[-1]
    expected = pardalis.generate(bundle, "cat", mode="image", seed=3)
    with torch.no_grad():
        bundle.model.embedding.weight[owl] = torch.nan
    with Engine(bundle) as engine:
        broken = [engine.submit("owl", mode=mode) for mode in ("image", "interleaved")]
        whole = engine.submit("cat", mode="image", seed=3)
        assert pixels(whole.wait().images[0]) == pixels(expected.images[0])
        assert all(completion.wait() is not None for completion in broken)


def test_events_that_another_thread_brings_are_not_lost(bundle, monkeypatch):
    """The last events may come between a look for events and a look for the end."""
    with Engine(bundle) as engine:
        completion = engine.submit("owl", mode="image")
        lock, ran = engine._lock, []

        class Racing:
            def __enter__(self):
                lock.acquire()

            def __exit__(self, *error):
                lock.release()
                if not ran:  # another thread runs the engine to the end
                    ran.append(True)
                    while completion.finished is None:
                        engine.advance()

        monkeypatch.setattr(engine, "_lock", Racing())
        assert len(list(completion)) == 5
