"""``PerWorker``: a value that each worker makes once, keeps and closes, on each backend."""

import contextlib
import gc
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import (
    ArgumentError,
    CopyOnWrite,
    DefinitionError,
    PerWorker,
    Reduced,
    Shared,
    UnshareableError,
    parallel,
    per_worker,
    worker_info,
)

LOCAL = ("serial", "thread")


def note(folder: str, what: str) -> None:
    """Write a line into the file of this worker: a process, and a thread of it."""
    with open(Path(folder, f"{os.getpid()}-{threading.get_ident()}"), "a") as file:
        file.write(f"{what}\n")


def noted(folder: Path) -> dict[str, list[str]]:
    return {file.name: file.read_text().split() for file in folder.iterdir()}


def lines(folder: Path) -> list[str]:
    return sorted(line for found in noted(folder).values() for line in found)


def wait_for(what: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


class Tool:
    """Belongs to the process that made it, and to its thread."""

    def __init__(self, folder: str, name: str = "a") -> None:
        self.folder, self.name = folder, name
        self.lock = threading.Lock()  # it cannot be pickled
        self.used = 0
        note(folder, f"made-{name}")

    def use(self) -> tuple[int, int]:
        self.used += 1
        return id(self), self.used

    def close(self) -> None:
        note(self.folder, f"closed-{self.name}")


@parallel(workers=2, chunksize=1)
def use(item: int, tool: PerWorker[Tool]) -> tuple[int, int]:
    time.sleep(0.005)
    return tool.use()


def made_and_closed(folder: Path) -> tuple[int, int]:
    found = lines(folder)
    return sum(x.startswith("made") for x in found), sum(x.startswith("closed") for x in found)


# -------------------------------------------------------------------------- made and kept


def test_each_worker_makes_its_own_once_and_keeps_it(backend: Any, tmp_path: Path) -> None:
    """Items and calls that follow get the same object, with what was done to it."""
    task = use.with_options(backend=backend)
    found = [task.map(range(6), tool=per_worker(Tool, str(tmp_path))) for _ in range(3)]
    workers = noted(tmp_path)
    assert (1 if backend == "serial" else 2) >= len(workers)
    assert {("made-a",)} == {tuple(lines) for lines in workers.values()}
    assert 18 == sum(len(each) for each in found)
    counts = sorted(used for each in found for _, used in each)
    assert 18 >= max(counts) >= 18 // len(workers)


def test_every_kind_of_call_has_it(backend: Any, tmp_path: Path) -> None:
    """submit, imap, starmap and map_into get the value of their worker."""
    task, folder = use.with_options(backend=backend), str(tmp_path)
    task.submit(1, tool=per_worker(Tool, folder)).result()
    list(task.imap(range(3), tool=per_worker(Tool, folder)))
    list(task.imap_unordered(range(3), tool=per_worker(Tool, folder)))
    task.starmap([(1,), (2,)], tool=per_worker(Tool, folder))
    assert {1} == {len(lines) for lines in noted(tmp_path).values()}


@parallel(workers=2)
def add(
    item: int,
    table: Shared[np.ndarray],
    scratch: CopyOnWrite[np.ndarray],
    total: Reduced[np.ndarray],
    tool: PerWorker[Tool],
    factor: int = 2,
) -> int:
    total += table[item] * factor
    scratch[0] = tool.use()[1]
    return int(scratch[0])


@pytest.mark.parametrize("strict", [True, "auto"])
def test_it_stands_beside_other_roles(backend: Any, tmp_path: Path, strict: Any) -> None:
    """Shared values are checked, blocks and totals written as without it."""
    total = np.zeros(2)
    found = add.with_options(backend=backend, strict=strict).map(
        range(6),
        table=np.ones((6, 2)),
        scratch=np.zeros(3),
        total=total,
        tool=per_worker(Tool, str(tmp_path)),
        factor=3,
    )
    assert [18.0, 18.0] == total.tolist()
    assert 0 not in found


class Store:
    def __init__(self, rows: int) -> None:
        self.rows = rows

    @parallel(workers=2)
    def get(self, item: int, tool: PerWorker[Tool]) -> tuple[int, bool]:
        return self.rows * item, tool.lock.locked()


def test_method_has_it(backend: Any, tmp_path: Path) -> None:
    """The object of a method travels, the value is made beside it."""
    task = Store(3).get.with_options(backend=backend)
    assert [(0, False), (3, False)] == task.map(range(2), tool=per_worker(Tool, str(tmp_path)))


def test_nothing_is_made_where_no_item_runs(backend: Any, tmp_path: Path) -> None:
    """Not in the caller, not for an empty map, not in workers that get no item."""
    task = use.with_options(backend=backend)
    assert [] == task.map([], tool=per_worker(Tool, str(tmp_path)))
    assert {} == noted(tmp_path)
    task.map([1], tool=per_worker(Tool, str(tmp_path)))
    assert ["made-a"] == lines(tmp_path)


# ------------------------------------------------------------------------------- closed


def test_other_arguments_make_a_new_one_and_close_the_old_one(backend: Any, tmp_path: Path) -> None:
    """Equal arguments mean the same value, however they were built; a changed one does not."""
    task, folder = use.with_options(backend=backend, workers=1), str(tmp_path)
    for name in ("a", str(b"a", "ascii"), "b"):
        task.map(range(2), tool=per_worker(Tool, folder, name))
    wait_for(lambda: lines(tmp_path).count("made-a") == lines(tmp_path).count("closed-a"))
    for found in noted(tmp_path).values():  # made and closed by one thread
        assert found in (["made-a", "closed-a", "made-b"], ["made-a", "closed-a"], ["made-b"])


def test_array_that_changes_makes_a_new_one(backend: Any, tmp_path: Path) -> None:
    """Arguments are compared by their contents, as shared values are."""
    task = total.with_options(backend=backend, workers=1)
    rows = np.arange(10_000)
    first = task.map([1], tool=per_worker(Index, str(tmp_path), rows))
    assert first == task.map([1], tool=per_worker(Index, str(tmp_path), rows.copy()))
    rows[0] = 7
    assert [first[0] + 7] == task.map([1], tool=per_worker(Index, str(tmp_path), rows))
    assert 2 >= max(map(len, noted(tmp_path).values()))


class Index:
    def __init__(self, folder: str, rows: Any) -> None:
        note(folder, "made")
        self.rows = rows


@parallel
def total(item: int, tool: PerWorker[Index]) -> int:
    return int(tool.rows.sum())


def test_value_is_closed_when_its_task_is_dropped(backend: Any, tmp_path: Path) -> None:
    """Soon after the last reference to the task is gone, in all workers."""

    def local(item: int, tool: PerWorker[Tool]) -> int:
        time.sleep(0.005)
        return tool.use()[1]

    task = parallel(backend=backend, workers=2, chunksize=1)(local)
    task.map(range(6), tool=per_worker(Tool, str(tmp_path)))
    made, _ = made_and_closed(tmp_path)
    del task
    gc.collect()
    wait_for(lambda: (made, made) == made_and_closed(tmp_path))


def test_copy_with_other_options_is_the_same_task(backend: Any, tmp_path: Path) -> None:
    """Values live as long as one of a task and its copies."""
    for workers in (1, 2, 1):
        task = use.with_options(backend=backend, workers=workers)
        task.map(range(4), tool=per_worker(Tool, str(tmp_path)))
    assert {("made-a",)} == {tuple(lines) for lines in noted(tmp_path).values()}


def test_values_are_closed_when_workers_end(backend: Any, tmp_path: Path) -> None:
    """``shutdown()`` ends them, in good order."""
    if backend == "ray":
        pytest.skip("Ray goes on: its workers close their values when Ray ends them")
    use.with_options(backend=backend).map(range(6), tool=per_worker(Tool, str(tmp_path)))
    sharedtask.shutdown()
    made, closed = made_and_closed(tmp_path)
    assert made == closed
    assert 1 <= made


def test_worker_that_is_replaced_closes_its_value(tmp_path: Path) -> None:
    """Each of the workers of ``tasks_per_worker`` has a value, and closes it when it goes."""
    task = use.with_options(backend="process", tasks_per_worker=2)
    task.map(range(6), tool=per_worker(Tool, str(tmp_path)))
    assert 3 <= made_and_closed(tmp_path)[0]
    sharedtask.shutdown()
    wait_for(lambda: made_and_closed(tmp_path)[0] == made_and_closed(tmp_path)[1])


@parallel(workers=1, chunksize=1, return_exceptions=True)
def die(item: int, tool: PerWorker[Tool]) -> int:
    if item == 1:
        os._exit(3)
    return tool.use()[1]


def test_successor_of_a_dead_worker_makes_its_own(tmp_path: Path) -> None:
    """A worker that dies takes its value with it, unclosed; the next one makes another."""
    found = die.with_options(backend="process").map(range(4), tool=per_worker(Tool, str(tmp_path)))
    assert [1, 1, 2] == [found[0], found[2], found[3]]
    assert ["made-a", "made-a"] == lines(tmp_path)


PROGRAM = """
import sys
from sharedtask import PerWorker, parallel, per_worker, worker_info

class Tool:
    def __init__(self, path):
        self.path = path
    def close(self):
        with open(self.path, "a") as file:
            file.write("closed ")

@parallel(backend=sys.argv[1], workers=2)
def use(item, tool: PerWorker[Tool]):
    return tool.path

if __name__ == "__main__":
    use.map(range(2), tool=per_worker(Tool, sys.argv[2]))
"""


@pytest.mark.parametrize("backend", ["serial", "thread", "process"])
def test_values_are_closed_at_the_end_of_the_program(backend: Any, tmp_path: Path) -> None:
    """A program need not say so."""
    script, path = tmp_path / "program.py", tmp_path / "notes"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), backend, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "" == ended.stderr
    assert {"closed"} == set(path.read_text().split())


