import contextlib
import dataclasses
import errno
import fcntl
import gc
import json
import os
import pickle
import resource
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import examples, with_long
from hypothesis import given, settings
from hypothesis import strategies as st
from users import NOBODY, as_nobody, as_root, in_child

from sharedtask import (
    ClosedError,
    CopyOnWrite,
    InvalidNameError,
    NameInUseError,
    NameRefusedError,
    Partitioned,
    Shared,
    SharedTaskError,
    StoreFullError,
    UnknownNameError,
    UnshareableError,
    array,
    attach,
    parallel,
    partition,
    share,
    shutdown,
    zeros,
)
from sharedtask.backends.process.pool import Pool
from sharedtask.memory import locations, segments
from sharedtask.store import handles, name_registry
from sharedtask.system import finalizers
from sharedtask.testing import Belongings, assert_nothing_left, assert_same

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A register of the test's own, in which only killed owners may leave their names."""
    path = tmp_path / "sharedtask"
    monkeypatch.setenv("SHAREDTASK_NAMES_DIR", str(tmp_path))
    yield path
    assert {} == handles._named
    assert {"gone"} >= set(states().values())
    assert KILLED >= {each.entry.pid for each in name_registry.listing() if each.entry}
    name_registry.clean()
    assert not path.exists()


# ------------------------------------------------------------------------ tasks and helpers


def total(_x: int, table: Shared[Any]) -> float:
    return float(table.sum())


def lookup(key: str, table: Shared[Any]) -> Any:
    return table[key]


def total_and_spoil(_x: int, table: CopyOnWrite[Any]) -> float:
    table += 1
    return float(table.sum())


def on(backend: str, function: Callable[..., Any]) -> Any:
    chosen: Any = backend
    return parallel(function).with_options(backend=chosen)


# Shares under the names that are given, and waits until it is told to end in the ordinary way.
OWNER = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # before numpy starts threads
import numpy as np
from sharedtask import share, array

VALUES = {
    "array": lambda: np.arange(100_000.0),
    "born": lambda: array(np.arange(100_000.0)),
    "small": lambda: np.arange(4.0),
    "dict": lambda: {"a": np.arange(100_000.0), "b": "text"},
    "inner": lambda: {"a": array(np.arange(4.0))},
    "text": lambda: "text",
}
for name in sys.argv[1:]:
    share(VALUES[name](), name=name)
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
"""


@pytest.fixture
def owner(script: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Start a process that shares values under names, and return it when they are there."""
    started = []

    def start(*names: str, **env: str) -> Any:
        started.append(script(OWNER, *names, **env))
        started[-1].wait_for("ready")
        return started[-1]

    yield start
    for each in started:
        if each.pid not in KILLED:
            os.kill(each.pid, signal.SIGUSR1)
            assert 0 == each.end()


KILLED: set[int] = set()


def kill(process: Any) -> None:
    """Without its parent's wait, so that it stays a zombie."""
    KILLED.add(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def states() -> dict[str, str]:
    return {each.name: each.state for each in name_registry.listing()}


def forge(place: Path, which: str, **changes: Any) -> None:
    """Write an entry again, with other fields and the right checksum."""
    path = place / which
    entry = name_registry.loads(which, path.read_bytes())
    form = {**entry.form, **changes.pop("form", {})}
    path.write_bytes(name_registry.dumps(dataclasses.replace(entry, **changes, form=form)))


# -------------------------------------------------------------------------- from far and near


@pytest.mark.parametrize("name", ["array", "born", "small"])
def test_array_of_an_unrelated_process(owner: Any, name: str) -> None:
    """An array that another process has shared by name is attached, read-only."""
    owner(name)
    with attach(name) as handle:
        expected = np.arange(4.0 if name == "small" else 100_000.0)
        assert_same(expected, handle.value)
        assert not handle.value.flags.writeable
        assert expected.nbytes == handle.nbytes
        assert name == handle.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dict", {"a": np.arange(100_000.0), "b": "text"}),
        ("inner", {"a": np.arange(4.0)}),
        ("text", "text"),
    ],
)
def test_value_of_an_unrelated_process(owner: Any, name: str, expected: Any) -> None:
    """Any other value, large or small, is attached as a snapshot."""
    owner(name)
    with attach(name) as handle:
        assert_same(expected, handle.value)


def test_an_unrelated_process_attaches(run: Callable[..., str]) -> None:
    """What is shared here is attached there."""
    with share({"rows": np.arange(4.0)}, name="model"), share(np.ones(3), name="grid"):
        told = run("""
from sharedtask import attach
with attach("model") as model, attach("grid") as grid:
    print(model.value["rows"].tolist(), grid.value.tolist())
""")
    assert "[0.0, 1.0, 2.0, 3.0] [1.0, 1.0, 1.0]\n" == told


VALUES = {
    "float": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(12.0)[::-2],
    "scalar": np.array(3.0),
    "empty": np.zeros((0, 3)),
    "text": np.array(["a", "bc"]),
    "bytes": np.array([b"a", b"bc"]),
    "swapped": np.arange(3, dtype=">i4"),
    "dates": np.array(["2024-01-01"], "M8[D]"),
    "complex": np.array([1 + 2j]),
    "record": np.array([(1, 2.0)], [("a", "u1"), ("b", "f8")]),
    "aligned": np.zeros(2, np.dtype([("a", "u1"), ("b", "f8", (2, 3))], align=True)),
    "overlapping": np.zeros(
        2, np.dtype({"names": ["a", "b"], "formats": ["u4", "u2"], "offsets": [0, 1]})
    ),
    "titled": np.zeros(2, np.dtype([(("a title", "a"), "u1")])),
    "no bytes": np.zeros(3, "V0"),
    "objects": np.array([{"a": 1}, None]),
    "masked": np.ma.MaskedArray([1, 2], [True, False]),
    "recarray": np.rec.array([(1, 2.0)], dtype=[("a", "u1"), ("b", "f8")]),
    "matrix of dicts": [{"a": np.ones(3)}, {"b": (1, 2)}],
    "none": None,
    "large": {"a": np.arange(100_000.0), "b": bytearray(b"x")},
    "function": len,
}


