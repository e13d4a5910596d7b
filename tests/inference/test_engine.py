"""Events of many answers at once: whole, in order, and the same as the naive loop's."""

import threading

import numpy as np
import PIL.Image
import pytest
import torch
from naive_loop import NaiveLoop

import pardalis
from pardalis.documents import Image, Text
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.inference import (
    Contrastive,
    Engine,
    EngineConfig,
    Finished,
    Guidance,
    ImageBegun,
    ImageDone,
    ImageRows,
    SamplingConfig,
    TextDelta,
    TokenLoop,
    as_document,
    generate_reference,
    to_request,
)

HOT = SamplingConfig(temperature=2.0)


@pytest.fixture(params=[NaiveLoop, TokenLoop], ids=["naive", "token_loop"])
def engine(request, bundle, monkeypatch):
    monkeypatch.setattr("pardalis.inference.engine.TokenLoop", request.param)
    with Engine(bundle, EngineConfig(max_slots=4, max_unread_events=6)) as engine:
        yield engine


@pytest.fixture
def eager(bundle):
    """Let the model draw now and then."""
    with torch.no_grad():
        bundle.model.head.weight[bundle.codec.vocabulary.begin_image_id] *= 8


def kinds(events):
    return [type(event) for event in events]


def pixels(segment):
    return np.asarray(segment.source).tolist()


def test_an_image_tells_its_rows(engine, bundle):
    answer = engine.submit("owl", mode="image", seed=5)
    events = list(answer)
    assert kinds(events) == [ImageBegun, ImageRows, ImageRows, ImageDone, Finished]
    assert {event.key for event in events} == {answer.key}
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
    assert drawn == answer.document.images[0].source
    assert drawn == bundle.codec.image_tokenizer.partial_image(whole.codes)
    usage = events[-1].usage
    assert (usage.completion_tokens, usage.images) == (6, 1)
    assert 0 < usage.first_event_s <= usage.seconds
    assert answer.finished == events[-1]
    assert events[-1].reason == "images"


def test_text_comes_in_whole_characters(engine):
    """The model is random, so its text is full of bytes that form no character."""
    for seed in range(4):
        answer = engine.submit("An owl", mode="text", text=HOT, max_new_tokens=15, seed=seed)
        *deltas, last = answer
        assert set(kinds(deltas)) <= {TextDelta}
        assert "".join(delta.text for delta in deltas) == answer.document.text
        assert all(delta.text for delta in deltas)
        assert last.reason in ("eos", "length")


def test_interleaved_events_tell_the_document(eager, engine):
    n_images = 0
    for seed in range(6):
        answer = engine.submit("owl", text=HOT, max_new_tokens=25, seed=seed)
        events, segments = list(answer), []
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
        found = [s.text if isinstance(s, Text) else s.source for s in answer.document.segments]
        if {segment.role for segment in answer.document.segments} <= {None}:
            assert told == found
        assert [e for e in events if isinstance(e, Finished)] == events[-1:]
        assert answer.finished.usage.images == len(drawn)
    assert n_images > 2


def test_many_kinds_at_once_are_as_each_alone(engine, bundle):
    asked = [
        ("owl", {"mode": "image", "max_images": 2}),
        ("fox", {"mode": "text", "text": HOT}),
        ("An owl sat", {"text": HOT, "guidance": 3.0}),
        ("cat", {"mode": "image", "guidance": Contrastive(alpha=0.1, k=3)}),
        ("oak", {"mode": "image", "max_images": 2, "guidance": Guidance(text=2.0, image=1.2)}),
        ("ran", {"chat": True, "max_new_tokens": 5}),
    ]
    answers = [engine.submit(prompt, seed=9, **options) for prompt, options in asked]
    told = {answer.key: [] for answer in answers}
    for event in engine.events():
        told[event.key].append(event)
    assert engine.idle
    for answer, (prompt, options) in zip(answers, asked, strict=True):
        assert isinstance(told[answer.key][-1], Finished)
        assert list(answer) == []  # all was read
        alone = generate_reference(
            bundle.model, bundle.codec.grammar, to_request(bundle, prompt, seed=9, **options)
        )
        assert answer.finished.usage.completion_tokens == len(alone)
        expected = bundle.codec.decode([bundle.codec.vocabulary.bos_id, *alone])
        assert answer.document.text == expected.text
        assert [*map(pixels, answer.document.images)] == [*map(pixels, expected.images)]


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
        answer = engine.submit("owl", mode="image", max_images=2)
        for _ in range(9):
            engine.step()
        answer.abort()
        assert [type(segment) for segment in answer.wait().segments] == [Image]
        assert answer.finished.usage.completion_tokens == 9


def test_an_unread_answer_pauses_and_goes_on(engine):
    slow = engine.submit("owl", mode="image", max_images=4)  # 16 events and Finished
    for _ in range(25):
        list(engine.submit("fox", mode="text", max_new_tokens=2))
    assert not engine.idle  # it waits to be read
    assert slow.finished is None
    events = list(slow)
    assert len(events) == 17
    assert engine.idle