# ------------------------------------------------------------------- what is made and how


@contextlib.contextmanager
def opened(folder: str) -> Iterator[str]:
    note(folder, "entered")
    try:
        yield "the value"
    finally:
        note(folder, "left")


@parallel(workers=1)
def show(item: int, value: PerWorker[str]) -> str:
    return value


def test_context_manager_is_entered_and_left(backend: Any, tmp_path: Path) -> None:
    """The task gets what ``with`` would give, and the block ends when the value is closed."""
    task = show.with_options(backend=backend)
    assert ["the value"] == task.map([1], value=per_worker(opened, str(tmp_path)))
    task.map([1], value=per_worker(str, "other"))
    wait_for(lambda: ["entered", "left"] == lines(tmp_path))


def test_close_of_the_user_counts(backend: Any, tmp_path: Path) -> None:
    """``close=`` replaces the method of the value."""
    task, folder = use.with_options(backend=backend, workers=1), str(tmp_path)
    task.map([1], tool=per_worker(Tool, folder, close=lambda tool: note(tool.folder, "mine")))
    task.map([1], tool=per_worker(Tool, folder, "b"))
    wait_for(lambda: "mine" in lines(tmp_path))
    assert ["made-a", "made-b", "mine"] == lines(tmp_path)


@parallel(workers=2, chunksize=1)
def count_rows(item: int, db: PerWorker[sqlite3.Connection]) -> int:
    (count,) = db.execute("select count(*) from rows where id <= ?", (item,)).fetchone()
    return int(count)