@pytest.mark.parametrize("name", VALUES)
def test_any_value_has_a_name(name: str) -> None:
    """Every dtype and everything the codec takes comes out as it went in."""
    with share(VALUES[name], name="value") as mine, attach("value") as other:
        assert_same(mine.value, other.value)
        assert_same(VALUES[name], other.value)


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_any_view_is_shared_where_it_lies(data: st.DataObject) -> None:
    """A view of an array in shared memory, however it is cut, is the same view elsewhere."""
    whole = array(np.arange(60.0).reshape(3, 4, 5))
    cut = tuple(data.draw(st.slices(length)) for length in whole.shape)
    view = whole[cut].transpose(data.draw(st.permutations(range(3))))
    with share(view, name="view"), attach("view", writable=True) as handle:
        assert_same(view, np.array(handle.value))
        assert view.strides == handle.value.strides or not view.size
        handle.value[...] = -1
        assert [-1.0] * view.size == view.ravel().tolist()


@pytest.mark.parametrize("value", ["array", "dict"])
def test_handles_of_names_in_a_map(backend: str, value: str) -> None:
    """A handle from ``attach`` and one from ``share`` with a name stand for the value in tasks."""
    rows = np.arange(20_000.0)
    task = on(backend, total if value == "array" else lookup)
    items: list[Any] = [0, 1] if value == "array" else ["a", "a"]
    given: Any = rows if value == "array" else {"a": 7, "rows": rows}
    expected = [rows.sum()] * 2 if value == "array" else [7, 7]
    with share(given, name="table") as mine, attach("table") as other:
        assert expected == task.map(items, table=mine)
        assert expected == task.map(items, table=other)
        assert expected[0] == task(items[0], table=other)


def test_copy_on_write_of_an_attached_array(backend: str) -> None:
    """A task may change its private copy of an attached array; no one else sees it."""
    with share(np.zeros(1000), name="table") as mine, attach("table") as other:
        assert [1000.0] * 3 == on(backend, total_and_spoil).map(range(3), table=other)
        assert 0 == mine.value.sum()


def test_attached_array_is_partitioned_in_place(backend: str) -> None:
    """The array of a writable handle is one that was born in shared memory: blocks are its own."""

    def fill(block: Any, out: Partitioned[Any]) -> None:
        out[...] = 5

    with share(np.zeros(1000), name="out") as mine, attach("out", writable=True) as other:
        assert locations.find(other.value) is not None
        on(backend, fill).map(partition(1000, 4), out=other.value)
        assert 5000 == mine.value.sum()


def test_attached_twice(run: Callable[..., str]) -> None:
    """One process may attach a name more than once; each handle is closed on its own."""
    with share(np.ones(3), name="ones"):
        first, second = attach("ones"), attach("ones")
        first.close()
        with pytest.raises(ClosedError):
            first.value  # noqa: B018
        assert 3 == second.value.sum()
        second.close()


# ------------------------------------------------------------------------------------ writing


