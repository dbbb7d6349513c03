"""Tasks, and helpers for several parts of the contract."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask import Shared, empty, parallel, partition, zeros
from sharedtask import array as shared_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt


def count_up(folder: str | Path, name: object) -> int:
    """Count one more entry under ``name``, from any process; returns the number so far."""
    path = Path(folder, f"count-{name}")
    with path.open("ab", buffering=0) as file:
        file.write(b"x")
        return os.fstat(file.fileno()).st_size


def counted(folder: str | Path) -> dict[str, int]:
    """How often ``count_up`` was called for every name."""
    return {p.name.removeprefix("count-"): p.stat().st_size for p in Path(folder).glob("count-*")}


def on_backend(backend: str, function: Any, **options: Any) -> Any:
    """A task of a function on a backend; Any, since some tests call it wrongly on purpose."""
    task: Any = parallel(function)
    return task.with_options(backend=backend, **options)


def under_backend(backend: str, task: Any) -> Any:
    """The same task on a backend."""
    return task.with_options(backend=backend)


class _Pointer:
    """The memory of an array, for numpy: as if it could be written."""

    def __init__(self, array: Any) -> None:
        self.array = array
        told = array.__array_interface__
        self.__array_interface__ = {**told, "data": (told["data"][0], False)}


def by_pointer(array: Any) -> Any:
    """The same memory as a writable array, whatever numpy's flag says: as native code has it."""
    return np.asarray(_Pointer(array))


def identity(x: Any) -> Any:
    """The item itself."""
    return x


def square(x: int) -> int:
    """The square of an item."""
    return x * x


def add_up(x: int, model: Shared[Any]) -> Any:
    """An item and all shared values."""
    return x + _total(model)


def whole_of(_x: int, value: Shared[Any]) -> Any:
    """The shared value itself."""
    return value