def test_database(backend: Any, tmp_path: Path) -> None:
    """A connection that belongs to its thread is used, closed and replaced there."""
    paths = [str(tmp_path / name) for name in ("one", "two")]
    for size, path in zip((3, 5), paths, strict=True):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("create table rows (id integer)")
            db.executemany("insert into rows values (?)", [(k,) for k in range(size)])
            db.commit()
    task = count_rows.with_options(backend=backend)
    for size, path in ((3, paths[0]), (5, paths[1]), (3, paths[0])):
        assert [size] * 4 == task.map([9] * 4, db=per_worker(sqlite3.connect, path))


@parallel(workers=2)
def search(
    text: str, patterns: PerWorker[dict[str, re.Pattern[str]]], *, limit: int = 9
) -> list[str]:
    return [name for name, pattern in patterns.items() if pattern.search(text)][:limit]


def test_lambda_of_the_caller_makes_it(backend: Any) -> None:
    """A factory may be a closure; it is sent, and what it makes is not."""
    words = {"a number": r"\d", "a capital": "[A-Z]"}
    task = search.with_options(backend=backend)
    compiled = per_worker(lambda: {name: re.compile(word) for name, word in words.items()})
    assert [["a number"], ["a capital"]] == task.map(["3", "X"], patterns=compiled)