def test_attached_is_read_only() -> None:
    """Without ``writable=True`` a write is refused, as for every shared array."""
    with share(zeros(3), name="grid"), attach("grid") as handle:
        with pytest.raises(ValueError, match="read-only"):
            handle.value[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            handle.value.flags.writeable = True


def test_writes_are_seen_by_all(run: Callable[..., str]) -> None:
    """What one process writes the others see at once: the sharer, here, there, and back."""
    grid = zeros(4)
    with share(grid, name="grid") as mine, attach("grid") as reader:
        grid[1] = 1
        told = run("""
from sharedtask import attach
with attach("grid", writable=True) as handle:
    print(handle.value.tolist())
    handle.value[2] = 2
""")
        assert "[0.0, 1.0, 0.0, 0.0]\n" == told
        assert [0, 1, 2, 0] == grid.tolist() == mine.value.tolist() == reader.value.tolist()


def test_shared_copy_is_written_by_others(owner: Any) -> None:
    """An array that was copied on sharing is one memory for all who attach, the owner's."""
    owner("array")
    with attach("array", writable=True) as one, attach("array") as other:
        one.value[:3] = 7
        assert [7, 7, 7, 3] == other.value[:4].tolist()


def test_array_of_ones_own_is_copied_once() -> None:
    """An array outside shared memory is copied: later changes of it are not seen."""
    table = np.zeros(3)
    with share(table, name="table"), attach("table") as handle:
        table[0] = 1
        assert 0 == handle.value.sum()


def test_foreign_shared_memory_is_shared_where_it_lies() -> None:
    """An array over multiprocessing's memory is not copied either."""
    from multiprocessing.sharedctypes import RawArray

    raw = np.frombuffer(RawArray("d", 100))
    with share(raw, name="raw"), attach("raw", writable=True) as handle:
        handle.value[:] = 2
        raw[0] = 3
        assert 201 == raw.sum() == handle.value.sum()


def test_mapped_file_is_shared_where_it_lies(tmp_path: Path) -> None:
    """A mapped file stays the file; one mapped read-only is writable for no one."""
    np.arange(4.0).tofile(tmp_path / "data")
    writable = np.memmap(tmp_path / "data", "f8", "r+")
    with share(writable, name="data"), attach("data", writable=True) as handle:
        handle.value[0] = 9
    assert 9 == np.fromfile(tmp_path / "data")[0]
    readable = np.memmap(tmp_path / "data", "f8", "r")
    with share(readable, name="data"):
        with attach("data") as handle:
            assert 9 == handle.value[0]
        with pytest.raises(NameRefusedError, match="read-only array"):
            attach("data", writable=True)


def test_only_arrays_are_writable() -> None:
    """Anything else is refused with a sentence, and nothing is opened."""
    before = len(os.listdir("/proc/self/fd"))
    with share({"a": np.ones(3)}, name="model"):
        with pytest.raises(NameRefusedError, match=r"it is a dict, a snapshot, .* writable=True"):
            attach("model", writable=True)
        assert before + 1 == len(os.listdir("/proc/self/fd"))


def test_read_only_view_is_not_written() -> None:
    """Who shares a read-only view of an array does not give the right to write."""
    view = zeros(3)[:]
    view.flags.writeable = False
    with (
        share(view, name="view"),
        pytest.raises(NameRefusedError, match="read-only array"),
    ):
        attach("view", writable=True)


# -------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "../a", "a b", "a\n", "ä", "a\0", "x" * 201, 3, None, b"a"],
)
def test_name_that_cannot_be(name: Any, place: Path) -> None:
    """Letters, digits and _ - . make a name, at most 200 of them; anything else is refused."""
    for use in (attach, lambda name: handles._share_named(1, name)):
        with pytest.raises(InvalidNameError, match="cannot be a name") as caught:
            use(name)
        assert isinstance(caught.value, ValueError)
        assert len(str(caught.value)) < 250
    assert not place.exists()


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "0", "-", "_", "a..", "x" * 200])
def test_name_that_can_be(name: str) -> None:
    """All of these are names."""
    with share(1, name=name) as handle:
        assert name == handle.name
        assert 1 == attach(name).value


def test_name_in_use_is_not_taken() -> None:
    """A second value under one name is refused and the first one stays."""
    with share(1, name="model"):
        with pytest.raises(NameInUseError, match=f"in use by process {os.getpid()}") as caught:
            share(2, name="model")
        assert ("model", os.getpid()) == (caught.value.name, caught.value.pid)
        assert isinstance(caught.value, FileExistsError)
        assert 1 == attach("model").value


def test_name_in_use_elsewhere_is_not_taken(owner: Any) -> None:
    """The error names the process that has it, before anything is copied."""
    process = owner("array")
    with pytest.raises(NameInUseError, match=f"process {process.pid}"):
        share(threading.Lock(), name="array")


def test_unknown_name() -> None:
    """A name that no one shares is told, with the one that may have been meant."""
    with pytest.raises(UnknownNameError, match="`sharedtask ls`") as caught:
        attach("model")
    assert isinstance(caught.value, FileNotFoundError)
    with share(1, name="model"), pytest.raises(UnknownNameError, match="Did you mean 'model'"):
        attach("modle")


def test_value_that_cannot_be_shared_has_no_name(place: Path) -> None:
    """An error on the way leaves neither the name nor the memory."""
    before = Belongings.now()
    with pytest.raises(UnshareableError, match="lock"):
        share({"a": threading.Lock()}, name="model")
    with share(1, name="one") as handle, pytest.raises(UnshareableError, match="handle"):
        share(handle, name="two")
    del handle
    assert not place.exists()
    assert_nothing_left(before)


RACE = """
import sys, signal
from sharedtask import NameInUseError, share
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
try:
    share(1, name="prize")
    print("won", flush=True)
    signal.sigwait({signal.SIGUSR1})
except NameInUseError:
    print("lost", flush=True)
"""


@pytest.mark.parametrize("left_over", [False, True])
def test_one_of_many_gets_the_name(
    script: Callable[..., Any], owner: Any, place: Path, left_over: bool
) -> None:
    """Of eight processes one gets a name, also when all find the entry of a dead owner."""
    if left_over:
        kill(owner("text"))
        forge(place, "text", name="prize")
        (place / "text").rename(place / "prize")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # inherited
    try:
        racers = [script(RACE) for _ in range(8)]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    for each in racers:
        each.wait_for("ready")
    for each in racers:
        os.kill(each.pid, signal.SIGUSR1)
    ends = [each.stdout.readline().strip() for each in racers]
    assert ["lost"] * 7 + ["won"] == sorted(ends)
    winner = racers[ends.index("won")]
    assert winner.pid == name_registry.listing()[0].entry.pid  # type: ignore[union-attr]
    os.kill(winner.pid, signal.SIGUSR1)
    assert [0] * 8 == [each.end() for each in racers]


def test_one_of_many_threads_gets_the_name() -> None:
    """Threads of one process are no different."""

    def try_it(number: int) -> Any:
        with contextlib.suppress(NameInUseError):
            return share(number, name="prize")

    with ThreadPoolExecutor(8) as pool:
        (winner,) = (handle for handle in pool.map(try_it, range(32)) if handle)
    assert winner.value == attach("prize").value
    winner.close()


