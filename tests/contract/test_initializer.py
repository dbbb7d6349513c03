"""``initializer=`` and ``worker_info()``: on each backend the same."""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

from sharedtask import OptionsError, TaskFuture, WorkerInfo, parallel, worker_info

LOCAL = ("serial", "thread")


def me() -> tuple[int, int]:
    """The worker: its process, and its thread, for those of one process."""
    return os.getpid(), threading.get_ident()


def note(folder: str, what: str) -> None:
    """Write a line into the file of this worker."""
    with open(Path(folder, "-".join(map(str, me()))), "a") as file:
        file.write(f"{what}\n")


def noted(folder: Path) -> dict[tuple[int, ...], list[str]]:
    files = list(folder.iterdir())
    return {tuple(map(int, file.name.split("-"))): file.read_text().split() for file in files}


def set_up(folder: str) -> None:
    note(folder, "set-up")


@parallel(workers=2, chunksize=1)
def visit(item: int, folder: str) -> tuple[int, int]:
    note(folder, "item")
    time.sleep(0.005)
    return me()


def test_initializer_runs_once_in_each_worker_before_its_first_item(
    backend: Any, tmp_path: Path
) -> None:
    """Each worker of the task calls it once, whatever number of calls follow."""
    task = visit.with_options(backend=backend, initializer=(set_up, (str(tmp_path),)))
    for _ in range(3):
        task.map(range(6), folder=str(tmp_path))
    found = noted(tmp_path)
    assert 18 == sum(lines.count("item") for lines in found.values())
    assert {("set-up", 1)} == {(lines[0], lines.count("set-up")) for lines in found.values()}


def test_initializer_runs_in_every_kind_of_call(backend: Any, tmp_path: Path) -> None:
    """submit, imap, starmap and map_into set their workers up as map does, and once together."""
    task = visit.with_options(backend=backend, initializer=(set_up, [str(tmp_path)]))
    folder = str(tmp_path)
    futures: list[TaskFuture[Any]] = [task.submit(item, folder=folder) for item in range(3)]
    workers = {future.result() for future in futures}
    workers.update(task.imap(range(3), folder=folder))
    workers.update(task.starmap([(3,), (4,)], folder=folder))
    found = noted(tmp_path)
    assert workers == set(found)
    assert {("set-up", 1)} == {(lines[0], lines.count("set-up")) for lines in found.values()}


def test_nothing_is_set_up_where_no_item_runs(backend: Any, tmp_path: Path) -> None:
    """An empty map calls no initializer, nor does a direct call: it is no worker."""
    task = visit.with_options(backend=backend, initializer=(set_up, (str(tmp_path),)))
    assert [] == task.map([], folder=str(tmp_path))
    task(1, folder=str(tmp_path))
    assert [["item"]] == list(noted(tmp_path).values())


def note_set_up(folder: str, name: str) -> None:
    note(folder, name)


@parallel(workers=1)
def visit_after(_item: int, folder: str, name: str) -> None:
    note(folder, f"item-after-{name}")


def test_other_initializer_runs_again(backend: Any, tmp_path: Path) -> None:
    """An equal one is the same; one with other arguments is run, and so is the first one then."""
    folder = str(tmp_path)
    for name in ("first", "first", "second", "first"):
        initializer = (note_set_up, (folder, name))
        task = visit_after.with_options(backend=backend, initializer=initializer)
        task.map(range(2), folder=folder, name=name)
    by_worker = noted(tmp_path)
    for lines in by_worker.values():
        current = ""
        for line in lines:
            if line.startswith("item-after-"):
                assert f"item-after-{current}" == line
            else:
                current = line
    every = [line for lines in by_worker.values() for line in lines]
    set_up = [line for line in every if not line.startswith("item-after-")]
    assert 8 == len(every) - len(set_up)
    if len(by_worker) == 1:
        assert ["first", "second", "first"] == set_up
    else:  # a call finds any of the threads that others have left: each call sets up at most one
        assert ["first", "second"] == sorted(set(set_up))
        assert 4 >= len(set_up)


@parallel(workers=2, chunksize=1)
def look(item: int) -> tuple[str | None, str]:
    return os.environ.get("SET_UP"), np.geterr()["divide"]


def change_settings() -> None:
    os.environ["SET_UP"] = "done"
    np.seterr(divide="raise")