def number_of_worker() -> tuple[int, int]:
    info = worker_info()
    return (-1, 0) if info is None else (info.number, info.pid)


@parallel(workers=2, chunksize=1)
def choose(item: int, device: PerWorker[tuple[int, int]]) -> tuple[tuple[int, int], Any]:
    time.sleep(0.005)
    return device, worker_info()


def test_factory_knows_its_worker(backend: Any) -> None:
    """``worker_info()`` in the factory is that of the items."""
    for device, info in choose.with_options(backend=backend).map(
        range(6), device=per_worker(number_of_worker)
    ):
        assert (info.number, info.pid) == device
    assert ((-1, 0), None) == choose(1, device=per_worker(number_of_worker))


def test_direct_call_makes_and_closes_it(tmp_path: Path) -> None:
    """A direct call has a value of its own, closed when it returns or raises."""
    use(1, tool=per_worker(Tool, str(tmp_path)))
    use(1, per_worker(Tool, str(tmp_path), "b"))  # type: ignore[arg-type,unused-ignore]
    assert ["closed-a", "closed-b", "made-a", "made-b"] == lines(tmp_path)
    tool = Tool(str(tmp_path), "c")
    assert (id(tool), 1) == use(1, tool=tool)
    assert "closed-c" not in lines(tmp_path)


@parallel(workers=2)
def outer(item: int, folder: str) -> list[tuple[int, int]]:
    return use.map(range(2), tool=per_worker(Tool, folder))


def test_map_within_a_task_has_it(backend: Any, tmp_path: Path) -> None:
    """The worker of the outer task makes one, and keeps it for its next inner map."""
    outer.with_options(backend=backend).map(range(4), folder=str(tmp_path))
    if backend != "serial":  # where the inner map has workers
        assert {("made-a",)} == {tuple(lines) for lines in noted(tmp_path).values()}


# ---------------------------------------------------------------------------------- errors


def broken(folder: str) -> Tool:
    note(folder, "tried")
    raise ConnectionError("no database there")


def test_error_of_a_factory_is_told_at_the_items(backend: Any, tmp_path: Path) -> None:
    """As itself, with notes that name parameter and item; a worker tries once in a call."""
    task = use.with_options(backend=backend)
    with pytest.raises(ConnectionError, match="no database there") as caught:
        task.map(range(4), tool=per_worker(broken, str(tmp_path)))
    notes = ["while 'tool' of use() was made in a worker", "in use(), item 0"]
    assert notes == caught.value.__notes__


@pytest.mark.parametrize("retries", [0, 1])
def test_factory_that_fails_is_called_once_in_a_call(
    backend: Any, tmp_path: Path, retries: int
) -> None:
    """All items that needed it have its error; for ``retries`` it is called again."""
    task = use.with_options(backend=backend, return_exceptions=True, retries=retries)
    errors = task.map(range(4), tool=per_worker(broken, str(tmp_path)))
    assert [ConnectionError] * 4 == list(map(type, errors))
    tries = [len(found) for found in noted(tmp_path).values()]
    if retries:
        assert 8 == sum(tries)
    else:
        assert {1} == set(tries)


class Stuck(Tool):
    def close(self) -> None:
        raise OSError("cannot be closed")