# ----------------------------------------------------------------------------- how it ends


def test_leaving_the_sharer_takes_the_name_away() -> None:
    """After the ``with`` of the sharer the name is unknown; what was attached stays valid."""
    with share(np.ones(3), name="ones"):
        handle = attach("ones")
    with pytest.raises(UnknownNameError):
        attach("ones")
    assert 3 == handle.value.sum()
    assert [3.0] == on("process", total).map([0], table=handle)
    handle.close()


def test_leaving_an_attacher_takes_nothing_away() -> None:
    """After the ``with`` of one who attached all others go on."""
    with share(np.ones(3), name="ones") as mine:
        with attach("ones") as handle:
            pass
        with pytest.raises(ClosedError):
            handle.value  # noqa: B018
        assert 3 == mine.value.sum() == attach("ones").value.sum()


@pytest.mark.parametrize("who", ["sharer", "attacher"])
def test_unlink_takes_the_name_alone(who: str) -> None:
    """After ``unlink()`` no one can attach; the memory stays for those who have it."""
    mine = share(np.ones(3), name="ones")
    other = attach("ones")
    for _twice in range(2):
        (mine if who == "sharer" else other).unlink()
    with pytest.raises(UnknownNameError):
        attach("ones")
    assert [3.0] == on("process", total).map([0], table=mine)
    assert 3 == other.value.sum()
    with share(2, name="ones"):  # the name is free
        mine.close()
        other.unlink()
        assert 2 == attach("ones").value  # and is not taken from the next who has it
    other.close()


def test_unlink_without_a_name() -> None:
    """A handle that has no name has nothing to take away."""
    with share(1) as handle:
        handle.unlink()
        assert handle.name is None
        assert 1 == handle.value


def test_name_stands_without_its_handle() -> None:
    """A name that is not taken away keeps the value, also when no one holds the handle."""
    share(np.ones(3), name="ones")
    gc.collect()
    assert 3 == attach("ones").value.sum()
    attach("ones").unlink()
    gc.collect()
    assert {} == handles._named


def test_name_in_the_text_of_a_handle() -> None:
    """A handle shows its name."""
    with share({"a": 1}, name="model") as mine, attach("model") as other:
        assert "<Handle 'model' of a dict," in repr(mine)
        assert "<Handle 'model' of a dict," in repr(other)


@pytest.mark.parametrize(
    "end", ["pass", "sys.exit(3)", "raise ValueError", "os.kill(os.getpid(), 2)"]
)
def test_process_that_ends_leaves_no_name(script: Any, place: Path, end: str) -> None:
    """Neither an ordinary end, nor an error, nor Ctrl-C leaves an entry."""
    ended = script(f"""
import os, sys
from sharedtask import share
handle = share([1], name="one")
share([2], name="two")
print(sorted(os.listdir(os.environ["SHAREDTASK_NAMES_DIR"] + "/sharedtask")), flush=True)
{end}
""")
    ended.end()
    assert "['one', 'two']\n" == ended.out
    assert not place.exists()


def test_forked_child_takes_no_name_away() -> None:
    """A forked child may close the handle it has inherited, and end: the name is its parent's."""

    def close() -> str:
        handle.close()
        handles._give_names_back()
        return "closed"

    with share(np.ones(3), name="ones") as handle:
        assert "'closed'" == in_child(close)
        assert 3 == attach("ones").value.sum()


def test_forked_child_attaches() -> None:
    """A forked child may attach to what its parent shares."""
    with share(np.ones(3), name="ones"):
        assert "3.0" == in_child(lambda: float(attach("ones").value.sum()))


@pytest.mark.parametrize("name", ["array", "born", "dict", "text"])
def test_killed_owner(owner: Any, place: Path, name: str) -> None:
    """After ``kill -9`` the name is unknown, its entry goes, and it can be taken."""
    process = owner(name)
    kill(process)
    assert name_registry.started(process.pid) is None  # though it is a zombie still
    assert {name: "gone"} == states()
    with pytest.raises(UnknownNameError, match=f"Process {process.pid}, which had shared it"):
        attach(name)
    assert not place.exists()


def test_name_of_a_killed_owner_is_taken_over(owner: Any) -> None:
    """The next who shares under the name of a dead owner has it."""
    kill(owner("array"))
    with share(1, name="array"):
        assert {"array": "alive"} == states()
        assert 1 == attach("array").value


def test_memory_has_no_name(owner: Any) -> None:
    """The owner has nothing in /dev/shm: its memory ends with it, however small that is."""
    process = owner("array", "born", "dict", "text")
    assert set() == in_dev_shm(process.pid)
    kill(process)
    assert ["array", "born", "dict", "text"] == [each.name for each in name_registry.clean()]


def in_dev_shm(pid: int) -> set[str]:
    """What a process has open or mapped in /dev/shm."""
    links = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    lines = Path(f"/proc/{pid}/maps").read_text().split()
    return {path for path in (*links, *lines) if path.startswith("/dev/shm/")}


@pytest.mark.parametrize("name", ["array", "born", "small", "dict", "text"])
def test_attached_stays_when_the_owner_dies(owner: Any, name: str) -> None:
    """What was attached in time stays valid, here and in workers, after its owner was killed."""
    process = owner(name)
    handle = attach(name)
    kill(process)
    process.process.wait()
    if name in {"dict", "text"}:
        key: Any = "b" if name == "dict" else 0
        assert ["text"[: 4 if key else 1]] == on("process", lookup).map([key], table=handle)
    else:
        expected = float(np.arange(4.0 if name == "small" else 100_000.0).sum())
        assert [expected] * 2 == on("process", total).map(range(2), table=handle)
        assert expected == handle.value.sum()
    handle.close()


