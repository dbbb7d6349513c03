"""Values that pickle to a number of this process: handed on for real, or refused."""

import ctypes
import multiprocessing
import multiprocessing.managers
import selectors
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sharedtask import SerializationError, Shared, UnshareableError, parallel


def use(x: Any, extra: Any = None) -> Any:
    return 3


def look(x: Any, value: Shared[Any]) -> Any:
    return 3


def selector() -> Any:
    made = selectors.SelectSelector()
    made.register(0, selectors.EVENT_READ)
    return made


MAKE: dict[str, Callable[[], Any]] = {
    "connection": lambda: multiprocessing.Pipe()[0],
    "attribute": lambda: SimpleNamespace(inner=multiprocessing.Pipe()[0]),
    "method": lambda: multiprocessing.Pipe()[0].poll,
    "descriptor": lambda: resource_sharer.DupFd(0),
    "selector": selector,
    "library": lambda: ctypes.CDLL(None),
}


def make(name: str) -> Any:
    return MAKE[name]()


@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
@pytest.mark.parametrize("name", MAKE)
def test_value_that_is_a_number_of_this_process(backend: Any, name: str) -> None:
    """It is refused wherever it stands, by name and with a cure; nothing hangs."""
    value = MAKE[name]()
    task = parallel(use).with_options(backend=backend, return_exceptions=True)

    def captures(x: int) -> Any:
        return value

    results: Any = task.map([1, value, [value], {"a": {"b": value}}, 2], extra=None)
    assert [3, 3] == [results[0], results[4]]
    for error in results[1:4]:
        assert isinstance(error, SerializationError)
        assert "of this process: " in str(error) or "in this process: " in str(error)
    with pytest.raises(SerializationError, match=r"extra.*this process: "):
        task.map([1], extra=value)
    with pytest.raises(SerializationError, match=r"captured value.*this process: "):
        parallel(captures).with_options(backend=backend).map([1])
    (error,) = parallel(make).with_options(backend=backend, return_exceptions=True).map([name])
    assert isinstance(error, SerializationError)
    assert "the result of item 0 cannot be pickled" in str(error)
    assert [3, 3] == task.map([1, 2])


@pytest.mark.parametrize("name", MAKE)
def test_shared_value_with_a_number_of_this_process(backend: Any, name: str) -> None:
    """A shared value that holds it is refused on every backend."""
    with pytest.raises(UnshareableError, match=r"value\['a'\].*this process: "):
        parallel(look).with_options(backend=backend).map([1], value={"a": MAKE[name]()})


@pytest.fixture(scope="module")
def manager() -> Iterator[multiprocessing.managers.SyncManager]:
    """A process that holds values for others."""
    with multiprocessing.get_context("spawn").Manager() as made:
        yield made


def put(x: Any, queue: Any = None) -> None:
    queue.put(x)


def put_itself(queue: Any) -> None:
    queue[0].put("item")


def put_shared(x: Any, queue: Shared[Any]) -> None:
    queue["a"].put(x)


@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
def test_queue_of_a_manager(backend: Any, manager: Any) -> None:
    """A queue of a manager works as argument, item and shared value, as with multiprocessing."""
    queue = manager.Queue()
    parallel(put).with_options(backend=backend).map(["argument"], queue=queue)
    parallel(put_itself).with_options(backend=backend).map([[queue]])
    parallel(put_shared).with_options(backend=backend).map(["shared"], queue={"a": queue})
    assert ["argument", "item", "shared"] == [queue.get(timeout=60) for _ in range(3)]


def total(x: Any, extra: Any) -> int:
    return int(extra.sum())


@pytest.mark.parametrize("where", ["/proc/self/fd/{}", "/dev/fd/{}"])
@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
def test_mapped_file_named_by_its_descriptor(backend: Any, where: str) -> None:
    """A mapped file whose path is a number of this process travels as what it holds."""
    with tempfile.TemporaryFile() as file:
        file.write(b"\1" * 5_000)
        file.flush()
        array = np.memmap(where.format(file.fileno()), np.uint8, "r")
        assert [5_000] == parallel(total).with_options(backend=backend).map([1], extra=array)
