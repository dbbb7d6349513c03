"""What a traceback shows: the user's code with file, line and source, and none of ours."""

import asyncio
import linecache
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import (
    ArgumentError,
    OptionsError,
    Partitioned,
    Reduced,
    SharedTaskError,
    multi_process,
    parallel,
)

Run = Callable[..., str]


def fail(x: int) -> float:
    return 1 / x


def on(backend: str, function: Callable[..., Any], **options: Any) -> Any:
    each: Any = parallel(function)
    return each.with_options(backend=backend, workers=2, **options)


def names(error: BaseException) -> list[str]:
    """The functions of its frames below this test."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)][1:]


WAYS: dict[str, Callable[[Any], Any]] = {
    "map": lambda task: task.map([1, 0]),
    "starmap": lambda task: task.starmap([(1,), (0,)]),
    "imap": lambda task: list(task.imap([1, 0])),
    "imap_unordered": lambda task: list(task.imap_unordered([1, 0])),
    "submit": lambda task: task.submit(0).result(),
    "map_into": lambda task: task.map_into(np.zeros(2), [1, 0]),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_frame_of_ours_stands_before_the_users(backend: str, way: str) -> None:
    """From the line that called the task straight to the lines of the task."""
    with pytest.raises(ZeroDivisionError) as caught:
        WAYS[way](on(backend, fail))
    here = ["fail"] if backend in ("serial", "thread") else []
    assert ["<lambda>", *here] == names(caught.value)


async def awaited(task: Any) -> Any:
    return await task.amap([1, 0])


async def streamed(task: Any) -> None:
    async for _ in task.aimap([1, 0]):
        pass


@pytest.mark.parametrize("way", [awaited, streamed])
def test_no_frame_of_ours_stands_in_a_coroutine(backend: str, way: Callable[..., Any]) -> None:
    """From the coroutine that awaits straight to the lines of the task."""
    with pytest.raises(ZeroDivisionError) as caught:
        asyncio.run(way(on(backend, fail)))
    here = ["fail"] if backend in ("serial", "thread") else []
    assert [way.__name__, *here] == names(caught.value)[-1 - len(here) :]


def fail_in_block(_: int, out: Partitioned[Any]) -> None:
    out[:] = fail(0)


def fail_in_total(_: int, total: Reduced[Any]) -> None:
    total += fail(0)


def test_no_frame_of_ours_stands_where_tasks_write(backend: str) -> None:
    """So it is where tasks write into arrays."""
    here = backend in ("serial", "thread")
    with pytest.raises(ZeroDivisionError) as caught:
        on(backend, fail_in_block).map([0], out=np.zeros(1))
    assert (["fail_in_block", "fail"] if here else []) == names(caught.value)
    with pytest.raises(ZeroDivisionError) as caught:
        on(backend, fail_in_total).map([0], total=np.zeros(1))
    assert (["fail_in_total", "fail"] if here else []) == names(caught.value)


def test_no_frame_of_ours_stands_where_results_are_recorded(backend: str, tmp_path: Path) -> None:
    """So it is of a call that has a journal."""
    with pytest.raises(ZeroDivisionError) as caught:
        on(backend, fail, journal=str(tmp_path / "journal")).map([1, 0])
    assert (["fail"] if backend in ("serial", "thread") else []) == names(caught.value)


@pytest.mark.parametrize("lazily", [True, False])
def test_no_frame_of_ours_stands_in_multi_process(backend: str, *, lazily: bool) -> None:
    """So it is of the function that takes the function."""
    named: Any = {"serial": "seq", "thread": "threadpool", "process": "mp", "ray": "ray"}[backend]
    with pytest.raises(ZeroDivisionError) as caught:
        options: Any = {"lazy_output": lazily}
        multi_process(fail, [1, 0], backend=named, progress=False, **options)
    assert (["fail"] if backend in ("serial", "thread") else []) == names(caught.value)
    with pytest.raises(OptionsError) as refused:
        multi_process(fail, [1], backend=named, workers=-1)
    assert [] == names(refused.value)


def test_error_that_is_handed_over_begins_with_the_users_frames(backend: str) -> None:
    """What is not raised but returned begins with the task as well."""
    task = on(backend, fail)
    here = backend in ("serial", "thread")
    for error in (
        task.submit(0).exception(),
        task.with_options(return_exceptions=True).map([0])[0],
    ):
        assert (["fail"] if here else []) == [
            f.name for f in traceback.extract_tb(error.__traceback__)
        ]


# What type checkers would refuse as well.
untyped: Any = sharedtask

REFUSED: dict[str, Callable[[Any], Any]] = {
    "imap": lambda task: task.imap(5),
    "imap_unordered": lambda task: task.imap_unordered([1], other=2),
    "submit": lambda task: task.submit(1, other=2),
    "amap": lambda task: asyncio.run(task.amap(5)),
    "with_options": lambda task: task.with_options(workers=-1),
    "explain": lambda task: task.explain(other=2),
    "parallel": lambda _: untyped.parallel(worker=2),
    "parallel of a function": lambda _: untyped.parallel(5),
    "parallel of parameters": lambda _: untyped.parallel(shared=["other"])(fail),
    "share": lambda _: untyped.share(threading.Lock()),
    "attach": lambda _: untyped.attach("of-no-value"),
    "defaults": lambda _: untyped.defaults(worker=2),
    "register": lambda _: untyped.register(int, None),
    "handle": lambda _: closed().value,
}


def closed() -> Any:
    handle = sharedtask.share([1])
    handle.close()
    return handle


@pytest.mark.parametrize("way", REFUSED)
def test_refusal_shows_one_frame_of_ours_at_most(way: str) -> None:
    """The last frame is the method that was called, or the line that calls it."""
    with pytest.raises(SharedTaskError) as caught:
        REFUSED[way](on("serial", fail))
    trace = traceback.walk_tb(caught.value.__traceback__)
    ours = [f for f, _ in trace if f.f_globals["__name__"].startswith("sharedtask.")]
    assert len(ours) <= 1


def test_refusal_shows_the_call_alone() -> None:
    """What is refused at the call is refused at its line."""
    with pytest.raises(ArgumentError) as caught:
        on("serial", fail).map([1], other=2)
    assert [] == names(caught.value)


INTERRUPTED = """
import os, signal, sys, threading, time
from sharedtask import parallel