@pytest.mark.parametrize("kind", with_long(["array", "born", "dict", "small"], "dict", "small"))
def test_nothing_is_left(no_leaks: None, place: Path, kind: str) -> None:
    """Sharing, attaching and using by name leave no descriptor, mapping, thread or entry."""
    make: dict[str, Callable[[], Any]] = {
        "array": lambda: np.ones(30_000),
        "born": lambda: zeros(30_000),
        "dict": lambda: {0: np.ones(30_000)},
        "small": lambda: [1, 2],
    }
    for _again in range(3):
        with share(make[kind](), name="table") as mine, attach("table") as other:
            on("process", lookup).map([0], table=mine)
            on("process", lookup).map([0], table=other)
            assert len(mine.value) == len(other.value)
            attach("table")  # and forgotten
    assert not place.exists()


@pytest.mark.parametrize("named", [False, True])
def test_forgotten_handle_is_freed_without_workers(no_leaks: None, named: bool) -> None:
    """Where no thread of a pool runs, and no call follows, the memory is freed all the same."""
    shutdown()
    before = Belongings.now()
    with share(np.ones(30_000), name="table" if named else None):
        share(np.ones(30_000))
        if named:
            attach("table")
    assert_nothing_left(before)


def test_handle_that_is_forgotten_as_the_pool_ends_is_freed(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that was woken for it may have ended: the end of the pool frees it."""
    assert [2.0] == on("process", total).map([0], table=np.ones(2))
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "wake", lambda _: None)
        share(np.ones(30_000))
        finalizers.wait_until_idle()
    shutdown()  # no_leaks looks what is left


# ----------------------------------------------------------------------- who may, and who not


def test_modes(place: Path) -> None:
    """The register and its entries are for their user alone, whatever the umask."""
    before = os.umask(0)
    try:
        with share(1, name="one"):
            assert 0o700 == stat.S_IMODE(place.stat().st_mode)
            assert 0o600 == stat.S_IMODE((place / "one").stat().st_mode)
            os.umask(0o177)
            with share(2, name="two"):
                assert 0o600 == stat.S_IMODE((place / "two").stat().st_mode)
    finally:
        os.umask(before)


def test_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable the register is in /tmp, under the user's number."""
    with monkeypatch.context() as patch:  # undone before the register is looked at
        patch.delenv("SHAREDTASK_NAMES_DIR")
        assert f"/tmp/sharedtask-{os.geteuid()}" == name_registry.directory()
        patch.setenv("TMPDIR", "/elsewhere")
        assert f"/tmp/sharedtask-{os.geteuid()}" == name_registry.directory()


def refusals(place: Path, match: str) -> None:
    """Every way to the register is refused."""
    for use in (lambda: share(1, name="one"), lambda: attach("one"), states, name_registry.clean):
        with pytest.raises(NameRefusedError, match=match) as caught:
            use()
        assert isinstance(caught.value, PermissionError)
        assert str(place) in str(caught.value)


def test_files_beside_the_register_are_left_alone(place: Path, tmp_path: Path) -> None:
    """A directory that has other things in it may hold the register: these stay."""
    tmp_path.chmod(0o700)
    for name in (".profile", "notes.txt"):
        (tmp_path / name).write_text("mine")
    share(1, name="one").close()
    share(1, name="two").unlink()
    name_registry.clean()
    assert [".profile", "notes.txt"] == sorted(os.listdir(tmp_path))
    assert not place.exists()


def test_linked_directory_is_refused(place: Path, tmp_path: Path) -> None:
    """A link in the place of the register is not followed."""
    (tmp_path / "target").mkdir(mode=0o700)
    place.symlink_to(tmp_path / "target")
    refusals(place, "a link or a file.* Remove it, or name another directory")
    place.unlink()
    assert [] == os.listdir(tmp_path / "target")


def test_file_as_directory_is_refused(place: Path) -> None:
    """A file in the place of the register is no register."""
    place.touch()
    refusals(place, "a link or a file")
    place.unlink()


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777, 0o1777, 0o720])
def test_open_directory_is_refused(place: Path, mode: int) -> None:
    """A register that others may use in any way is refused."""
    place.mkdir()
    place.chmod(mode)
    refusals(place, f"others may use it .mode {mode:o}.*chmod 700")
    place.rmdir()


@as_root
def test_squatted_directory_is_refused(place: Path) -> None:
    """A register that another user has made first is refused, with that user's number."""
    place.mkdir(mode=0o700)
    os.chown(place, NOBODY, NOBODY)
    refusals(place, f"belongs to user {NOBODY}.* SHAREDTASK_NAMES_DIR")
    place.rmdir()


