"""Many consumers in threads of their own: each gets what it would get alone."""

import gc
import threading
import time

import pytest
from naive_loop import NaiveLoop

from pardalis.documents import Document
from pardalis.errors import RequestError
from pardalis.inference import (
    Engine,
    EngineConfig,
    EngineDriver,
    Finished,
    ImageDone,
    LogProbs,
    TokenLoop,
    generate_many,
    score,
    to_score_requests,
)
from pardalis.inference import driver as driver_module

TIMEOUT_S = 60


@pytest.fixture(params=[NaiveLoop, TokenLoop], ids=["naive", "token_loop"])
def engine(request, bundle, monkeypatch):
    monkeypatch.setattr("pardalis.inference.engine.TokenLoop", request.param)
    monkeypatch.setattr(driver_module, "_BUFFER", 3)
    with Engine(bundle, EngineConfig(max_slots=4, max_unread_events=6)) as engine:
        yield engine


@pytest.fixture
def driver(engine):
    with EngineDriver(engine) as driver:
        yield driver
    assert not driver._thread.is_alive()
    assert engine.idle


class Consumer(threading.Thread):
    """Runs a function; ``result`` returns what it returned, or raises what it raised."""

    def __init__(self, function, *arguments):
        super().__init__(daemon=True)
        self.function, self.arguments = function, arguments
        self.start()

    def run(self):
        self.value = self.error = None
        try:
            self.value = self.function(*self.arguments)
        except BaseException as error:
            self.error = error

    def result(self):
        self.join(TIMEOUT_S)
        assert not self.is_alive(), "a consumer hangs"
        if self.error is not None:
            raise self.error
        return self.value


def until(condition):
    """Wait for what another thread does."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


ASKED = [
    {"mode": "image", "max_images": 2, "seed": 1},
    {"mode": "text", "temperature": 2.0, "seed": 2},
    {"temperature": 2.0, "guidance": 2.0, "seed": 3},
    {"mode": "text", "temperature": 1.5, "seed": 4, "stop": ("e", "an")},
]


def test_consumers_get_what_each_gets_alone(driver, bundle):
    expected = [generate_many(bundle, ["An owl"], **options)[0] for options in ASKED]

    def read(options):
        stream = driver.submit("An owl", **options)
        events = list(stream)
        assert {event.key for event in events} == {stream.key}
        assert isinstance(events[-1], Finished)
        assert events[-1] == stream.finished
        assert list(stream) == []
        return stream.document

    consumers = [Consumer(read, ASKED[n % 4]) for n in range(12)]
    for n, consumer in enumerate(consumers):
        assert consumer.result() == expected[n % 4]


def test_a_slow_consumer_holds_up_itself_alone(driver, engine, bundle):
    slow = driver.submit("owl", mode="image", max_images=5, seed=1)  # 20 events and Finished
    for seed in range(3):
        assert Consumer(driver.submit("owl", mode="image", seed=seed).wait).result().images
    until(lambda: not engine.has_work)
    assert slow.finished is None
    assert slow._items.qsize() == 3
    assert slow._active.paused
    events = Consumer(list, slow).result()
    assert len(events) == 21
    [expected] = generate_many(bundle, ["owl"], mode="image", max_images=5, seed=1)
    assert slow.document == expected


def test_a_consumer_that_leaves_is_forgotten(driver, engine):
    stays = driver.submit("owl", mode="image", max_images=5)
    leaves = driver.submit("owl", mode="image", max_images=5)
    for event in leaves:
        if isinstance(event, ImageDone):
            break
    key = leaves.key
    assert key in engine._active
    del leaves, event
    gc.collect()
    until(lambda: key not in engine._active)
    assert len(Consumer(stays.wait).result().images) == 5


def test_an_aborted_stream_ends_with_finished(driver, engine):
    stream = driver.submit("owl", mode="image", max_images=5)
    next(stream)
    stream.abort()
    *_, last = Consumer(list, stream).result()
    assert isinstance(last, Finished)
    assert last.reason == "aborted"
    stream.abort()  # no more to end
    until(lambda: engine.idle)


def test_poll_does_not_wait(driver, engine):
    stream = driver.submit("owl", mode="image")
    until(lambda: not engine.has_work)
    events = []
    while event := stream.poll():
        events.append(event)
        until(lambda: stream._items.qsize() or engine.idle)
    assert isinstance(events[-1], Finished)
    assert stream.poll() is None


def test_bad_requests_reach_their_own_consumer(driver):
    stream = driver.submit("owl", mode="image")
    with pytest.raises(RequestError, match="has 61 tokens, which fills the model's context"):
        driver.submit("x" * 60)
    with pytest.raises(ZeroDivisionError):
        driver.call(lambda engine: 1 / 0)
    assert Consumer(stream.wait).result().images


def test_an_error_of_the_engine_reaches_every_consumer(driver, engine, monkeypatch):
    streams = [driver.submit("owl", mode="image", max_images=5, seed=n) for n in range(3)]
    consumers = [Consumer(stream.wait) for stream in streams]

    def fail():
        raise MemoryError("no memory left")

    driver.call(lambda engine: monkeypatch.setattr(engine._loop, "step", fail))
    more = []
    with pytest.raises(RequestError, match="The engine failed: MemoryError") as caught:
        while True:  # the failure comes with the next step
            more.append(driver.submit("owl", mode="image"))
    assert isinstance(caught.value.__cause__, MemoryError)
    for consumer in consumers:
        with pytest.raises(RequestError, match="The engine failed: MemoryError"):
            consumer.result()
    for stream in [*more, *streams]:
        for _ in range(2):
            with pytest.raises(RequestError, match="The engine failed: MemoryError"):
                Consumer(stream.wait).result()
    engine._active.clear()


def test_close_ends_all(engine):
    driver = EngineDriver(engine)
    streams = [driver.submit("owl", mode="image", max_images=5) for _ in range(4)]
    consumers = [Consumer(stream.wait) for stream in streams[:3]]
    next(streams[3])
    Consumer(driver.close).result()
    assert engine.idle
    for consumer in consumers:
        with pytest.raises(RequestError, match="The driver of the engine is closed"):
            consumer.result()
    for stream in streams:
        with pytest.raises(RequestError, match="The driver of the engine is closed"):
            Consumer(stream.wait).result()
    with pytest.raises(RequestError, match="The driver of the engine is closed"):
        driver.submit("owl")
    driver.close()
    assert len(engine.submit("owl", mode="image").wait().images) == 1  # the engine goes on


def test_calls_that_race_with_the_end_return(engine):
    """Every call returns or raises, whatever the moment at which the driver closes."""
    for _ in range(20):
        driver = EngineDriver(engine)
        callers = [Consumer(driver.call, lambda engine: engine.idle) for _ in range(4)]
        driver.close()
        for caller in callers:
            try:
                assert caller.result() is True
            except RequestError as error:
                assert "driver of the engine is closed" in str(error)


def test_scores_and_new_weights_through_a_driver(bundle):
    [expected] = score(bundle, [("An owl", "fox")])
    with Engine(bundle) as engine, EngineDriver(engine) as driver:
        [request] = to_score_requests(bundle, [("An owl", "fox")])
        stream = driver.submit_request(request)
        events = Consumer(list, stream).result()
        tokens = [t for event in events if isinstance(event, LogProbs) for t in event.tokens]
        assert tuple(token.log_prob for token in tokens) == expected.log_probs
        assert stream.document == Document(())
        driver.call(lambda engine: engine.reload(bundle.model))
        assert Consumer(driver.submit("owl", mode="image").wait).result().images
