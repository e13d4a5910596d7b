"""Streams of a driver in coroutines: nothing is lost, the event loop goes on, ends are seen."""

import asyncio
import gc
import threading
from functools import partial

import pytest

from pardalis.errors import RequestError
from pardalis.inference import (
    Engine,
    EngineConfig,
    EngineDriver,
    Finished,
    ImageDone,
    Response,
    generate_many,
)
from pardalis.inference import driver as driver_module

TIMEOUT_S = 60


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, TIMEOUT_S))


@pytest.fixture
def driver(bundle, monkeypatch):
    monkeypatch.setattr(driver_module, "_BUFFER", 3)
    engine_config = EngineConfig(max_slots=4, max_unread_events=6)
    with Engine(bundle, engine_config) as engine, EngineDriver(engine) as driver:
        yield driver
    assert engine.idle


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


OPTIONS = [{"mode": "image", "max_images": 3, "seed": n} for n in range(2)] + [
    {"mode": "text", "temperature": 2.0, "seed": 3}
]


def test_coroutines_get_what_each_gets_alone(driver, bundle):
    expected = [generate_many(bundle, ["An owl"], **options)[0] for options in OPTIONS]

    async def read_all(options):
        stream = await asyncio.to_thread(driver.submit, "An owl", **options)
        events = [event async for event in stream]
        assert events[-1] == stream.finished
        assert [event async for event in stream] == []  # it stays at its end
        return stream.document

    async def wait_for(options):
        return await driver.submit("An owl", **options)

    async def main():
        return await asyncio.gather(
            *(f(o) for o in OPTIONS for f in (read_all, wait_for, read_all))
        )

    found = run(main())
    assert found == [document for document in expected for _ in range(3)]
    assert all(isinstance(document, Response) for document in found)


async def read(stream):
    return [event async for event in stream]


async def wait(stream):
    return await stream


def test_the_event_loop_goes_on_while_a_stream_waits(driver):
    go_on = threading.Event()

    async def main():
        reader = asyncio.create_task(read(driver.submit("owl", mode="image", max_images=5)))
        still = asyncio.create_task(
            asyncio.to_thread(driver.call, lambda engine: go_on.wait(TIMEOUT_S))
        )
        for _ in range(20):  # the engine stands still, this coroutine does not
            await asyncio.sleep(0.001)
        go_on.set()
        assert await still
        return await reader

    assert sum(isinstance(event, ImageDone) for event in run(main())) == 5


def test_a_cancelled_wait_for_an_event_loses_none(driver, bundle):
    async def main():
        stream = driver.submit("owl", mode="image", max_images=3, seed=1)
        events = []
        while not events or not isinstance(events[-1], Finished):
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            if waiting.cancel():
                await asyncio.wait([waiting])
            if not waiting.cancelled():
                events.append(waiting.result())
            else:
                events.append(await anext(stream))
        return stream, events

    stream, events = run(main())
    assert len(events) == 3 * 4 + 1  # begun, two rows and done of each image
    [expected] = generate_many(bundle, ["owl"], mode="image", max_images=3, seed=1)
    assert stream.document == expected


def test_a_cancelled_await_aborts_the_request(driver):
    go_on = threading.Event()

    async def main():
        stream = driver.submit("owl", mode="image", max_images=5)
        await until(lambda: stream._active.paused)  # nobody has read
        still = asyncio.create_task(
            asyncio.to_thread(driver.call, lambda engine: go_on.wait(TIMEOUT_S))
        )
        task = asyncio.create_task(wait(stream))
        await until(lambda: not stream._items.qsize())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        assert await still
        return [event async for event in stream][-1]

    assert run(main()).reason == "aborted"


def test_a_cancelled_loop_over_a_stream_drops_and_aborts_it(driver):
    async def loop():
        async for _ in driver.submit("owl", mode="image", max_images=5):
            begun.set()

    async def main():
        task = asyncio.create_task(loop())
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
        await until(lambda: driver._engine.idle)

    begun = asyncio.Event()
    run(main())


def test_two_coroutines_on_one_stream_share_its_events(driver):
    async def main():
        stream = driver.submit("owl", mode="image", max_images=4)
        return await asyncio.gather(read(stream), read(stream))

    first, second = run(main())
    assert len(first) + len(second) == 4 * 4 + 1


def test_the_end_of_the_driver_reaches_coroutines(bundle):
    async def main():
        with Engine(bundle) as engine:
            driver = EngineDriver(engine)
            stream = driver.submit("owl", mode="image", max_images=5)
            task = asyncio.create_task(wait(stream))
            await asyncio.to_thread(driver.close)
            await task

    with pytest.raises(RequestError, match="The driver of the engine is closed"):
        run(main())


def test_an_event_loop_that_is_gone_holds_nobody_up(driver):
    loop = asyncio.new_event_loop()
    loop.close()
    stream = driver.submit("owl", mode="image", max_images=5)
    stream._items._waiting.add(partial(loop.call_soon_threadsafe, print))
    assert isinstance(list(stream)[-1], Finished)