def test_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the register cannot be, sharing says so, and no one is known."""
    with monkeypatch.context() as changed:
        changed.setenv("SHAREDTASK_NAMES_DIR", str(tmp_path / "none" / "names"))
        with pytest.raises(SharedTaskError, match="cannot be made: No such file"):
            share(1, name="one")
        with pytest.raises(UnknownNameError):
            attach("one")


@as_root
def test_another_user_reaches_neither_register_nor_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where anybody can come near the register it is still closed, and so is the memory."""
    top = Path(tempfile.mkdtemp(dir="/tmp"))
    top.chmod(0o755)
    monkeypatch.setenv("SHAREDTASK_NAMES_DIR", str(top))
    try:
        with share("secret", name="secret"):
            path = name_registry.find("secret")[0].path
            assert "NameRefusedError" in as_nobody(lambda: attach("secret"))
            assert "NameRefusedError" in as_nobody(name_registry.clean)
            assert "NameRefusedError" in as_nobody(lambda: share(1, name="mine"))
            assert "PermissionError" in as_nobody(lambda: os.open(path, os.O_RDONLY))
            assert "secret" == attach("secret").value
        (top / "sharedtask").mkdir(mode=0o755)
        assert "belongs to user 0" in as_nobody(lambda: attach("secret"))
    finally:
        shutil.rmtree(top)


def fails_with(code: int) -> Callable[..., int]:
    """Replaces ``regions.reopened`` where the system refuses."""

    def reopened(*_args: object, **_kwargs: object) -> int:
        error = OSError(code, os.strerror(code))
        raise LookupError("cannot be mapped here") from error

    return reopened


def test_owner_that_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has changed its user may refuse even those of the same user."""
    with share(1, name="one"):
        monkeypatch.setattr(locations, "reopened", fails_with(errno.EACCES))
        with pytest.raises(NameRefusedError, match="same user, with the same rights"):
            attach("one")
        assert {"one": "alive"} == states()


def test_no_descriptors_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this process may open no more files, that is said, and not of the name."""
    with share(1, name="one"):
        monkeypatch.setattr(locations, "reopened", fails_with(errno.EMFILE))
        with pytest.raises(StoreFullError, match="ulimit -n"):
            attach("one")


def test_living_is_not_taken_for_dead_without_descriptors(place: Path) -> None:
    """A process that may open no more files removes no one's name."""

    def all_but(spare: int) -> Callable[[], object]:
        def try_all() -> list[str]:
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
            leave_descriptors(spare)
            ends = []
            for use in (
                lambda: attach("one"),
                name_registry.clean,
                lambda: share(2, name="one"),
                lambda: name_registry.started(os.getpid()),
            ):
                try:
                    use()
                    ends.append("done")
                except Exception as error:
                    ends.append(type(error).__name__)
            return ends

        return try_all

    with share(1, name="one"):
        ends = [in_child(all_but(spare)) for spare in range(6)]
        assert {"one": "alive"} == states()
        assert "done" not in ends[0]
        assert "UnknownNameError" not in "".join(ends)


def leave_descriptors(wanted: int) -> None:
    """Open files until no more than ``wanted`` can be."""
    opened = []
    with contextlib.suppress(OSError):
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    for fd in opened[len(opened) - wanted :]:
        os.close(fd)


def test_memory_that_became_smaller(tmp_path: Path) -> None:
    """A mapped file that was cut is refused before anybody reads past its end."""
    np.arange(1000.0).tofile(tmp_path / "data")
    data = np.memmap(tmp_path / "data", "f8", "r+")
    with share(data, name="data"):
        os.truncate(tmp_path / "data", 100)
        with pytest.raises(NameRefusedError, match="made smaller"):
            attach("data")
        os.truncate(tmp_path / "data", 8000)


# ------------------------------------------------------------------------------ damaged entries


def bad_entry(place: Path) -> str:
    """The words for what is in the entry's place; nothing takes it but ``clean``."""
    with pytest.raises(NameRefusedError) as caught:
        attach("one")
    with pytest.raises(NameRefusedError):
        share(2, name="one")
    assert {"one": "damaged"} == states()
    assert ["one"] == [each.name for each in name_registry.clean()]
    assert not place.exists()
    return str(caught.value)


def test_linked_entry_is_refused(place: Path, tmp_path: Path) -> None:
    """An entry that is a link is not followed."""
    with share(1, name="one"):
        (place / "one").rename(tmp_path / "moved")
        (place / "one").symlink_to(tmp_path / "moved")
        assert "'one' is refused: its entry cannot be opened" in bad_entry(place)
        assert (tmp_path / "moved").exists()


def test_pipe_as_entry_is_refused(place: Path) -> None:
    """An entry that is a pipe is not waited for."""
    with share(1, name="one"):
        (place / "one").unlink()
        os.mkfifo(place / "one", 0o600)
        assert "its entry is no file. `sharedtask clean` removes it." in bad_entry(place)


@pytest.mark.parametrize("mode", [0o640, 0o602])
def test_open_entry_is_refused(place: Path, mode: int) -> None:
    """An entry that others may read or write is refused."""
    with share(1, name="one"):
        (place / "one").chmod(mode)
        assert "others have made or may change its entry" in bad_entry(place)


@as_root
def test_entry_of_another_user_is_refused(place: Path) -> None:
    """An entry that another user has made is refused."""
    with share(1, name="one"):
        os.chown(place / "one", NOBODY, NOBODY)
        assert "others have made or may change its entry" in bad_entry(place)


def test_directory_as_entry_stays(place: Path) -> None:
    """What ``clean`` cannot remove it does not say it has."""
    place.mkdir(mode=0o700)
    (place / "one").mkdir()
    with pytest.raises(NameRefusedError, match="no file"):
        attach("one")
    assert [] == name_registry.clean()
    (place / "one").rmdir()


