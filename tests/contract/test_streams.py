import asyncio
import gc
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from budget import with_long

import sharedtask
from sharedtask import Shared, parallel
from sharedtask.testing import slowness

pytestmark = pytest.mark.timeout(60)


def square(x: int) -> int:
    return x * x


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def use(x: int, table: Shared[Any]) -> float:
    return float(table[0]) + x


squares = parallel(square).with_options(backend="process")
naps = parallel(nap).with_options(backend="process", chunksize=1)


def source(taken: list[int]) -> Iterator[int]:
    for k in itertools.count():
        taken.append(k)
        yield k


def idle_at_once(seconds: float = 8) -> None:
    """Fail unless two workers can take something else, long before what they did has ended.

    They are new ones, which a busy machine does not start and load in a moment.
    """
    began = time.monotonic()
    assert [0.0] * 4 == naps.map([0.0] * 4)
    assert seconds * slowness() > time.monotonic() - began


@pytest.mark.parametrize("chunksize", [1, 3, 50, "auto"])
@pytest.mark.parametrize("buffersize", [1, 7, 100])
def test_items_are_taken_as_results_are(backend: Any, buffersize: int, chunksize: Any) -> None:
    """Whatever the chunks, no item is taken beyond ``buffersize`` ahead of the results."""
    taken: list[int] = []
    task = parallel(square).with_options(
        backend=backend,
        buffersize=buffersize,
        chunksize=chunksize,
    )
    stream = task.imap(source(taken))
    for given in range(300):
        assert given * given == next(stream)
        assert buffersize >= len(taken) - given - 1
    stream.close()


def test_buffersize_of_one_is_enough_for_all() -> None:
    """With a buffer of one item everything runs, one after the other."""
    task = squares.with_options(buffersize=1)
    assert [x * x for x in range(50)] == task.map(range(50))
    assert [x * x for x in range(50)] == list(task.imap(range(50)))
    assert [x * x for x in range(50)] == sorted(task.imap_unordered(range(50)))


def test_slow_reader_holds_the_source_back() -> None:
    """While no one reads, the source is not asked for more."""
    taken: list[int] = []
    stream = squares.imap(source(taken))
    next(stream)
    time.sleep(0.2)
    before = len(taken)
    time.sleep(0.3)
    assert before == len(taken)
    stream.close()


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
@pytest.mark.parametrize(
    "leave", with_long(["break", "close", "collect", "raise"], "close", "raise")
)
def test_leaving_early_frees_the_workers(method: str, leave: str) -> None:
    """A stream that is left, however, gives its workers back, whose tasks would take 30 seconds."""
    stream = getattr(naps, method)(itertools.chain([0.0], itertools.repeat(300.0)))
    if leave == "break":
        for _ in stream:
            break
        del stream
    elif leave == "close":
        next(stream)
        stream.close()
    elif leave == "collect":
        next(stream)
        cycle: list[Any] = [stream]
        cycle.append(cycle)
        del stream, cycle
        gc.collect()
    else:
        with pytest.raises(LookupError):
            for _ in stream:
                raise LookupError
        del stream
    idle_at_once()


def test_leaving_before_the_first_result() -> None:
    """A stream of which nothing was read can be closed."""
    stream = squares.imap(itertools.count())
    stream.close()
    del stream
    assert [0, 1] == squares.map(range(2))


def test_closed_stream_is_at_its_end() -> None:
    """After ``close`` a stream gives nothing more."""
    stream = squares.imap(itertools.count())
    assert 0 == next(stream)
    stream.close()
    assert [] == list(stream)


@pytest.mark.usefixtures("no_leaks_warm")
def test_many_streams_left_in_the_middle() -> None:
    """Fifty streams that are left in the middle leave nothing behind."""
    for k in range(50):
        stream = squares.with_options(chunksize=k % 5 + 1).imap(itertools.count())
        assert [0, 1, 4] == list(itertools.islice(stream, 3))
        stream.close()


def test_source_is_closed_by_nobody_else() -> None:
    """The caller's generator is his own: leaving the stream does not end it."""
    taken: list[int] = []
    items = source(taken)
    stream = squares.with_options(buffersize=2).imap(items)
    next(stream)
    stream.close()
    assert len(taken) == next(items)


def test_stream_is_read_by_another_thread() -> None:
    """A stream may be begun in one thread and read in another."""
    stream = squares.imap(range(100))
    assert 0 == next(stream)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(stream))
    thread.start()
    thread.join(60)
    assert [x * x for x in range(1, 100)] == found


def test_source_runs_in_the_readers_thread() -> None:
    """Items are taken in the thread that wants results, in order, one at a time."""
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for k in range(100):
            threads.add(threading.get_ident())
            yield k

    assert [x * x for x in range(100)] == list(squares.imap(items()))
    assert {threading.get_ident()} == threads


def test_source_may_map() -> None:
    """The source of one stream may itself be a stream of another task."""
    assert [x**4 for x in range(50)] == list(squares.imap(squares.imap(range(50))))
    assert [x**4 for x in range(50)] == squares.map(squares.imap(range(50)))


def test_results_stream_while_others_run() -> None:
    """The first result is there long before the last one is made."""
    began = time.monotonic()
    stream = naps.imap([0.0, 0.0, 1.5])
    assert [0.0, 0.0] == [next(stream), next(stream)]
    assert 1 * slowness() > time.monotonic() - began
    assert 1.5 == next(stream)


