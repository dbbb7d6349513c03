# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Results, and their order."""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import os
import threading
import weakref
from collections import OrderedDict, namedtuple
from concurrent.futures import Future, ThreadPoolExecutor, wait
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sharedtask import ArgumentError, Shared, parallel

from .patience import until
from .strategies import assert_same
from .tasks import (
    INNER,
    Model,
    TwoArgumentsError,
    add_up,
    counted,
    counted_sleep,
    drained,
    fail_on,
    identity,
    on_backend,
    power,
    sleep_for,
    square,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


def _extras(x: int, a: int, /, b: int = 2, *args: int, c: int, d: int = 4, **kwargs: int) -> Any:
    return x, a, b, args, c, d, kwargs


def _outer(x: int) -> list[int]:
    return INNER.map(range(x))


def _outer_shared(x: int, table: Shared[Any]) -> list[float]:
    return _INNER_SHARED.map(range(x), model=table)


class Colour(enum.Enum):
    """Members are found by identity."""

    RED = 1


class Level(enum.IntEnum):
    """Looks like an int and is none."""

    HIGH = 3


Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024  # pyright: ignore[reportUntypedNamedTuple]  the plain form is under test


_INNER_SHARED = parallel(add_up)


SCALARS: dict[str, Any] = {
    "None": None,
    "True": True,
    "int": -3,
    "large int": 2**200,
    "float": 0.1,
    "-0.0": -0.0,
    "nan": math.nan,
    "inf": -math.inf,
    "complex": 1 - 2j,
    "str": "grün",
    "surrogate": "\ud800x",
    "empty str": "",
    "bytes": b"\0\xff",
    "np.float64": np.float64(0.1),
    "np.float32": np.float32(0.1),
    "np.int64": np.int64(-5),
    "np.bool": np.bool_(1),
    "np.datetime64": np.datetime64("2020-01-02"),
    "np.complex64": np.complex64(1j),
    "np.longdouble": np.longdouble(1) / 3,
    "np.str_": np.str_("text"),
    "Decimal": Decimal("0.10"),
    "Fraction": Fraction(1, 3),
    "Enum": Colour.RED,
    "IntEnum": Level.HIGH,
    "namedtuple": Point(1, 2),
    "Ellipsis": ...,
    "class": Model,
    "nested": [(1, "a"), {"b": {2.5}}, bytearray(b"x")],
    "OrderedDict": OrderedDict(a=1),
    "0-d array": np.array(3.5),
    "empty array": np.zeros((0, 5), "i2"),
    "F order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "large array": np.arange(300_000.0),
}


class ResultsContract:
    """Results are those of a plain loop."""

    @pytest.mark.filterwarnings("ignore:.*maps over the keys of a dict")
    @pytest.mark.parametrize("kind", [list, tuple, iter, np.array, dict.fromkeys, range], ids=str)
    def test_map_equals_a_loop(self, backend: str, kind: Any) -> None:
        """A map over any iterable returns what a loop would, in its order."""
        items = kind(100) if kind is range else kind(list(range(100)))
        assert [x * x for x in range(100)] == on_backend(backend, square).map(items)

    def test_generator_is_taken_once(self, backend: str) -> None:
        """Every item of a generator is run once, in order."""
        assert list(range(57)) == on_backend(backend, identity).map(x for x in range(57))

    @pytest.mark.parametrize("empty", [[], (), range(0), iter(()), np.zeros(0), {}], ids=repr)
    def test_no_items_no_results(self, backend: str, empty: Any) -> None:
        """Nothing to do is an empty list."""
        assert [] == on_backend(backend, square).map(empty)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_no_items_in_a_stream(self, backend: str, method: str) -> None:
        """Nothing to do is a stream that ends."""
        assert [] == drained(getattr(on_backend(backend, square), method)([]))

    @pytest.mark.parametrize("method", ["map", "imap", "imap_unordered", "amap", "aimap"])
    def test_every_method_gives_the_same_results(self, backend: str, method: str) -> None:
        """All ways to map give the results of ``map``."""
        results = drained(getattr(on_backend(backend, square), method)(range(200)))
        assert [x * x for x in range(200)] == (
            sorted(results) if method == "imap_unordered" else results
        )

    @pytest.mark.parametrize("name", SCALARS)
    def test_values_arrive_unchanged(self, backend: str, name: str) -> None:
        """An item and a result keep type and value, alone and among others."""
        value = SCALARS[name]
        task = on_backend(backend, identity, chunksize=4)
        assert_same([value], task.map([value]))
        assert_same([1, value, "x", value], task.map([1, value, "x", value]))

    def test_results_of_mixed_kinds_keep_their_places(self, backend: str) -> None:
        """Scalars, arrays and objects may follow each other in one chunk."""
        items = list(SCALARS.values()) * 3
        assert_same(items, on_backend(backend, identity, chunksize=50).map(items))

    def test_result_arrays_are_writable(self, backend: str) -> None:
        """A result belongs to the caller, small or large."""
        for result in on_backend(backend, _ones).map([4, 400_000]):
            np.add(result, 1, out=result)
            assert 2.0 == result[-1]

    @pytest.mark.parametrize("chunksize", [1, 2, 7, 64, 1000, "auto"])
    def test_chunksize_changes_no_result(self, backend: str, chunksize: Any) -> None:
        """However items are cut into chunks, results are the same."""
        task = on_backend(backend, square, chunksize=chunksize)
        assert [x * x for x in range(100)] == task.map(range(100))
        assert [x * x for x in range(100)] == list(task.imap(iter(range(100))))

    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_workers_change_no_result(self, backend: str, workers: int) -> None:
        """However many workers there are, results are the same."""
        assert [x * x for x in range(50)] == on_backend(backend, square, workers=workers).map(
            range(50)
        )

    def test_starmap_fills_the_first_parameters(self, backend: str) -> None:
        """Every item of ``starmap`` is a tuple of arguments."""
        task = on_backend(backend, power)
        assert [8, 9, 1] == task.starmap([(2, 3), [3, 2], (5, 0)])
        assert [9, 10] == task.starmap([(2, 3), (3, 2)], plus=1)

    def test_extra_arguments_reach_every_item(self, backend: str) -> None:
        """Positional and keyword arguments arrive as in a call, defaults and variadics included."""
        task = on_backend(backend, _extras)
        wanted = [_extras(x, 1, 5, 6, 7, c=8, e=9) for x in range(5)]
        assert wanted == task.map(range(5), 1, 5, 6, 7, c=8, e=9)
        assert [_extras(x, 1, c=3) for x in range(5)] == task.map(range(5), 1, c=3)
        assert [_extras(x, 1, b=0, c=3) for x in range(5)] == task.map(range(5), 1, b=0, c=3)

    def test_an_array_argument_is_copied_along(self, backend: str) -> None:
        """A parameter without a role takes any value, large arrays included."""
        table = np.arange(400_000.0)
        assert [0.0, 399_999.0] == on_backend(backend, _pick).map([0, -1], table)

    def test_call_runs_here(self, backend: str) -> None:
        """A call of the task is a call of the function, in this thread."""
        task = on_backend(backend, _where)
        assert (os.getpid(), threading.get_ident()) == task(0)

    def test_submit_gives_a_future(self, backend: str) -> None:
        """``submit`` returns a future of one result."""
        futures = [on_backend(backend, square).submit(x) for x in range(20)]
        assert all(isinstance(future, Future) for future in futures)
        assert not wait(futures, timeout=60).not_done
        assert [x * x for x in range(20)] == [future.result() for future in futures]

    def test_submit_takes_shared_values_and_extras(self, backend: str) -> None:
        """A submitted item gets the same arguments as a mapped one."""
        assert 6.0 == on_backend(backend, add_up).submit(3, model=np.ones(3)).result(60)

    def test_submit_raises_the_tasks_error(self, backend: str) -> None:
        """The future of a failed item holds the exception itself."""
        future = on_backend(backend, fail_on).submit(1, bad=[1], error=(TwoArgumentsError, 1, "x"))
        error = future.exception(60)
        assert isinstance(error, TwoArgumentsError)
        assert (1, "x") == (error.code, error.reason)

    def test_amap_leaves_the_loop_free(self, backend: str) -> None:
        """While ``amap`` waits, other coroutines run."""
        if backend == "serial":
            pytest.skip("serial tasks take the time that they take")
        ticks: list[int] = []

        async def both() -> list[Any]:
            async def tick() -> None:
                for k in range(5):
                    ticks.append(k)
                    await asyncio.sleep(0.01)

            results: list[Any]
            results, _ = await asyncio.gather(on_backend(backend, sleep_for).amap([0.15]), tick())
            return results

        assert [0.15] == asyncio.run(both())
        assert 5 == len(ticks)

    def test_two_amaps_at_once(self, backend: str) -> None:
        """Coroutines do not mix up their results."""

        async def both() -> Any:
            task = on_backend(backend, square)
            return await asyncio.gather(*(task.amap(range(n)) for n in (10, 20, 30)))

        assert [[x * x for x in range(n)] for n in (10, 20, 30)] == asyncio.run(both())

    def test_threads_at_once(self, backend: str) -> None:
        """Threads that map the same task and value at once get their own results."""
        task, table = on_backend(backend, add_up), np.ones(1000)

        def run(start: int) -> list[Any]:
            return list(task.map(range(start, start + 50), model=table))

        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(run, range(0, 400, 50)))
        assert [[x + 1000.0 for x in range(s, s + 50)] for s in range(0, 400, 50)] == found

    def test_nested_map(self, backend: str) -> None:
        """A task may map another task."""
        assert [[x * x for x in range(n)] for n in range(5)] == on_backend(backend, _outer).map(
            range(5)
        )

    def test_nested_map_with_a_shared_value(self, backend: str) -> None:
        """A shared value may be shared again inside a task."""
        task = on_backend(backend, _outer_shared)
        assert [[], [4.0], [4.0, 5.0]] == task.map(range(3), table=np.ones(4))

    def test_bad_calls_are_refused_before_anything_runs(self, backend: str, tmp_path: Path) -> None:
        """Missing and extra arguments, text as items and things that do not iterate are refused."""
        task = on_backend(backend, counted_sleep)
        folder = str(tmp_path)
        calls: list[Callable[[], Any]] = [
            lambda: task.map([1], folder),
            lambda: task.map([1], folder, 0.0, 1),
            lambda: task.map([1], folder, 0.0, nonsense=1),
            lambda: task.map([1], folder, 0.0, folder=folder),
            lambda: task.map("text", folder, 0.0),
            lambda: task.map(b"bytes", folder, 0.0),
            lambda: task.map(3, folder, 0.0),
            lambda: task.map(None, folder, 0.0),
            lambda: task.submit(1, folder),
        ]
        for call in calls:
            with pytest.raises(ArgumentError):
                call()
        assert {} == counted(tmp_path)

    def test_a_map_needs_items(self, backend: str) -> None:
        """A map without items is a TypeError, as Python's own would be."""
        with pytest.raises(TypeError):
            on_backend(backend, square).map()

    @pytest.mark.parametrize("way", ["map", "imap", "submit", "logs"])
    def test_items_are_freed_though_nothing_else_is_called(self, backend: str, way: str) -> None:
        """Soon after a call nothing keeps its items: the program may rest for hours then."""
        task = on_backend(backend, _logged if way == "logs" else _nothing, workers=2)
        task.map([Model(np.zeros(1), 0.0)])
        item = Model(np.ones(1), 1.0)
        gone = weakref.ref(item)
        if way == "submit":
            task.submit(item).result()
        else:
            list((task.imap if way == "imap" else task.map)([item]))
        del item
        until(lambda: gone() is None)


def _ones(n: int) -> npt.NDArray[Any]:
    return np.ones(n)


def _pick(x: int, table: npt.NDArray[Any]) -> float:
    return float(table[x])


def _where(_x: int) -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _nothing(item: object) -> None:
    pass


def _logged(item: object) -> None:
    logging.getLogger("sharedtask.testing").warning("about %r", type(item))
