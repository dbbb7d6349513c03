"""Large results on Ray: pages of the object store that are copied when they are written."""

import gc
import importlib
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sharedtask import Shared, parallel
from sharedtask.memory import mapping, proc_maps
from sharedtask.serialization import codec
from sharedtask.testing import until

pytestmark = [pytest.mark.usefixtures("ray_runtime"), pytest.mark.timeout(90)]

LENGTH = 1_000_000


@parallel(backend="ray")
def block(number: int) -> npt.NDArray[np.float64]:
    return np.full(LENGTH, float(number))


def total(_: int, table: Shared[npt.NDArray[np.float64]]) -> float:
    return float(table.sum())


def mapping_of(array: npt.NDArray[Any]) -> tuple[str, bool]:
    """How the memory of an array is mapped, and whether it is that of a file."""
    region = proc_maps.region_at(mapping.address_of(array))
    assert region is not None
    return region.flags, bool(region.inode)


def in_store(array: npt.NDArray[Any]) -> Any:
    """An array in the object store, as a result comes from there."""
    from sharedtask.backends.ray.objects import RayPayload

    ray: Any = importlib.import_module("ray")
    return ray.get(ray.put(RayPayload(codec.encode(array, back=True))))


def opened(payload: Any) -> npt.NDArray[Any]:
    """The array of a payload, as its receiver's own."""
    array: npt.NDArray[Any] = codec.decode(payload.head, payload.own())
    return array


def test_large_results_stay_in_the_store() -> None:
    """A result of some megabytes is not copied, and it is writable."""
    results = block.map(range(3))
    assert [("rw-p", True)] * 3 == list(map(mapping_of, results))
    for number, result in enumerate(results):
        assert (result == number).all()
        result[:] = number + 1
        assert (result == number + 1).all()


def test_smaller_results_are_copied() -> None:
    """Copying takes less time than a mapping then."""
    assert not any(mapping_of(each)[1] for each in quarter.map([1]))


@parallel(backend="ray")
def quarter(number: int) -> npt.NDArray[np.float64]:
    return np.full(LENGTH // 4, float(number))


def test_writes_are_seen_by_no_other() -> None:
    """Two receivers of one object have it each for itself, and the object stays as it was."""
    payload = in_store(np.arange(LENGTH))
    one, other = opened(payload), opened(payload)
    one[::1000] = -1
    assert (np.arange(LENGTH) == other).all()
    assert (np.arange(LENGTH) == np.frombuffer(payload.buffers[0], np.int64)).all()


def test_values_of_several_arrays() -> None:
    """Large arrays lie in the store, small ones do not keep it."""
    value = {"large": np.arange(LENGTH), "small": np.arange(10), "none": np.arange(0)}
    found: Any = opened(in_store(value))  # type: ignore[arg-type]
    assert ("rw-p", True) == mapping_of(found["large"])
    assert not mapping_of(found["small"])[1]
    for name, array in value.items():
        assert (array == found[name]).all()
        found[name] += 1


def test_no_more_than_a_share_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept beyond that is copied."""
    from sharedtask.backends.ray import private_pages

    monkeypatch.setattr(private_pages, "_MOST", 1 + len(private_pages._live))
    found = [opened(in_store(np.arange(LENGTH))) for _ in range(2)]
    assert [True, False] == [mapping_of(each)[1] for each in found]
    assert all((np.arange(LENGTH) == each).all() for each in found)


def test_no_more_bytes_than_a_share_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views keep their objects there, and other tasks need room."""
    from sharedtask.backends.ray import private_pages

    monkeypatch.setattr(private_pages, "_known", [])
    monkeypatch.setattr(private_pages, "_limit", lambda _: 12 * LENGTH)
    found = [opened(in_store(np.arange(LENGTH))) for _ in range(2)]
    assert [True, False] == [mapping_of(each)[1] for each in found]


def test_results_that_are_settled_need_the_store_no_more() -> None:
    """That is before a fork: what they kept is given back, and they have their contents."""
    from sharedtask.backends.ray import private_pages

    block.map([1])  # Ray has opened what it needs
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    (table,) = block.map([7])
    assert private_pages._live
    private_pages.settle()
    assert not private_pages._live
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert (table == 7).all()


def test_store_of_a_ray_that_was_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be mapped at the same place."""
    from sharedtask.backends.ray import private_pages, runtime

    kept = block.map([7])
    (store,) = (each for known in private_pages._known if (each := known()) is not None)
    place = store.region.start, store.region.end
    assert store.has(*place)
    monkeypatch.setattr(runtime, "current_key", lambda: "another")
    assert not store.has(*place)
    del kept


def test_store_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file of the store cannot be opened, results are copied."""
    from sharedtask.backends.ray import private_pages

    monkeypatch.setattr(private_pages, "_known", [])
    monkeypatch.setattr(private_pages, "_peer", lambda _: os.getpid())
    payload = in_store(np.arange(LENGTH))
    before = len(os.listdir("/proc/self/fd"))
    found = opened(payload)
    assert before >= len(os.listdir("/proc/self/fd"))
    assert not mapping_of(found)[1]
    assert (np.arange(LENGTH) == found).all()


def test_what_is_dropped_is_given_back() -> None:
    """With the last result the store gets its memory back, and its descriptors are closed."""
    from sharedtask.backends.ray import private_pages

    before = len(os.listdir("/proc/self/fd"))
    results = block.map(range(3))
    assert 3 == len(private_pages._live)
    assert before < len(os.listdir("/proc/self/fd"))
    del results
    gc.collect()
    assert not private_pages._live
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_forked_child_keeps_its_results() -> None:
    """A child has them as they were, whatever its parent does with the memory of the store."""
    ray: Any = importlib.import_module("ray")
    (table,) = block.map([7])
    ready, go = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(ready, 1)
        os._exit(int(not (table == 7).all()))
    del table
    gc.collect()
    written = [ray.put(np.full(LENGTH, -1.0)) for _ in range(100)]  # most of the store
    os.write(go, b"x")
    assert 0 == os.waitpid(pid, 0)[1]
    del written
    os.close(ready)
    os.close(go)


@pytest.mark.parametrize("backend", ["process", "ray"])
def test_results_that_are_shared_and_changed(backend: str) -> None:
    """A result is a value like any other: a change of it is seen by the next call."""
    (table,) = block.map([1])
    options: Any = {"backend": backend, "workers": 1}
    task = parallel(total).with_options(**options)
    assert [float(LENGTH)] == task.map([0], table=table)
    table[::2] = 3
    assert [2.0 * LENGTH] == task.map([0], table=table)
    table[0] = 5
    assert [2.0 * LENGTH + 2] == task.map([0], table=table)