def _total(value: Any) -> float:
    """The sum of all numbers in a nested value."""
    if isinstance(value, dict):
        return sum(_total(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(_total(part) for part in value)
    if isinstance(value, Model):
        return _total(value.weights) + value.bias
    return float(np.asarray(value).sum())


def fail_on(x: int, bad: Any, error: Any) -> int:
    """Raise at some items."""
    if x in bad:
        raise _made(error)
    return x


def _made(error: tuple[Any, ...]) -> BaseException:
    """A new exception: one object raised twice would carry the notes of both."""
    made: BaseException = error[0](*error[1:])
    return made


def sleep_for(seconds: float) -> float:
    """Take as long as the item says."""
    time.sleep(seconds)
    return seconds


def attempt(x: int, folder: str, fails: int, error: Any) -> int:
    """Fail this many times, counted in a folder."""
    if count_up(folder, x) <= fails:
        raise _made(error)
    return x


def counted_sleep(x: int, folder: str, seconds: float) -> int:
    """Note that the item was entered, then take some time."""
    count_up(folder, x)
    time.sleep(seconds)
    return x


@dataclass
class Model:
    """A user's own class: weights, and a number."""

    weights: npt.NDArray[Any]
    bias: float
    parts: list[Any] = field(default_factory=list)

    def predict(self, x: int) -> float:
        """A method that is a plain function."""
        return float(self.weights.sum() * x + self.bias)

    @parallel
    def scaled(self, x: int, by: float = 1.0) -> float:
        """A method that is a task: the object goes along."""
        return float(self.weights.sum() * x * by + self.bias)

    @parallel(shared=["self"])
    def shared_scaled(self, x: int) -> tuple[float, bool]:
        """A method whose object is shared."""
        return float(self.weights.sum() * x + self.bias), self.weights.flags.writeable

    @parallel
    @staticmethod
    def doubled(x: int) -> int:
        """A static method."""
        return 2 * x

    @parallel
    @classmethod
    def named(cls, x: int) -> str:
        """A class method."""
        return f"{cls.__name__} {x}"


class TwoArgumentsError(Exception):
    """An error that pickle alone cannot rebuild."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


INNER = parallel(square)


BLOCKS: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    # shape of the array, items
    "ints": ((10,), [0, 3, 9, -2]),
    "numpy ints": ((10,), list(np.arange(2, 7))),
    "slices": ((10,), [slice(0, 3), slice(4, 8)]),
    "open slices": ((10,), [slice(None, 2), slice(-3, None)]),
    "steps": ((10,), [slice(0, None, 2), slice(1, None, 4)]),
    "negative steps": ((10,), [slice(None, None, -2), slice(8, 2, -4)]),
    "empty slices": ((10,), [slice(3, 3), slice(9, 2), slice(3, 5)]),
    "rows": ((4, 6), [0, 2]),
    "row slices": ((6, 4), [slice(0, 2), slice(4, 6)]),
    "columns": ((4, 6), [(slice(None), 1), (slice(None), slice(4, None))]),
    "tiles": ((6, 6), [(slice(a, a + 2), slice(b, b + 3)) for a in (0, 4) for b in (0, 3)]),
    "flipped tiles": ((6, 6), [(slice(2, None, -1), slice(5, 2, -2)), (4, slice(0, 3))]),
    "elements": ((4, 4), [(0, 0), (0, 1), (-1, -1)]),
    "ellipsis": ((3, 4, 5), [(..., 0), (..., slice(3, 5)), (1, ..., 2)]),
    "the whole": ((3, 4), [...]),
    "no axis": ((), [()]),
    "partition": ((11,), partition(11, 3)),
}


REFUSED: dict[str, Callable[[], Any]] = {
    "list": lambda: [1, 2],
    "read-only": lambda: np.broadcast_to(np.zeros(1), (4,)),
    "objects": lambda: np.array([None, "a"]),
    "masked": lambda: np.ma.masked_array([1, 2], [True, False]),
    "on itself": lambda: np.lib.stride_tricks.sliding_window_view(np.zeros(5), 2, writeable=True),
}


def _in_place(array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    array[...] = np.arange(60).reshape(6, 10)
    return array, array


def _with_margin(order: Any = "C") -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    around = np.full((9, 14), -1, order=order)
    around[2:8, 3:13] = np.arange(60).reshape(6, 10)
    return around, around[2:8, 3:13]


def _stepped() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    around = np.full((12, 30), -1)
    array = around[::-2, 1::3]
    array[...] = np.arange(60).reshape(6, 10)
    return around, array


def _field() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    records = np.zeros((6, 10), "u1,i8")
    records["f1"] = np.arange(60).reshape(6, 10)
    return records, records["f1"]


def _part_of_ours() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    around = zeros((8, 12), "i8")
    around[1:7, 1:11] = np.arange(60).reshape(6, 10)
    return around, around[1:7, 1:11]


def _raw_array() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    return _in_place(np.frombuffer(multiprocessing.RawArray("q", 60), "i8").reshape(6, 10))


LAYOUTS: dict[str, Callable[[], tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {
    # an array of shape (6, 10) that counts from 0 to 59, behind the memory around it
    "C": lambda: _in_place(np.zeros((6, 10), "i8")),
    "F": lambda: _in_place(np.zeros((6, 10), "i8", order="F")),
    "view": _with_margin,
    "view of F": lambda: _with_margin("F"),
    "steps": _stepped,
    "field": _field,
    "byte order": lambda: _in_place(np.zeros((6, 10), ">i8")),
    "empty": lambda: _in_place(empty((6, 10), "i8")),
    "empty F": lambda: _in_place(empty((6, 10), "i8", order="F")),
    "array": lambda: _in_place(shared_array(np.zeros((6, 10), "i8"))),
    "part of ours": _part_of_ours,
    "RawArray": _raw_array,
}


def power(base: int, exponent: int, plus: int = 0) -> int:
    """A task with several parameters."""
    return int(base**exponent) + plus


def notes_of(error: BaseException) -> list[Any]:
    """The notes that name an item."""
    return [
        note
        for note in getattr(error, "__notes__", ())
        if hasattr(note, "index") and "item" in note
    ]


def drained(results: Any) -> list[Any]:
    """What any of the map methods gives, as a list."""
    if hasattr(results, "__aiter__") or hasattr(results, "__await__"):
        return asyncio.run(asyncio.wait_for(_gathered(results), 60))
    return list(results)


def all_of(task: Any, method: str, numbers: Iterable[int], **values: Any) -> list[Any]:
    """The results of some numbers, by any of the methods."""
    if method == "submit":
        futures = [task.submit(k, **values) for k in numbers]
        return [future.result(60) for future in futures]
    items = [(k,) for k in numbers] if method == "starmap" else numbers
    return drained(getattr(task, method)(items, **values))


async def _gathered(results: Any) -> list[Any]:
    if hasattr(results, "__await__"):
        return list(await results)
    return [result async for result in results]


def some_of(stream: Any, count: int) -> Iterator[Any]:
    """The first results of a stream, which is closed afterwards."""
    if not hasattr(stream, "__aiter__"):
        try:
            yield from itertools.islice(stream, count)
        finally:
            stream.close()
        return
    loop = asyncio.new_event_loop()
    try:
        for _ in range(count):
            yield loop.run_until_complete(anext(stream))
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()
