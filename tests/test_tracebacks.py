"""What a traceback shows: the user's code with file, line and source, and none of ours."""

import linecache
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sharedtask import ArgumentError, parallel

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
}


@pytest.mark.parametrize("way", WAYS)
def test_no_frame_of_ours_stands_before_the_users(backend: str, way: str) -> None:
    """From the line that called the task straight to the lines of the task."""
    with pytest.raises(ZeroDivisionError) as caught:
        WAYS[way](on(backend, fail))
    here = ["fail"] if backend in ("serial", "thread") else []
    assert ["<lambda>", *here] == names(caught.value)


def test_refusal_shows_the_call_alone() -> None:
    """What is refused at the call is refused at its line."""
    with pytest.raises(ArgumentError) as caught:
        on("serial", fail).map([1], other=2)
    assert [] == names(caught.value)


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