# -------------------------------------------------------------------------------- asyncio


def test_cancelled_map_frees_the_workers() -> None:
    """Cancelling ``amap`` stops the run: the workers are free within two seconds."""

    async def main() -> None:
        task = asyncio.ensure_future(naps.amap([300.0] * 8))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    idle_at_once()


def test_map_with_a_time_limit_of_asyncio() -> None:
    """``asyncio.wait_for`` around ``amap`` ends it in time."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(naps.amap([300.0] * 4), 0.3)

    began = time.monotonic()
    asyncio.run(main())
    assert 2 * slowness() > time.monotonic() - began
    idle_at_once()


@pytest.mark.parametrize("leave", ["break", "cancel", "aclose"])
def test_async_stream_left_early(leave: str) -> None:
    """An ``aimap`` that is left or cancelled frees its workers within two seconds."""

    async def read(stream: AsyncIterator[float]) -> None:
        async for _ in stream:
            if leave == "break":
                break

    async def main() -> None:
        stream = naps.aimap(itertools.chain([0.0], itertools.repeat(300.0)))
        if leave == "aclose":
            assert 0.0 == await anext(stream)
            await stream.aclose()
            return
        task = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0.4)
        if leave == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task

    began = time.monotonic()
    asyncio.run(main())
    assert 3 * slowness() > time.monotonic() - began
    idle_at_once()


def test_async_stream_takes_items_as_it_is_read() -> None:
    """``aimap`` has the same back-pressure as ``imap``."""
    taken: list[int] = []

    async def main() -> None:
        given = 0
        async for _ in squares.with_options(buffersize=10).aimap(source(taken)):
            given += 1
            assert 10 >= len(taken) - given
            if given == 100:
                break

    asyncio.run(main())


def test_many_awaits_at_once() -> None:
    """More ``amap`` calls than the loop has threads all come to an end."""

    async def main() -> list[Any]:
        return await asyncio.gather(*(squares.amap(range(k)) for k in range(60)))

    assert [[x * x for x in range(k)] for k in range(60)] == asyncio.run(main())


def test_error_of_an_await() -> None:
    """An error in ``amap`` reaches its own awaiter and no other."""

    def fail(x: int) -> int:
        if x == 3:
            raise KeyError(x)
        return x

    async def main() -> Any:
        task = parallel(fail).with_options(backend="process")
        return await asyncio.gather(
            task.amap(range(3)), task.amap(range(5)), task.amap(range(2)), return_exceptions=True
        )

    first, second, third = asyncio.run(main())
    assert ([0, 1, 2], [0, 1]) == (first, third)
    assert isinstance(second, KeyError)


def test_futures_in_a_loop() -> None:
    """A future of ``submit`` can be awaited."""

    async def main() -> list[int]:
        futures = [asyncio.wrap_future(squares.submit(x)) for x in range(20)]
        return list(await asyncio.gather(*futures))

    assert [x * x for x in range(20)] == asyncio.run(main())


# ------------------------------------------------------------------------------- together


@pytest.mark.usefixtures("no_leaks_warm")
def test_threads_futures_streams_and_a_loop_at_once() -> None:
    """Everything at the same time on one pool gives everyone his own results."""
    table = np.full(200_000, 7.0)
    shared = parallel(use).with_options(backend="process")

    def maps(n: int) -> None:
        for _ in range(10):
            assert [7.0 + x for x in range(n)] == shared.map(range(n), table=table)

    def futures(n: int) -> None:
        found = [squares.submit(x) for x in range(n * 5)]
        assert [x * x for x in range(n * 5)] == [future.result(60) for future in found]

    def streams(n: int) -> None:
        for _ in range(5):
            stream = squares.imap(itertools.count(n))
            assert [x * x for x in range(n, n + 50)] == list(itertools.islice(stream, 50))
            stream.close()

    def loop(n: int) -> None:
        async def main() -> None:
            assert [x * x for x in range(n)] == await squares.amap(range(n))
            assert [x * x for x in range(n)] == [y async for y in squares.aimap(range(n))]

        asyncio.run(main())

    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(f, n) for f in (maps, futures, streams, loop) for n in (5, 17, 40)]
        for future in found:
            future.result(60)


def test_callbacks_may_use_the_pool() -> None:
    """A done-callback may submit and map."""
    done = threading.Event()
    found: list[Any] = []

    def again(_future: Any) -> None:
        found.append(squares.submit(5).result(60))
        found.append(squares.map(range(3)))
        done.set()

    squares.submit(3).add_done_callback(again)
    assert done.wait(60)
    assert [25, [0, 1, 4]] == found


def test_cancelled_futures() -> None:
    """Futures that wait in the queue can be cancelled; the others are done."""
    futures = [naps.submit(0.2) for _ in range(12)]
    cancelled = [future.cancel() for future in futures[6:]]
    assert any(cancelled)
    assert [0.2] * 6 == [future.result(60) for future in futures[:6]]
    assert [0.2] * 2 == naps.map([0.2] * 2)


def test_idle_thread_does_not_stand_for_two() -> None:
    """Two chunks that come while one thread is idle run at the same time."""
    both = threading.Barrier(2)
    script = parallel(lambda _: both.wait(60))
    for _ in range(20):
        parallel(square).with_options(backend="thread", workers=1).map(range(2))
        task = script.with_options(backend="thread", workers=2, chunksize=1)
        assert {0, 1} == set(task.map(range(2)))
        sharedtask.shutdown()
