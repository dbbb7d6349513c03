"""Writes that bypass numpy's flag, into the caller's own arrays: told on serial and thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sharedtask
from sharedtask import ChangedValueError, ChangedValueWarning, Shared, parallel
from sharedtask.memory import dirty_pages, proc_maps, write_watch
from sharedtask.memory.mapping import address_of
from sharedtask.memory.write_watch import WriteWatch
from sharedtask.testing.tasks import by_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(60)

# Rows of 64 numbers: compared as a whole, watched by the kernel, and larger than all caches.
ROWS = {"128 kB": 1 << 8, "2 MB": 1 << 12}


@pytest.fixture(params=["serial", "thread"])
def local(request: pytest.FixtureRequest) -> str:
    """The backends whose tasks run in the caller's process."""
    name: str = request.param
    return name


@pytest.fixture
def no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel does not tell which pages were written."""
    monkeypatch.setenv("SHAREDTASK_WATCH", "off")


def mask_of(table: Any) -> Any:
    mask = np.zeros(table.shape, bool)
    mask[len(table) // 3, 5] = True
    return mask


def torch_add(table: Any) -> None:
    import torch

    torch.from_numpy(table).add_(1)  # it warns that the array is not writable


# Of any index, which the stubs of numpy do not know.
ADD, NEGATIVE, SUBTRACT = (getattr(np, name).at for name in ("add", "negative", "subtract"))


def add(table: Any, where: Any, number: Any) -> None:
    """As native code adds: numpy's own functions heed the flag, ``ufunc.at`` since numpy 2.5."""
    ADD(by_pointer(table), where, number)


WRITES: dict[str, Callable[[Any], object]] = {
    "index": lambda t: add(t.reshape(-1), [7], 1),
    "index of two axes": lambda t: add(t, ([100], [3]), 1),
    "mask": lambda t: add(t, mask_of(t), 3),
    "column": lambda t: add(t, (np.arange(len(t)), 5), 1),
    "pair that cancels out": lambda t: add(t, ([9, 17], [0, 0]), [1, -1]),
    "last number": lambda t: add(t, (-1, -1), 1),
    "torch": torch_add,
}


def by_name(*names: str) -> list[Any]:
    """Ways to write, as parameters: where torch is not installed, its own is left out."""
    skip = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
    return [pytest.param(n, marks=skip) if n == "torch" else n for n in names or WRITES]


def warned(call: Callable[[], Any]) -> list[Any]:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        call()
    return [w.message for w in shown if w.category is ChangedValueWarning]


@parallel
def write(i: int, table: Shared[Any], how: str, at: int = 3) -> int:
    if i == at:
        WRITES[how](table)
    return i


@pytest.mark.parametrize("size", ROWS)
@pytest.mark.parametrize("how", by_name())
def test_write_is_told(local: Any, size: str, how: str) -> None:
    """Each of these warns once, in the first call and in later ones, with name and cure."""
    table = np.ones((ROWS[size], 64))
    task = write.with_options(backend=local)
    for _ in range(2):
        (warning,) = warned(lambda: task.map(range(20), table=table, how=how))
        assert ("write", "table", True) == (warning.function, warning.parameter, warning.bypassed)
        assert 3 in warning.items or warning.beside
        for word in ("native code", "own memory", "Partitioned", "CopyOnWrite"):
            assert word in str(warning)
    assert [] == warned(lambda: task.map(range(20), table=table, how=how, at=99))


REFUSED: dict[str, Callable[[Any], object]] = {
    "row": lambda t: ADD(t, [7], 1),
    "slice": lambda t: NEGATIVE(t, slice(90, 92)),
    "slices": lambda t: SUBTRACT(t, (slice(None), slice(5, 6)), 1),
    "all": lambda t: ADD(t, ..., 1),
}


@pytest.mark.parametrize("how", REFUSED)
def test_numpy_refuses_others_itself(local: Any, how: str) -> None:
    """Where an index leaves axes, ``ufunc.at`` heeds the flag with any numpy."""

    @parallel(backend=local)
    def refused(_: int, table: Shared[Any]) -> None:
        REFUSED[how](table)

    table = np.ones((ROWS["2 MB"], 64))
    with pytest.raises(ValueError, match="read-only"):
        refused.map(range(2), table=table)
    assert (table == 1).all()


@pytest.mark.usefixtures("no_watch")
@pytest.mark.parametrize("how", by_name("index", "column", "last number", "torch"))
def test_sample_finds_writes_to_rows_and_wholes(local: Any, how: str) -> None:
    """Without a watch, both ends of a large array and each of its parts are looked at."""
    table = np.ones((ROWS["2 MB"], 64))
    task = write.with_options(backend=local)
    (warning,) = warned(lambda: task.map(range(20), table=table, how=how))
    assert warning.bypassed


