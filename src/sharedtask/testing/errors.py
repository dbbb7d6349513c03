# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Exceptions of tasks, as the caller gets them."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sharedtask import SharedTaskError, UnshareableError

from .tasks import (
    TwoArgumentsError,
    count_up,
    counted,
    drained,
    fail_on,
    notes_of,
    on_backend,
    power,
    square,
    whole_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt


def _count_then_fail(k: int, folder: str, bad: int) -> int:
    count_up(folder, k)
    if k == bad:
        raise KeyError(k)
    return k


def _interrupt(x: int, bad: int, error: type[BaseException]) -> int:
    if x == bad:
        raise error
    return x


class KeywordOnlyError(Exception):
    """An error whose ``__init__`` takes keywords."""

    def __init__(self, *, place: str) -> None:
        super().__init__()
        self.place = place

    def __str__(self) -> str:
        return f"at {self.place}"


class WithArrayError(ValueError):
    """An error that carries data."""

    def __init__(self, text: str, data: npt.NDArray[Any]) -> None:
        super().__init__(text)
        self.data = data


class LockedError(Exception):
    """An error with an unpicklable attribute."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


ERRORS: dict[str, Callable[[], Exception]] = {
    "ValueError": lambda: ValueError("wrong", 3),
    "KeyError": lambda: KeyError("name"),
    "OSError": lambda: FileNotFoundError(2, "No such file", "a.txt"),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad start"),
    "JSONDecodeError": lambda: json.JSONDecodeError("Expecting value", "{", 1),
    "StopIteration": lambda: StopIteration("done"),
    "RecursionError": lambda: RecursionError("too deep"),
    "MemoryError": lambda: MemoryError("full"),
    "two arguments": lambda: TwoArgumentsError(7, "out of tune"),
    "keyword only": lambda: KeywordOnlyError(place="home"),
    "with array": lambda: WithArrayError("see data", np.arange(3)),
    "group": lambda: ExceptionGroup("several", [ValueError(1), TwoArgumentsError(2, "b")]),
    "long text": lambda: RuntimeError("x" * 10_000),
    "surrogate": lambda: RuntimeError("\ud800 and \U0001f600"),
}


class ErrorsContract:
    """An error arrives as itself, names its item, and affects no other item."""

    @pytest.mark.parametrize("name", ERRORS)
    def test_error_arrives_as_itself(self, backend: str, name: str) -> None:
        """The caller gets the exception that a loop would raise: class, args, text, attributes."""
        wanted = ERRORS[name]()
        with pytest.raises(Exception) as caught:  # noqa: PT011  the class is compared below
            on_backend(backend, _raise_named).map(range(8), name=name, bad=5)
        error = caught.value
        assert type(wanted) is type(error)
        assert str(wanted) == str(error)
        assert repr(wanted.args) == repr(error.args)
        assert set(vars(wanted)) <= set(vars(error))

    @pytest.mark.parametrize("method", ["map", "imap", "imap_unordered", "amap", "aimap"])
    @pytest.mark.parametrize("name", ["two arguments", "StopIteration"])
    def test_error_leaves_every_method(self, backend: str, method: str, name: str) -> None:
        """Every way to map raises the error; a generator turns StopIteration into RuntimeError."""
        wanted = (
            (type(ERRORS[name]()), RuntimeError) if name == "StopIteration" else TwoArgumentsError
        )
        with pytest.raises(wanted):
            drained(getattr(on_backend(backend, _raise_named), method)(range(8), name=name, bad=5))

    @pytest.mark.parametrize("chunksize", [1, 3, 100, "auto"])
    def test_error_names_its_item(self, backend: str, chunksize: Any) -> None:
        """A note on the exception holds the item's index, however chunks are cut."""
        task = on_backend(backend, fail_on, chunksize=chunksize)
        with pytest.raises(KeyError) as caught:
            task.map(range(40), bad=[17], error=(KeyError, "k"))
        assert [17] == [note.index for note in notes_of(caught.value)]
        assert "item 17" in str(notes_of(caught.value)[0])

    def test_first_of_several_errors_is_raised(self, backend: str) -> None:
        """If several items fail, the first in the order of the items is reported."""
        task = on_backend(backend, fail_on, chunksize=1)
        with pytest.raises(KeyError) as caught:
            task.map(range(40), bad=range(7, 40), error=(KeyError, "k"))
        assert [7] == [note.index for note in notes_of(caught.value)]

    def test_nothing_behind_an_error_is_begun(self, backend: str, tmp_path: Path) -> None:
        """If an item raises, later ones in its chunk are not run, as in a loop."""
        task = on_backend(backend, _count_then_fail, chunksize=40)
        with pytest.raises(KeyError):
            task.map(range(40), folder=str(tmp_path), bad=17)
        on_backend(backend, _count_then_fail).map([99], folder=str(tmp_path), bad=17)
        entered = {int(name) for name in counted(tmp_path)} - {99}
        assert set(range(18)) == entered

    def test_cause_shows_where_it_was_raised(self, backend: str) -> None:
        """The traceback of a task that ran elsewhere is the ``__cause__`` of its error."""
        with pytest.raises(TwoArgumentsError) as caught:
            on_backend(backend, _raise_named).map(range(3), name="two arguments", bad=1)
        told = f"{caught.value.__cause__} {caught.getrepr()}"
        assert "out of tune (7)" in told
        assert "_raise_named" in told or "Traceback" in told

    def test_error_in_place(self, backend: str) -> None:
        """With ``return_exceptions`` an error is at its item's place, among all results."""
        task = on_backend(backend, fail_on, return_exceptions=True, chunksize=4)
        results = task.map(range(20), bad=[0, 5, 6, 19], error=(TwoArgumentsError, 3, "c"))
        assert {0, 5, 6, 19} == {
            k for k, r in enumerate(results) if isinstance(r, TwoArgumentsError)
        }
        assert [k for k in range(20) if k not in {0, 5, 6, 19}] == [
            r for r in results if isinstance(r, int)
        ]
        assert [0, 5, 6, 19] == [
            note.index for r in results if isinstance(r, Exception) for note in notes_of(r)
        ]

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit], ids=str)
    @pytest.mark.parametrize("method", ["map", "imap", "amap"])
    def test_exit_in_a_task_is_an_error_of_its_item(
        self, backend: str, error: type[BaseException], method: str
    ) -> None:
        """An exception that would end the caller arrives as SharedTaskError with its name."""
        task = on_backend(backend, _interrupt)
        with pytest.raises(SharedTaskError, match=error.__name__) as caught:
            drained(getattr(task, method)(range(8), bad=5, error=error))
        assert 5 == getattr(caught.value, "index", None)
        assert [0, 1, 2] == task.map(range(3), bad=5, error=error)

    def test_exit_in_place(self, backend: str) -> None:
        """With ``return_exceptions`` an exit affects no other item of its chunk."""
        task = on_backend(backend, _interrupt, return_exceptions=True, chunksize=8)
        results = task.map(range(8), bad=3, error=SystemExit)
        assert [0, 1, 2, 4, 5, 6, 7] == [r for r in results if isinstance(r, int)]
        assert isinstance(results[3], SharedTaskError)

    def test_error_that_cannot_travel_is_told(self, backend: str) -> None:
        """An exception that holds a lock arrives with its text at its index, whatever its class."""
        results = on_backend(backend, _raise_closed, return_exceptions=True).map(range(4))
        assert [0, 1, 3] == [r for r in results if isinstance(r, int)]
        assert isinstance(results[2], LockedError | SharedTaskError)
        assert "locked up" in str(results[2])
        assert 2 in {getattr(results[2], "index", None), *(n.index for n in notes_of(results[2]))}

    def test_error_of_the_item_source(self, backend: str) -> None:
        """An exception of the iterator itself is raised as it is, and nothing hangs."""

        def source() -> Iterator[int]:
            yield from range(30)
            message = "no more from here"
            raise LookupError(message)

        task = on_backend(backend, square)
        with pytest.raises(LookupError, match="no more from here"):
            task.map(source())
        assert [0, 1, 4] == task.map(range(3))

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_stream_error_of_the_item_source(self, backend: str, method: str) -> None:
        """A stream ends with the iterator's exception."""

        def source() -> Iterator[int]:
            yield from range(30)
            raise LookupError

        with pytest.raises(LookupError):
            drained(getattr(on_backend(backend, square), method)(source()))

    def test_starmap_item_of_the_wrong_length(self, backend: str) -> None:
        """An item with too many arguments is a TypeError at its index."""
        task = on_backend(backend, power, return_exceptions=True)
        results = task.starmap([(2, 3), (1, 2, 3, 4, 5, 6), (3, 2)])
        assert [8, 9] == [results[0], results[2]]
        assert isinstance(results[1], TypeError)

    def test_unshareable_value_is_refused(self, backend: str) -> None:
        """A lock inside a shared value is named before anything runs."""
        with pytest.raises(UnshareableError, match="inner"):
            on_backend(backend, whole_of).map(range(3), value={"inner": threading.Lock()})

    @pytest.mark.parametrize(
        "value", [threading.Lock(), (x for x in "ab")], ids=["lock", "generator"]
    )
    def test_value_of_one_process_is_refused(self, backend: str, value: Any) -> None:
        """A lock or a generator is refused as a shared value."""
        with pytest.raises(UnshareableError, match="value"):
            on_backend(backend, whole_of).map(range(3), value=value)

    def test_recursion_error_is_an_error_of_its_item(self, backend: str) -> None:
        """A task that recurses too deep fails alone."""
        results = on_backend(backend, _recurse, return_exceptions=True).map([1, 10**6, 2])
        assert [1, 2] == [results[0], results[2]]
        assert isinstance(results[1], RecursionError)

    def test_stream_gives_the_results_before_its_error(self, backend: str) -> None:
        """``imap`` gives every result before the item that fails."""
        stream = on_backend(backend, fail_on, chunksize=1).imap(
            range(9), bad=[4], error=(KeyError, 4)
        )
        assert [0, 1, 2, 3] == list(itertools.islice(stream, 4))
        with pytest.raises(KeyError):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)


def _raise_named(x: int, name: str, bad: int) -> int:
    if x == bad:
        error = ERRORS[name]()
        raise error
    return x


def _raise_closed(x: int) -> int:
    if x == 2:
        message = "locked up"
        raise LockedError(message)
    return x


def _recurse(x: int) -> int:
    return x if x < 100 else 1 + _recurse(x - 1)