def test_entry_of_another_name_is_refused(place: Path) -> None:
    """An entry that was moved to another name is damaged."""
    with share(1, name="two"):
        (place / "two").rename(place / "one")
        assert "its entry is damaged" in bad_entry(place)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"entry": {}, "checksum": 0}',
        b'{"entry": [], "checksum": 0}',
        pickle.dumps({"entry": 1}),
    ],
)
def test_anything_as_entry_is_refused(place: Path, text: bytes) -> None:
    """Whatever is in an entry, it is read as JSON and refused."""
    with share(1, name="one"):
        (place / "one").write_bytes(text)
        assert "its entry is damaged. `sharedtask clean` removes it." in bad_entry(place)


def test_entry_is_json(place: Path) -> None:
    """An entry can be read by anything that reads JSON."""
    with share(zeros((2, 3)), name="grid"):
        told = json.loads((place / "grid").read_text())["entry"]
    assert ("grid", "array", [2, 3], os.getpid()) == (
        told["name"], told["kind"], told["form"]["shape"], told["pid"],
    )  # fmt: skip


def test_shortened_entry_is_refused(place: Path) -> None:
    """An entry that lost its end, wherever it was cut, is damaged."""
    with share(np.ones(3), name="one"):
        whole = (place / "one").read_bytes()
        for length in range(len(whole)):
            (place / "one").write_bytes(whole[:length])
            with pytest.raises(NameRefusedError, match="damaged"):
                attach("one")
        (place / "one").write_bytes(whole)


@pytest.mark.parametrize("value", [np.arange(3.0), {"a": 1}], ids=["array", "dict"])
def test_flipped_bits_never_lead_to_other_memory(place: Path, value: Any) -> None:
    """With any one bit of an entry flipped the name is refused, or still means the value."""
    refused = 0
    with share(value, name="one"):
        whole = (place / "one").read_bytes()
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            (place / "one").write_bytes(flipped)
            try:
                with attach("one") as handle:
                    assert_same(value, handle.value)
            except NameRefusedError:
                refused += 1
        (place / "one").write_bytes(whole)
    assert refused > 0.9 * 8 * len(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"started": 1},
        {"boot": "another"},
        {"inode": 1},
        {"device": 12_345},
        {"fd": 10_000},
        {"pid": 1 << 22},
        {"pid": -1},
        {"fd": -1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["array", "dict"])
def test_entry_of_what_is_gone(place: Path, kind: str, changes: Any) -> None:
    """A later process of the same pid, a later file of the same number: no one shares that."""
    with share(np.ones(3) if kind == "array" else {"a": 1}, name="one"):
        forge(place, "one", **changes)
        assert {"one": "gone"} == states()
        with pytest.raises(UnknownNameError, match="which had shared it"):
            attach("one")
        assert not place.exists()


def test_pipe_at_the_descriptor_is_not_opened(place: Path) -> None:
    """Where the owner's descriptor is a pipe by now, no one waits at it."""
    readable, writable = os.pipe()
    with share(1, name="one"):
        forge(place, "one", fd=readable)
        with pytest.raises(UnknownNameError):
            attach("one")
    os.close(readable)
    os.close(writable)


@pytest.mark.parametrize(
    "form",
    [
        {"offset": 8},
        {"offset": -8},
        {"offset": 1 << 70},
        {"offset": "0"},
        {"shape": [4]},
        {"shape": [-1]},
        {"shape": [1 << 62]},
        {"shape": None},
        {"strides": [16]},
        {"strides": [-8]},
        {"dtype": "O"},
        {"dtype": "f16"},
        {"dtype": "nonsense"},
        {"dtype": [["f8"]]},
        {"dtype": {"names": ["a"]}},
        {"dtype": {"names": ["a"], "formats": ["O"], "offsets": [0], "itemsize": 8}},
        {"dtype": 3},
    ],
    ids=str,
)
def test_form_that_does_not_fit_is_refused(place: Path, form: Any) -> None:
    """An entry that says more than its memory holds, with whatever checksum, is refused."""
    before = Belongings.now()
    with share(np.ones(3), name="one"):
        forge(place, "one", form=form)
        with pytest.raises(NameRefusedError, match="does not fit its memory"):
            attach("one")
    assert_nothing_left(before)


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "0" * 32},
        {"form": {"table": [0, 16]}},
        {"form": {"table": [0, 1 << 40]}},
        {"form": {"table": [-8, 16]}},
        {"form": {"table": "ab"}},
        {"form": {"table": None}},
        {"kind": "array"},
        {"kind": "other", "form": {"table": [1, 1]}},
        {"size": 1 << 40},
    ],
    ids=str,
)
def test_segment_that_is_not_the_entrys_is_refused(place: Path, changes: Any) -> None:
    """Nothing is unpickled from memory that does not carry the entry's own mark."""
    before = Belongings.now()
    with share({"a": 1}, name="one"):
        forge(place, "one", **changes)
        with pytest.raises(NameRefusedError):
            attach("one")
        (place / "one").unlink()
    assert_nothing_left(before)


def test_unsealed_segment_is_refused(place: Path) -> None:
    """Memory that somebody could still write is not unpickled, though every byte is right."""
    with share({"a": 1}, name="one"):
        entry = name_registry.find("one")[0]
        fd = segments.scratch(entry.size)
        os.pwrite(fd, Path(entry.path).read_bytes(), 0)
        status = os.fstat(fd)
        forge(place, "one", fd=fd, device=status.st_dev, inode=status.st_ino)
        with pytest.raises(NameRefusedError, match="does not fit"):
            attach("one")
        (place / "one").unlink()
    os.close(fd)