def test_settings_last_for_all_calls(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the caller at each call, as the environment does, keeps what was set."""
    monkeypatch.setenv("SET_UP", "not yet")
    with np.errstate():
        task = look.with_options(backend=backend, initializer=change_settings)
        for _ in range(3):
            assert [("done", "raise")] * 4 == task.map(range(4))
    if backend not in LOCAL:  # there the environment is that of the program
        assert [("not yet", "warn")] * 4 == look.with_options(backend=backend).map(range(4))


def remove_and_print_less() -> None:
    os.environ.pop("REMOVED", None)
    np.set_printoptions(precision=3)


@parallel(workers=1)
def settings(_: int) -> tuple[str | None, int, list[str]]:
    return os.environ.get("REMOVED"), np.get_printoptions()["precision"], sys.argv


@pytest.mark.parametrize("apart", ["process", "ray"])
def test_what_an_initializer_leaves_alone_follows_the_caller(
    apart: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that it removes stays away; arguments of the program are those of the caller."""
    if apart == "ray":
        request.getfixturevalue("ray_runtime")
    task = settings.with_options(backend=apart, initializer=remove_and_print_less)
    for value in ("first", "second"):
        monkeypatch.setenv("REMOVED", value)
        monkeypatch.setattr(sys, "argv", [value])
        assert [(None, 3, [value])] == task.map([0])


def use_one_thread() -> None:
    threadpoolctl.threadpool_limits(1)


@parallel
def threads(item: int) -> int:
    np.ones((8, 8)) @ np.ones((8, 8))
    return max(int(info["num_threads"]) for info in threadpoolctl.threadpool_info())


def test_number_of_threads_lasts_where_other_calls_have_others() -> None:
    """A worker limits numerical libraries at each call with another share of the CPUs."""
    alone = threads.with_options(backend="process", workers=1, initializer=use_one_thread)
    for _ in range(2):
        assert [1] == alone.map([1])
        threads.with_options(backend="process", workers=2).map(range(8))


def fail(folder: str) -> None:
    note(folder, "tried")
    raise LookupError("no such device")


def test_error_of_an_initializer_is_told_at_the_item(backend: Any, tmp_path: Path) -> None:
    """It is raised as itself, with notes that name the initializer and the item."""
    task = visit.with_options(backend=backend, initializer=(fail, (str(tmp_path),)))
    with pytest.raises(LookupError, match="no such device") as caught:
        task.map(range(4), folder=str(tmp_path))
    assert ["in the initializer of visit()", "in visit(), item 0"] == caught.value.__notes__


@pytest.mark.parametrize("retries", [0, 1])
def test_initializer_that_fails_is_tried_once_in_a_call(
    backend: Any, tmp_path: Path, retries: int
) -> None:
    """All items that needed it have its error; for ``retries`` it is called again."""
    task = visit.with_options(
        backend=backend, initializer=(fail, (str(tmp_path),)), retries=retries
    )
    errors = task.with_options(return_exceptions=True).map(range(4), folder=str(tmp_path))
    assert [LookupError] * 4 == list(map(type, errors))
    tries = [len(lines) for lines in noted(tmp_path).values()]
    if retries:
        assert 8 == sum(tries)
    else:
        assert {1} == set(tries)


def test_call_after_a_failed_one_tries_again(backend: Any, tmp_path: Path) -> None:
    """A worker that could not be set up is set up by the next call."""
    flag = tmp_path / "flag"

    def once_there() -> None:
        if not flag.exists():
            raise FileNotFoundError(flag)

    task = visit.with_options(backend=backend, initializer=once_there)
    (tmp_path / "notes").mkdir()
    with pytest.raises(FileNotFoundError):
        task.map(range(4), folder=str(tmp_path / "notes"))
    flag.touch()
    assert 4 == len(task.map(range(4), folder=str(tmp_path / "notes")))


def test_worker_that_replaces_another_is_set_up(tmp_path: Path) -> None:
    """Recycled and killed workers have successors, which are set up like them."""
    task = visit.with_options(
        backend="process", initializer=(set_up, (str(tmp_path),)), tasks_per_worker=2
    )
    task.map(range(6), folder=str(tmp_path))
    assert 3 <= len(noted(tmp_path))
    assert {"set-up"} == {lines[0] for lines in noted(tmp_path).values()}


def test_initializer_that_cannot_be_sent_is_named(backend: Any) -> None:
    """It has to pickle on each backend, and the error says so before anything runs."""
    lock = threading.Lock()
    task = visit.with_options(backend=backend, initializer=(set_up, (lock,)))
    with pytest.raises(TypeError, match=r"visit\(\): 'initializer=' cannot be shared"):
        task.map([1], folder="")


@pytest.mark.parametrize(
    "given", [3, "set_up", (set_up,), (set_up, 3), (set_up, "x"), [set_up, ()], (set_up, (), {})]
)
def test_what_is_no_initializer_is_refused(given: Any) -> None:
    """A callable, or a pair of one and its arguments: anything else is an error at its line."""
    with pytest.raises(OptionsError, match="initializer must be a callable without arguments"):
        visit.with_options(initializer=given)


# ------------------------------------------------------------------------------ worker_info


@parallel(workers=2, chunksize=1)
def info(item: int) -> WorkerInfo | None:
    time.sleep(0.005)
    return worker_info()


def test_worker_info_tells_the_worker(backend: Any) -> None:
    """Numbers are unique and begin with 0; outside of a worker there is none."""
    found = info.with_options(backend=backend).map(range(12))
    workers = 1 if backend == "serial" else 2
    assert set(range(workers)) >= {each.number for each in found if each}
    assert {(workers, backend, os.uname().nodename)} == {
        (each.count, each.backend, each.node) for each in found if each
    }
    pids = {each.number: each.pid for each in found if each}
    assert (backend in LOCAL) == (os.getpid() in pids.values())
    assert backend in LOCAL or len(pids) == len(set(pids.values()))
    assert worker_info() is None
    assert info(0) is None


@parallel(workers=2)
def nested(item: int) -> tuple[WorkerInfo | None, list[WorkerInfo | None]]:
    return worker_info(), info.map(range(2))


def test_map_within_a_task_is_in_its_worker(backend: Any) -> None:
    """Its items run in the worker of the task, and have its number."""
    for outer, inner in nested.with_options(backend=backend).map(range(4)):
        if backend == "serial":
            continue  # its tasks may use workers of their own
        assert [outer] * 2 == inner


def test_successor_has_the_number_of_a_worker() -> None:
    """Numbers stay below the count, however many workers were replaced."""
    found = info.with_options(backend="process", tasks_per_worker=1).map(range(8))
    assert 8 == len({each.pid for each in found if each})
    assert {0, 1} >= {each.number for each in found if each}
