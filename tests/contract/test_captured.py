"""Large arrays that come along unmarked: shared by themselves, once, and never stale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sharedtask import OptionsError, defaults, parallel, share
from sharedtask.memory import proc_maps
from sharedtask.testing import no_leaks  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

LARGE = 1 << 18  # float64: 2 MiB
SMALL = 100

in_workers = pytest.mark.parametrize("workers_of", ["process", "ray"])


@pytest.fixture(autouse=True)
def few_workers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two workers; Ray's own where the test asks for Ray."""
    if "ray" in request.node.name:
        request.getfixturevalue("ray_runtime")
    with defaults(workers=2):
        yield


def closing_over(array: npt.NDArray[Any], **options: Any) -> Any:
    """A task that captures an array."""

    def at(i: int) -> float:
        return float(array[i])

    return parallel(**options)(at)


class Model:
    """An object with a large array and a small number."""

    def __init__(self, size: int = LARGE) -> None:
        self.weights = np.arange(size, dtype=float)
        self.factor = 2.0

    @parallel
    def score(self, i: int) -> float:
        """Read the array."""
        return float(self.weights[i] * self.factor)

    @parallel
    def scratch(self, i: int) -> float:
        """Write into the array."""
        self.weights[0] += i
        return float(self.weights[0])

    @parallel
    def is_mapped(self, _: int) -> bool:
        """Whether the array lies in a mapping of a file or a segment."""
        region = proc_maps.region_at(self.weights.__array_interface__["data"][0])
        return region is not None and bool(region.inode)


def test_closure_is_right_on_every_backend(backend: Any) -> None:
    """A captured array has its values, and those it has at the next call."""
    values = np.arange(LARGE, dtype=float)
    task = closing_over(values, backend=backend)
    assert [0.0, 1.0, 2.0] == task.map(range(3))
    values[1] = 7
    assert [0.0, 7.0, 2.0] == task.map(range(3))


def test_self_is_right_on_every_backend(backend: Any) -> None:
    """What changes in an object, its array or a number beside it, is seen by the next call."""
    model = Model()
    with defaults(backend=backend):
        assert [0.0, 2.0, 4.0] == model.score.map(range(3))
        model.weights[1] = 7
        assert [0.0, 14.0, 4.0] == model.score.map(range(3))
        model.factor = 1.0
        assert [0.0, 7.0, 2.0] == model.score.map(range(3))


@in_workers
def test_array_is_stored_once_for_many_closures(workers_of: Any) -> None:
    """A function that is made again for each call brings an array that is there already."""
    values = np.ones(LARGE)
    for made in range(3):
        task = closing_over(values, backend=workers_of)
        task.map(range(4))
        assert (1, 0) == (task.cache_info().hits, task.cache_info().misses) or made == 0
    assert 1 == task.cache_info().currsize


@in_workers
def test_array_of_self_is_stored_once(workers_of: Any) -> None:
    """A change beside the array does not store the array again."""
    model = Model()
    Model.score.cache_clear()
    with defaults(backend=workers_of):
        for factor in (1.0, 2.0, 3.0):
            model.factor = factor
            assert [factor] == model.score.map([1])
    info = Model.score.cache_info()
    assert (2, 1) == (info.hits, info.misses)


@in_workers
def test_self_stays_private_to_its_chunk(workers_of: Any) -> None:
    """A task may write into its object; neither the caller nor another chunk sees it."""
    model = Model(SMALL)
    task = model.scratch.with_options(backend=workers_of, chunksize=2)
    assert [1.0, 2.0, 1.0, 2.0] == task.map([1] * 4)
    assert 0.0 == model.weights[0]


@pytest.mark.parametrize(("captured", "mapped"), [("share", True), ("copy", False)])
def test_option_turns_it_off(captured: Any, mapped: bool) -> None:
    """With "copy" the array comes with its object, in memory of the worker or of the message."""
    model = Model(LARGE // 4)  # 512 kB: travels inside the message
    large = Model()
    task = large.score.with_options(backend="process", captured=captured)
    Model.score.cache_clear()
    assert [2.0] == task.map([1])
    assert mapped == bool(Model.score.cache_info().currsize)
    assert [False] == model.is_mapped.with_options(backend="process", captured=captured).map([0])


def test_unknown_word_is_refused() -> None:
    """The option has two values."""
    with pytest.raises(OptionsError, match="'share' or 'copy'"):
        parallel(captured="no")(len)  # type: ignore[call-overload]


@in_workers
def test_two_names_of_one_array(workers_of: Any) -> None:
    """An array that is met twice is one array in the worker, too."""
    values = np.arange(LARGE, dtype=float)
    same = values

    def is_one(_: int) -> bool:
        return values is same

    assert [True] == parallel(backend=workers_of)(is_one).map([0])


@in_workers
def test_small_arrays_stay_where_they_are(workers_of: Any) -> None:
    """Below a MiB an array is pickled with what it is in."""
    task = closing_over(np.ones(SMALL), backend=workers_of)
    assert [1.0] == task.map([3])
    assert 0 == task.cache_info().currsize


@in_workers
def test_captured_array_is_read_only(workers_of: Any) -> None:
    """What a function captures is shared, so a task cannot write it."""
    values = np.zeros(LARGE)

    def write(_: int) -> None:
        values[0] = 1

    with pytest.raises(ValueError, match="read-only"):
        parallel(backend=workers_of)(write).map([0])
    assert 0.0 == values[0]


@parallel
def fill(i: int, array: Any) -> float:
    array[0] = 1
    return float(array[0])


@pytest.mark.parametrize("captured", ["share", "copy"])
def test_where_arrays_are_read_only(backend: Any, captured: Any) -> None:
    """As the row of the options says: in ``self`` and arguments with "share", captured always."""
    is_read_only = captured == "share"
    array = np.zeros(LARGE)

    def write(i: int) -> float:
        array[0] = 1
        return float(array[0])

    with defaults(backend=backend, captured=captured):
        for call in (lambda: Model().scratch.map([1]), lambda: fill.map([1], array=array)):
            assert is_read_only is (raised(call) is ValueError)
        in_caller = backend in {"serial", "thread"}
        assert in_caller is (raised(lambda: parallel(write).map([1])) is None)
    assert float(in_caller) == array[0]


def raised(call: Callable[[], Any]) -> type[Exception] | None:
    try:
        call()
    except Exception as error:
        return type(error)
    return None


@in_workers
def test_unmarked_argument_is_its_chunks_own(workers_of: Any) -> None:
    """A small argument without a mark is writable in the task, and the caller's stays as it is."""

    def add(i: int, table: Any) -> float:
        table[0] += i
        return float(table[0])

    table = np.zeros(SMALL)
    task = parallel(backend=workers_of, chunksize=1)(add)
    assert [1.0, 1.0] == task.map([1, 1], table=table)
    table[0] = 5
    assert [6.0, 6.0] == task.map([1, 1], table=table)


def test_submit_and_handles_beside_captures(backend: Any) -> None:
    """Captured arrays travel with single items and beside other shared values."""
    values = np.arange(LARGE, dtype=float)

    def both(i: int, table: Any) -> float:
        return float(values[i] + table[i])

    task: Any = parallel(shared=["table"], backend=backend)(both)
    with share(np.ones(LARGE)) as table:
        assert 4.0 == task.submit(3, table=table).result()


@pytest.mark.usefixtures("no_leaks")
def test_nothing_is_left() -> None:
    """The memory of captured arrays goes with them."""
    for _ in range(3):
        closing_over(np.ones(LARGE), backend="process").map(range(3))