def test_a_bad_request_harms_nobody(engine):
    answer = engine.submit("owl", mode="image")
    bad = [
        ("x" * 60, {}, "has 61 ids, which fills the model's context of 40; shorten it"),
        ("x" * 34, {"mode": "image"}, "token budget is 5, but 6 are needed"),
        ("owl", {"mode": "text", "guidance": 3.0}, "Guidance steers how images are drawn"),
        ("owl", {"max_new_tokens": 0}, "max_new_tokens must be a whole number, 1 or more, got 0"),
        ("owl", {"max_images": -1}, "max_images must be a whole number, 0 or more, got -1"),
    ]
    for prompt, options, message in bad:
        with pytest.raises(RequestError, match=message):
            engine.submit(prompt, **options)
    with pytest.raises(DataError):
        engine.submit([b"no image"])
    assert len(answer.wait().images) == 1


def test_too_many_waiting(bundle, monkeypatch):
    monkeypatch.setattr("pardalis.inference.engine.TokenLoop", NaiveLoop)
    with Engine(bundle, EngineConfig(max_slots=1, max_waiting=2)) as engine:
        answers = [engine.submit("owl", max_new_tokens=3) for _ in range(3)]
        with pytest.raises(RequestError, match="2 requests wait already"):
            engine.submit("owl")
        assert all(answer.wait() is not None for answer in answers)


def test_an_image_that_cannot_be_decoded_fails_alone(engine, bundle, monkeypatch):
    tokenizer = bundle.codec.image_tokenizer
    monkeypatch.setattr(tokenizer, "images_of", lambda codes: 1 / 0)
    answer = engine.submit("owl", mode="image", max_images=4)
    other = engine.submit("fox", mode="text", max_new_tokens=4)
    with pytest.raises(RequestError, match="An image could not be decoded: division by zero"):
        answer.wait()
    assert answer.finished.reason == "failed"
    assert answer.document is None
    assert other.wait() is not None
    assert engine.idle


def test_threads_submit_read_and_abort(engine):
    found, errors = {}, []

    def ask(number):
        try:
            answer = engine.submit("owl", mode="image", max_images=2, seed=number % 3)
            if number == 5:
                answer.abort()
            found[number] = [*map(pixels, answer.wait().images)]
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
    answer = engine.submit([image, "what"], mode="text", max_new_tokens=3)
    assert answer.wait().segments
    assert answer.finished.usage.prompt_tokens > 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": {"top_k": 10**30}}, "top_k must be a whole number"),
        ({"text": {"temperature": float("nan")}}, "temperature must be 0 or more"),
        ({"guidance": {"alpha": 0.1, "k": 10**30}}, "k must be a whole number"),
        ({"max_images": 10**24}, "max_images must be a whole number"),
    ],
)
def test_numbers_that_no_tensor_holds_are_refused_at_once(options, message, bundle):
    """What is found out later would end the answers of others too."""
    kinds_of = {"image": SamplingConfig, "text": SamplingConfig, "guidance": Contrastive}
    with Engine(bundle) as engine:
        neighbour = engine.submit("owl", mode="image")
        with pytest.raises(RequestError, match=message):
            engine.submit(
                "owl",
                **{k: kinds_of[k](**v) if isinstance(v, dict) else v for k, v in options.items()},
            )
        assert len(neighbour.wait().images) == 1


def test_a_closed_engine_says_so(bundle):
    with Engine(bundle) as engine:
        unfinished = engine.submit("owl", mode="image")
    with pytest.raises(RequestError, match="engine is closed"):
        unfinished.wait()
    with pytest.raises(RequestError, match="engine is closed"):
        engine.submit("owl")


def test_an_answer_that_ends_while_a_step_waits_is_told(bundle, monkeypatch):
    """A request may come and be given up between two looks of a step at who is there."""
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


def test_a_cache_beyond_all_memory_is_refused(bundle):
    with pytest.raises(
        ConfigError, match=r"take [\d,.]+ GiB, which cpu does not have; lower `max_"
    ):
        Engine(bundle, EngineConfig(cache_tokens=10**14))


def test_one_who_iterates_takes_nothing_from_one_who_reads_all(bundle):
    """While an answer is iterated others are finished; their events wait to be read."""
    with Engine(bundle) as engine:
        other = engine.submit("cat", mode="image")
        list(engine.submit("owl", mode="image", max_images=3))
        assert other.finished is not None
        assert not engine.idle
        rest = list(engine.events())
        assert engine.idle
    assert kinds(rest) == [ImageBegun, ImageRows, ImageRows, ImageDone, Finished]


def test_a_model_that_breaks_in_one_row_breaks_no_other(bundle):
    """Logits that are not numbers stay an answer of that row, of ids that the grammar allows."""
    owl = bundle.codec.encode_prompt(as_document("owl"))[-1]
    expected = pardalis.generate(bundle, "cat", mode="image", seed=3)
    with torch.no_grad():
        bundle.model.embedding.weight[owl] = torch.nan
    with Engine(bundle) as engine:
        broken = [engine.submit("owl", mode=mode) for mode in ("image", "interleaved")]
        whole = engine.submit("cat", mode="image", seed=3)
        assert pixels(whole.wait().images[0]) == pixels(expected.images[0])
        assert all(answer.wait() is not None for answer in broken)
