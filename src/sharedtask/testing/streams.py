# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Results as they come: imap, its unordered form, futures and asyncio."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sharedtask import ArgumentError

from .tasks import fail_on, identity, on_backend, sleep_for, some_of, square

if TYPE_CHECKING:
    from collections.abc import Iterator


def _large_after_a_while(x: int) -> Any:
    if x == 0:
        time.sleep(0.2)
    return np.full(200_000, x)


class StreamsContract:
    """Streams take items as fast as their results are taken."""

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    @pytest.mark.parametrize("buffersize", [1, 5, 40])
    def test_stream_takes_no_more_than_its_buffer(
        self, backend: str, method: str, buffersize: int
    ) -> None:
        """Never more than ``buffersize`` items are taken beyond the results that were taken."""
        taken: list[int] = []
        stream = getattr(on_backend(backend, square, buffersize=buffersize), method)(_noted(taken))
        ahead = [len(taken) - given for given, _ in enumerate(some_of(stream, 200), start=1)]
        assert buffersize >= max(ahead)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_stream_of_large_results_is_whole(self, backend: str, method: str) -> None:
        """Results that are sent by themselves all arrive, though the first is ready last."""
        task = on_backend(backend, _large_after_a_while, workers=4, chunksize=1)
        results = [int(array[0]) for array in some_of(getattr(task, method)(range(12)), 12)]
        assert list(range(12)) == sorted(results)
        if method != "imap_unordered":
            assert list(range(12)) == results

    @pytest.mark.parametrize("method", ["imap", "imap_unordered"])
    def test_nothing_runs_before_the_first_result_is_asked_for(
        self, backend: str, method: str
    ) -> None:
        """A stream that is not read takes no item."""
        taken: list[int] = []
        stream = getattr(on_backend(backend, square), method)(_noted(taken))
        assert [] == taken
        next(stream)
        assert taken

    def test_stream_checks_its_arguments_at_once(self, backend: str) -> None:
        """A wrong call of a stream is refused where it is written, not where it is read."""
        with pytest.raises(ArgumentError):
            on_backend(backend, square).imap(3)
        with pytest.raises(ArgumentError):
            on_backend(backend, square).imap(range(3), nonsense=1)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_endless_input(self, backend: str, method: str) -> None:
        """The input may be endless; leaving early ends the run, and the next one is right."""
        task = on_backend(backend, square)
        results = list(some_of(getattr(task, method)(itertools.count()), 500))
        assert 500 == len(set(results))
        if method != "imap_unordered":
            assert [x * x for x in range(500)] == results
        assert [0, 1, 4] == task.map(range(3))

    def test_a_slow_first_item_bounds_the_buffer(self, backend: str) -> None:
        """While the first item is slow, an endless input is not read without bound."""
        taken: list[int] = []
        task = on_backend(backend, _slow_zero)
        stream = task.imap(_noted(taken), seconds=0.5)
        assert 0 == next(stream)
        assert 50_000 > len(taken)
        stream.close()

    def test_unordered_stream_gives_what_is_ready(self, backend: str) -> None:
        """``imap_unordered`` does not wait for a slow item if several run at once."""
        if backend == "serial":
            pytest.skip("one thing after the other")
        task = on_backend(backend, sleep_for, chunksize=1)
        assert 0.5 == list(task.imap_unordered([0.5, 0.0, 0.01, 0.02]))[-1]

    def test_unordered_stream_with_errors_in_place(self, backend: str) -> None:
        """Errors come as results if ``return_exceptions`` is set."""
        task = on_backend(backend, fail_on, return_exceptions=True)
        results = list(task.imap_unordered(range(20), bad=[3], error=(KeyError, 3)))
        assert 20 == len(results)
        assert 1 == sum(isinstance(result, KeyError) for result in results)

    def test_two_streams_at_once(self, backend: str) -> None:
        """Two streams that are read in turn do not mix up their results."""
        task = on_backend(backend, square)
        pairs = zip(task.imap(range(100)), task.imap(range(100, 200)), strict=True)
        assert [(x * x, (x + 100) ** 2) for x in range(100)] == list(pairs)

    def test_map_between_two_results(self, backend: str) -> None:
        """While a stream is open, the same task can be mapped."""
        task = on_backend(backend, square)
        stream = task.imap(itertools.count())
        assert 0 == next(stream)
        assert [0, 1, 4] == task.map(range(3))
        assert 1 == next(stream)
        stream.close()

    def test_a_stream_of_a_slow_source(self, backend: str) -> None:
        """Results come while the source is still making items."""
        order: list[str] = []

        def source() -> Iterator[int]:
            for k in range(6):
                order.append(f"item {k}")
                yield k

        stream = on_backend(backend, identity, buffersize=2).imap(source())
        order.extend(f"result {result}" for result in stream)
        assert order.index("result 0") < order.index("item 5")


def _slow_zero(x: int, seconds: float) -> int:
    if x == 0:
        time.sleep(seconds)
    return x


def _noted(taken: list[int]) -> Iterator[int]:
    for k in itertools.count():
        taken.append(k)
        yield k