def nap(x):
    print("runs", flush=True)
    time.sleep(60)

task = parallel(nap).with_options(backend=sys.argv[1], workers=2)
signal.signal(signal.SIGINT, signal.default_int_handler)
WAY
"""


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize(
    "way", ["task.map(range(4))", "list(task.imap(range(4)))", "task.submit(1).result()"]
)
def test_ctrl_c_shows_the_call_alone(script: Callable[..., Any], backend: str, way: str) -> None:
    """A Ctrl-C that ends a wait of ours is shown at the line of the user's call."""
    ran = script(INTERRUPTED.replace("WAY", way), backend)
    ran.wait_for("runs")
    os.kill(ran.pid, signal.SIGINT)
    ran.end(30)
    frames = [line for line in ran.err.splitlines() if line.startswith("  File ")]
    assert [", in <module>"] == [line[line.index(", in") :] for line in frames], ran.err
    assert ran.err.endswith("KeyboardInterrupt\n")


def test_input_that_fails_shows_its_own_lines(backend: str) -> None:
    """An error of the iterator of items begins there."""

    def source() -> Iterator[int]:
        yield 1
        raise KeyError("source")

    with pytest.raises(KeyError) as caught:
        on(backend, fail).map(source())
    assert ["source"] == names(caught.value)


def test_variable_shows_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """SHAREDTASK_TRACEBACKS=full is for those who look for a fault of ours."""
    monkeypatch.setenv("SHAREDTASK_TRACEBACKS", "full")
    with pytest.raises(ZeroDivisionError) as caught:
        on("serial", fail).map([0])
    assert {"map", "collect", "raise_failure", "fail"} < set(names(caught.value))


def test_fault_of_ours_keeps_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that no task and no refusal explains shows where it comes from."""
    monkeypatch.setattr("sharedtask.task.run.Run.advance", lambda _: [].missing)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError) as caught:
        on("serial", fail).map([0])
    assert "<lambda>" == names(caught.value)[-1]


# ------------------------------------------------------------------------------ in a worker

SCRIPT = """
import sys, warnings, inspect
from sharedtask import parallel

class Model:
    def ratio(self, x):
        return 1 / x  # the line of the method

def task(x):
    return Model().ratio(x)

def look(x):
    warnings.simplefilter("always")
    warnings.warn("seen")
    return inspect.getsource(look), sys._getframe().f_code.co_filename

if __name__ == "__main__":
    try:
        parallel(task).with_options(backend="process").map([1, 0])
    except ZeroDivisionError as error:
        print(error.__cause__)
    (source, file), = parallel(look).with_options(backend="process").map([0])
    print(source, file == __file__)
"""


def test_function_of_a_script_shows_file_line_and_source(script: Callable[..., Any]) -> None:
    """Tracebacks, warnings and ``inspect`` in a worker find the lines of the script."""
    ran = script(SCRIPT)
    assert 0 == ran.end(60), ran.err
    assert "in ratio\n    return 1 / x  # the line of the method\n" in ran.out
    assert "in task\n    return Model().ratio(x)\n" in ran.out
    assert 'warnings.warn("seen")\n' in ran.out
    assert ran.out.endswith("True\n")
    assert "script_0.py:14: UserWarning: seen" in ran.err
    assert "dynamic" not in ran.out + ran.err


@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
def test_cell_shows_its_source(backend: str) -> None:
    """Code without a file, as in a notebook, shows the text that its compiler knows."""
    name, text = "<cell 7>", "def task(x):\n    return 1 / x  # of a cell\n"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    found: dict[str, Any] = {}
    exec(compile(text, name, "exec"), found)
    found["task"].__module__ = "__main__"
    try:
        with pytest.raises(ZeroDivisionError) as caught:
            on(backend, found["task"]).map([0])
    finally:
        del linecache.cache[name]
    told = str(caught.value.__cause__)
    assert f'File "{name}", line 2, in task\n    return 1 / x  # of a cell' in told