def test_arrays_inside_are_watched(local: Any) -> None:
    """Those of a dict, a frame, an object, and views of a table's columns."""
    table = np.ones((ROWS["2 MB"], 64))

    @parallel(backend=local)
    def change(_: int, model: Shared[dict[str, Any]]) -> None:
        add(model["weights"], ([0], [0]), 1)

    for weights in (table, table[:, :32], table.T, table[::-1]):
        (warning,) = warned(lambda w=weights: change.map(range(2), model={"weights": w, "rate": 1}))  # type: ignore[misc]
        assert ("model", True) == (warning.parameter, warning.bypassed)


def test_strict_makes_it_an_error(local: Any) -> None:
    """With strict=True the item fails where chunks have one; False says nothing."""
    table = np.ones((ROWS["2 MB"], 64))
    # One worker: threads have one value together, and a slower one may see what another has done.
    task = write.with_options(backend=local, strict=True, chunksize=1, workers=1)
    with pytest.raises(ChangedValueError, match="bypass") as caught:
        task.map(range(20), table=table, how="index")
    assert range(3, 4) == caught.value.items
    assert caught.value.bypassed
    task = write.with_options(backend=local, strict=False)
    assert [] == warned(lambda: task.map(range(20), table=table, how="index"))


def test_reading_is_no_write(local: Any) -> None:
    """Nor is a table that was never touched, or one that the caller changes between the calls."""

    @parallel(backend=local)
    def total(i: int, table: Shared[Any]) -> float:
        return float(table[i].sum() + table.sum())

    for table in (np.zeros((ROWS["2 MB"], 64)), np.ones((ROWS["2 MB"], 64))):
        for k in range(6):
            assert [] == warned(lambda t=table: total.map(range(9), table=t))  # type: ignore[misc]
            table[k] += 1


def test_two_calls_at_the_same_time_see_their_own_writes(local: Any) -> None:
    """A call that begins within another one, over the same table, takes no notice from it."""
    table = np.ones((ROWS["2 MB"], 64))
    outer = write.with_options(backend=local, chunksize=1).imap(range(8), table=table, how="index")
    inner = write.with_options(backend=local)

    def both() -> None:
        for i in outer:
            if i == 5:
                inner.map(range(2), table=table, how="index")

    (warning,) = warned(both)
    assert 3 in warning.items or warning.beside


def test_forked_child_has_no_false_alarm() -> None:
    """The pages of a child are not watched: its own calls compare a sample."""
    table = np.ones((ROWS["2 MB"], 64))
    task = write.with_options(backend="serial")
    task.map(range(2), table=table, how="index")
    pid = os.fork()
    if not pid:
        found = warned(lambda: task.map(range(2), table=table, how="index"))
        os._exit(len(found))
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ------------------------------------------------------------------------------- the watch


@pytest.fixture
def fresh() -> Iterator[None]:
    """No watches that other tests have left."""
    write_watch._kept.clear()
    yield
    write_watch._kept.clear()


@pytest.mark.usefixtures("fresh")
def test_watch_is_kept_for_the_next_call() -> None:
    """Registering pages takes 50 times as long as asking for them."""
    array = np.ones(1 << 20, np.uint8)
    first = WriteWatch([array])
    first.close()
    (kept,) = write_watch._kept.values()
    watch = kept.watch
    assert watch is not None
    second = WriteWatch([array])
    assert not write_watch._kept
    assert not second.written()
    array[5000] = 2
    assert second.written()
    assert not second.written()
    second.close()


@pytest.mark.usefixtures("fresh")
def test_array_that_changes_all_the_time_is_not_watched() -> None:
    """After two changes between calls a sample is compared, so that writes are not slowed down."""
    array = np.ones(1 << 20, np.uint8)
    for _ in range(4):
        WriteWatch([array]).close()
        array[:] += 1
    (kept,) = write_watch._kept.values()
    assert kept.watch is None


@pytest.mark.usefixtures("fresh")
def test_watches_that_are_kept_are_bounded() -> None:
    """The oldest are released."""
    before = len(dirty_pages._the_tracker()._watches)
    arrays = [np.ones(1 << 18, np.uint8) for _ in range(write_watch._MOST_KEPT + 9)]
    for array in arrays:
        WriteWatch([array]).close()
    WriteWatch([])
    assert write_watch._MOST_KEPT == len(write_watch._kept)
    assert before + write_watch._MOST_KEPT >= len(dirty_pages._the_tracker()._watches)


@pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 64_003, 300_001])
def test_bytes_of_any_number_are_looked_at(nbytes: int) -> None:
    """The last byte counts, as the first one does."""
    array = np.zeros(nbytes, np.uint8)
    watch = WriteWatch([array])
    assert not watch.written()
    if nbytes:
        array[-1] = 1
        assert watch.written()