def test_flipped_bytes_of_the_segment_are_refused(place: Path) -> None:
    """With any one byte of the head or the table flipped the name is refused, or means the same."""
    value = {"rows": np.arange(3.0), "name": "text"}
    refused = 0
    with share(value, name="one") as mine:
        entry = name_registry.find("one")[0]
        whole = Path(entry.path).read_bytes()
        head: Any = mine.publication.store
        for at in range(head.layout.parts[-1][0], len(whole)):
            fd = segments._create()
            os.pwrite(fd, whole[:at] + bytes((whole[at] ^ 0x11,)) + whole[at + 1 :], 0)
            if segments.uses_memfd():
                fcntl.fcntl(fd, segments._F_ADD_SEALS, segments.FROZEN)
            status = os.fstat(fd)
            forge(place, "one", fd=fd, device=status.st_dev, inode=status.st_ino)
            try:
                with attach("one") as handle:
                    assert_same(value, handle.value)
            except NameRefusedError:
                refused += 1
            os.close(fd)
        (place / "one").unlink()
    assert refused >= head.layout.parts[-1][1] + entry.form["table"][1]


@as_root
def test_segment_of_another_user_is_refused(place: Path) -> None:
    """What another user has made is not unpickled, wherever an entry leads."""
    with share({"a": 1}, name="one"):
        os.chown(name_registry.find("one")[0].path, NOBODY, NOBODY)
        with pytest.raises(NameRefusedError, match=f"its memory belongs to user {NOBODY}"):
            attach("one")


def test_stores_of_two_kinds(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in files is attached where files are wanted; it is not taken for sealed."""
    owner("dict", "array", SHAREDTASK_STORE="file")
    assert 3 == attach("array").value[3]
    with pytest.raises(NameRefusedError, match=r"SHAREDTASK_STORE=file\. Set the same here"):
        attach("dict")
    monkeypatch.setenv("SHAREDTASK_STORE", "file")
    assert "text" == attach("dict").value["b"]


def test_name_of_another_namespace(place: Path) -> None:
    """No one can say whether an owner in another PID namespace lives: its name is left alone."""
    with share(1, name="one"):
        forge(place, "one", namespace=1)
        assert {"one": "elsewhere"} == states()
        with pytest.raises(NameRefusedError, match="another PID namespace"):
            attach("one")
        with pytest.raises(NameInUseError, match="another process"):
            share(2, name="one")
        assert [] == name_registry.clean()
        forge(place, "one", namespace=os.stat("/proc/self/ns/pid").st_ino)


# ---------------------------------------------------------------------------------- the register


def test_draft_of_a_killed_process_goes(place: Path) -> None:
    """What a killed process had begun to write is removed by the next one."""
    place.mkdir(mode=0o700)
    (place / ".draft").touch()
    assert {} == states()
    share(1, name="one").close()
    assert not place.exists()


def test_locked_register_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped while it had the lock does not stop all others without end."""
    monkeypatch.setattr(name_registry, "_LOCK_SECONDS", 0.05)
    with share(1, name="one") as handle:
        fd = os.open(place, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(SharedTaskError, match="is locked by a process that was stopped"):
            share(2, name="two")
        assert 1 == attach("one").value  # readers need no lock
        os.close(fd)
        handle.unlink()


def test_register_that_keeps_vanishing_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the directory is never the one that was locked, that ends with an error too."""
    monkeypatch.setattr(name_registry, "_LOCK_SECONDS", 0.05)
    monkeypatch.setattr(name_registry, "_is_at", lambda *_: False)
    with pytest.raises(SharedTaskError, match="keeps changing"):
        share(2, name="two")
    place.rmdir()


def test_names_come_and_go_together(place: Path) -> None:
    """Threads that share and close, while the directory comes and goes, do not disturb others."""

    def come_and_go(number: int) -> int:
        for turn in range(50):
            with share(turn, name=f"n{number}"), attach(f"n{number}") as handle:
                assert turn == handle.value
        return number

    with ThreadPoolExecutor(4) as pool:
        assert [0, 1, 2, 3] == list(pool.map(come_and_go, range(4)))
    assert not place.exists()


def test_no_room_leaves_no_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no memory for the value there is no entry of it."""
    monkeypatch.setattr("sharedtask.memory.capacity.available", lambda: 1 << 20)
    for value in (np.ones(1 << 23), {"a": np.ones(1 << 23)}):
        with pytest.raises(StoreFullError):
            share(value, name="large")
    assert not place.exists()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            NameInUseError("grid", 7),
            "the name 'grid' is in use by process 7. Take another name, or close the handle there.",
        ),
        (
            UnknownNameError("grid", "Why."),
            "nothing is shared under the name 'grid'. Why.",
        ),
        (NameRefusedError("grid", "Why."), "'grid' is refused: Why."),
        (InvalidNameError("text"), "text"),
    ],
)
def test_errors_survive_pickle(error: Exception, text: str) -> None:
    """Class, text and fields of the errors are the same in another process."""
    again = pickle.loads(pickle.dumps(error))
    assert text == str(error) == str(again)
    assert (type(error), error.args, vars(error)) == (type(again), again.args, vars(again))


@pytest.mark.parametrize("name", ["serial", "thread", "process"])
def test_attach_in_a_task(name: str) -> None:
    """A task may attach by itself, on this machine."""

    def look(x: int) -> float:
        with attach("ones") as handle:
            return float(handle.value.sum()) + x

    shutdown()  # the workers that start now know this test's register
    with share(np.ones(3), name="ones"):
        assert [3.0, 4.0] == on(name, look).map([0, 1])
    shutdown()