@pytest.mark.parametrize("backend", ["serial", "thread", "process"])
def test_error_of_closing_is_printed(
    backend: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No call is there that could raise it: it stands on stderr, with the name of the value."""
    task = use.with_options(backend=backend, workers=1)
    task.map([1], tool=per_worker(Stuck, str(tmp_path)))
    task.map([1], tool=per_worker(Tool, str(tmp_path)))
    told: list[str] = []

    def is_told() -> bool:
        told.append(capfd.readouterr().err)
        return "OSError: cannot be closed" in "".join(told)

    wait_for(is_told)
    assert "Exception ignored while closing 'tool' of use(), made by Stuck(...)" in "".join(told)


def test_value_instead_of_a_recipe_is_refused(backend: Any, tmp_path: Path) -> None:
    """A ready value cannot be sent to workers, and the error says what to pass."""
    task = use.with_options(backend=backend)
    with pytest.raises(ArgumentError) as caught:
        task.map([1], tool=Tool(str(tmp_path)))
    said = (
        "use(): 'tool' is PerWorker, and got a Tool. Say how each worker makes its own:"
        " tool=per_worker(function, *args)."
    )
    assert said == str(caught.value)


@parallel(workers=2)
def plain(item: int, table: Shared[Any] = None, other: Any = None) -> None: ...


@pytest.mark.parametrize("name", ["table", "other"])
def test_recipe_for_another_parameter_is_refused(backend: Any, name: str) -> None:
    """Only a parameter that is annotated so can take it."""
    said = (
        f"'{name}' got per_worker(list, ...), which is for a parameter that is annotated PerWorker"
    )
    task = plain.with_options(backend=backend)
    for call in (
        lambda: task.map([1], **{name: per_worker(list)}),
        lambda: plain(1, **{name: per_worker(list)}),
    ):
        with pytest.raises(ArgumentError, match=re.escape(said)):
            call()


def test_recipe_within_a_container_is_refused() -> None:
    """It cannot be pickled, and says what it is for."""
    with pytest.raises(
        Exception, match="is for a parameter of its own that is annotated PerWorker"
    ):
        plain.with_options(backend="process").map([1], other=[per_worker(list)])


@pytest.mark.parametrize(
    ("given", "said"), [((3,), "factory must be a callable, got 3"), ((list, None), None)]
)
def test_factory_is_checked(given: Any, said: str | None) -> None:
    """What cannot be called is refused where it is given."""
    if said is not None:
        with pytest.raises(ArgumentError, match=said):
            per_worker(*given)
    with pytest.raises(ArgumentError, match="close must be a callable, got 3"):
        per_worker(list, close=3)  # type: ignore[arg-type]


def test_arguments_that_cannot_be_sent_are_named(backend: Any) -> None:
    """They have to pickle on each backend."""
    with pytest.raises(UnshareableError, match=r"use\(\): 'tool' cannot be shared"):
        use.with_options(backend=backend).map([1], tool=per_worker(Tool, threading.Lock()))


def test_optional_value_may_be_left_out(backend: Any, tmp_path: Path) -> None:
    """None is passed where the annotation allows it."""
    task = may_use.with_options(backend=backend)
    assert [False] == task.map([1])
    assert [False] == task.map([1], tool=None)
    assert [True] == task.map([1], tool=per_worker(Tool, str(tmp_path)))


@parallel
def may_use(item: int, tool: PerWorker[Tool] | None = None) -> bool:
    return tool is not None


def test_declarations_that_cannot_work_are_refused() -> None:
    """The item, ``self``, a recipe as default, and two roles are errors at the decorator."""
    with pytest.raises(DefinitionError, match="'item' takes the item"):

        @parallel
        def on_item(item: PerWorker[Tool]) -> None: ...

    nothing: list[int] = per_worker(list)
    with pytest.raises(DefinitionError, match=r"'tool' has per_worker\(list, ...\) as default"):

        @parallel
        def with_default(item: int, tool: PerWorker[list[int]] = nothing) -> None: ...

    with pytest.raises(DefinitionError, match="'tool' is both PerWorker and Shared"):

        @parallel(shared=["tool"])
        def two_roles(item: int, tool: PerWorker[Tool]) -> None: ...

    with pytest.raises(DefinitionError, match="'self' is what the method is called on"):

        class _Owner:
            @parallel(per_worker=["self"])
            def method(self, item: int) -> None: ...


def test_list_of_the_decorator_says_the_same(backend: Any, tmp_path: Path) -> None:
    """``per_worker=["tool"]`` is the annotation of a function that has none."""
    task = parallel(per_worker=["tool"], backend=backend)(lambda item, tool: tool.use()[1])
    assert [1] == task.map([1], tool=per_worker(Tool, str(tmp_path)))


def test_type_that_belongs_to_a_process_is_allowed() -> None:
    """What can never be shared is what it is for."""

    @parallel
    def number_of(item: int, lock: PerWorker[socket.socket]) -> int:
        return lock.fileno()

    (number,) = number_of.with_options(backend="serial").map([1], lock=per_worker(socket.socket))
    assert 0 < number


def test_explain_tells_of_it(tmp_path: Path) -> None:
    """A row says that it is made in each worker."""
    told = use.explain(tool=per_worker(Tool, str(tmp_path)))
    assert ("tool", "once per worker") == (told.rows[0].path, told.rows[0].travels)
    assert "-- PerWorker" in str(told)