def test_kernel_tells_of_private_memory_what_the_list_tells() -> None:
    """Ordinary memory is private; a file, and what is shared, is not."""
    array = np.ones(1 << 20)
    found = proc_maps.private_end(address_of(array))
    if found is None:
        pytest.skip("the kernel has no PROCMAP_QUERY")
    spans = [span for span in proc_maps.private_spans() if span[0] <= address_of(array) < span[1]]
    assert [found] == [high for _, high in spans]
    shared: Any = np.frombuffer(__import__("mmap").mmap(-1, 1 << 16), np.uint8)
    assert 0 == proc_maps.private_end(address_of(shared))
    assert None is proc_maps.private_end(4096)


def test_last_chunk_is_looked_at_if_the_call_ends(local: Any) -> None:
    """Chunks that are too short for a check are checked together."""

    @parallel(backend=local, chunksize=1, workers=1)
    def append(i: int, model: Shared[Any]) -> None:
        if i == 19:
            model["layers"][30].append(i)

    (warning,) = warned(lambda: append.map(range(20), model={"layers": [[] for _ in range(50)]}))
    assert "model['layers'][30][0]" == warning.path
    assert not warning.bypassed


def mapped_file(folder: Path, count: int) -> Any:
    return np.memmap(folder / "numbers", np.float64, "w+", shape=(count,))


def add_one(_: int, table: Shared[Any]) -> float:
    add(table, [0], 1)
    return float(table[0])


def test_small_array_of_a_mapped_file(local: Any, tmp_path: Path) -> None:
    """A write that bypasses numpy's flag is an error at its item, and does not end the program."""
    value = mapped_file(tmp_path, 100)
    with pytest.raises(ChangedValueError) as caught:
        parallel(add_one).with_options(backend=local, workers=1).map([0, 1], table=value)
    assert range(1) == caught.value.items


def test_large_array_of_a_mapped_file(local: Any, tmp_path: Path) -> None:
    """There it is told, as in any array of the caller."""
    value = mapped_file(tmp_path, 200_000)
    task = parallel(add_one).with_options(backend=local, workers=1, chunksize=2)
    with pytest.warns(ChangedValueWarning, match="wrote to an array of table"):
        assert [1.0, 2.0] == task.map(range(2), table=value)


def unmarked(_: int, table: Any) -> float:
    add(table, [0], 1)
    return float(table[0])


def test_unmarked_array_born_shared(local: Any) -> None:
    """What native code writes into it stays in the chunk."""
    array = sharedtask.zeros(200_000)

    task = parallel(unmarked).with_options(backend=local, chunksize=1)
    assert [1.0] * 3 == task.map(range(3), table=array)
    assert 0 == array[0]


IN_SHARED_MEMORY = """
import numpy as np, sharedtask
from sharedtask import Shared, parallel
from sharedtask.testing.tasks import by_pointer

@parallel(backend="{backend}")
def add(_, table: Shared[np.ndarray]):
    by_pointer(table)[0] += 1

add.map(range(2), table={value})
"""


@pytest.mark.parametrize("value", ["sharedtask.zeros(100)", "sharedtask.share(np.zeros(10_000))"])
def test_array_in_shared_memory_is_protected_by_the_kernel(local: str, value: str) -> None:
    """As in a worker process; but here the process that ends is the program."""
    text = IN_SHARED_MEMORY.format(backend=local, value=value)
    ran = subprocess.run([sys.executable, "-c", text], check=False)
    assert -signal.SIGSEGV == ran.returncode


def test_largest_of_many_buffers_are_looked_at() -> None:
    """A task that writes into one of them changes most there."""
    buffers = [np.zeros(1000 + k, np.uint8) for k in range(40)]
    watch = WriteWatch(buffers)
    assert not watch.written()
    buffers[-1][7] = 1
    assert watch.written()
    watch.close()


def test_writes_at_round_distances_do_not_cancel_out() -> None:
    """A row of a digest is no round number of words long."""
    for distance in (1, 8, 16, 64, 100, 128, 1000, 1024):
        words = np.zeros(4096, np.int64)
        watch = WriteWatch([words.view(np.uint8)])
        words[0], words[distance] = 1, -1
        assert watch.written(), distance
        watch.close()


@pytest.mark.parametrize("nbytes", [1000, dirty_pages.WATCH_FROM * 2])
def test_watch_that_is_closed_tells_nothing(nbytes: int) -> None:
    """What is written after a call is the caller's own."""
    buffer = np.zeros(nbytes, np.uint8)
    watch = WriteWatch([buffer])
    watch.close()
    buffer[nbytes // 2] = 1
    assert not watch.written()
