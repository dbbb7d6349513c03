# ruff: noqa: S101 - tests assert; their rule is their docstring
"""The effects of the options."""

from __future__ import annotations

from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from sharedtask import TaskTimeoutError, parallel

from .tasks import attempt, counted, counted_sleep, fail_on, notes_of, on_backend, sleep_for


class OptionsContract:
    """Retries, time limits and the rest mean the same everywhere."""

    def test_retries_run_a_failed_item_again(self, backend: str, tmp_path: Path) -> None:
        """A failed item is retried up to ``retries`` times, and only that item."""
        task = on_backend(backend, attempt, retries=2, chunksize=3)
        folder = str(tmp_path)
        results = task.map(range(5), folder=folder, fails=2, error=(ValueError, "again"))
        assert list(range(5)) == results
        assert {str(x): 3 for x in range(5)} == counted(tmp_path)

    def test_retries_come_to_an_end(self, backend: str, tmp_path: Path) -> None:
        """After the last attempt the error is raised, naming the item."""
        task = on_backend(backend, attempt, retries=2)
        with pytest.raises(ValueError, match="again") as caught:
            task.map([7], folder=str(tmp_path), fails=99, error=(ValueError, "again"))
        assert [0] == [note.index for note in notes_of(caught.value)]
        assert {"7": 3} == counted(tmp_path)

    def test_retry_on_chooses_errors(self, backend: str, tmp_path: Path) -> None:
        """Only errors of the classes in ``retry_on`` are tried again."""
        task = on_backend(backend, attempt, retries=3, retry_on=(OSError,))
        with pytest.raises(ValueError, match="no"):
            task.map([1], folder=str(tmp_path), fails=1, error=(ValueError, "no"))
        assert [2] == task.map([2], folder=str(tmp_path), fails=1, error=(FileNotFoundError, "yes"))
        assert {"1": 1, "2": 2} == counted(tmp_path)

    def test_nothing_is_run_twice_without_retries(self, backend: str, tmp_path: Path) -> None:
        """Without ``retries`` no item is run again, failed or not."""
        task = on_backend(backend, attempt, return_exceptions=True, chunksize=4)
        results = task.map(range(12), folder=str(tmp_path), fails=1, error=(KeyError, "x"))
        assert 12 == sum(isinstance(result, KeyError) for result in results)
        assert {str(x): 1 for x in range(12)} == counted(tmp_path)

    def test_retries_of_a_submitted_item(self, backend: str, tmp_path: Path) -> None:
        """``submit`` honours ``retries``."""
        task = on_backend(backend, attempt, retries=1)
        future = task.submit(4, folder=str(tmp_path), fails=1, error=(ValueError, "again"))
        assert 4 == future.result(60)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered"])
    def test_retries_in_a_stream(self, backend: str, method: str, tmp_path: Path) -> None:
        """Streams honour ``retries`` and keep every result."""
        task = on_backend(backend, attempt, retries=1, chunksize=4)
        stream = getattr(task, method)(
            range(20), folder=str(tmp_path), fails=1, error=(ValueError, "again")
        )
        assert list(range(20)) == sorted(stream)

    def test_timeout_is_an_error_of_its_item(self, backend: str) -> None:
        """An item that takes longer than ``timeout`` is TaskTimeoutError; the others arrive."""
        task = on_backend(backend, sleep_for, timeout=0.15, return_exceptions=True, chunksize=4)
        results = task.map([0.0, 0.01, 0.6, 0.02])
        error = results[2]
        assert [0.0, 0.01, 0.02] == [results[0], results[1], results[3]]
        assert isinstance(error, TaskTimeoutError)
        assert isinstance(error, TimeoutError)
        assert (2, 0.6, 0.15) == (error.index, error.item, error.timeout)

    def test_timeout_is_raised(self, backend: str) -> None:
        """Without ``return_exceptions`` the timeout ends the map, and the next one is right."""
        task = on_backend(backend, sleep_for, timeout=0.1)
        with pytest.raises(TaskTimeoutError) as caught:
            task.map([0.4, 0.0])
        assert 0 == caught.value.index
        assert [0.0] == task.map([0.0])

    def test_timeout_is_for_one_item(self, backend: str) -> None:
        """A map of many items may take longer than ``timeout``."""
        task = on_backend(backend, sleep_for, timeout=0.4, chunksize=8)
        assert [0.06] * 8 == task.map([0.06] * 8)

    def test_timeout_of_a_submitted_item(self, backend: str) -> None:
        """``submit`` honours ``timeout``."""
        future = on_backend(backend, sleep_for, timeout=0.1).submit(0.4)
        assert isinstance(future.exception(60), TaskTimeoutError)

    def test_users_timeout_is_the_users(self, backend: str) -> None:
        """A keyword of a map always belongs to the user's function."""
        assert [3, 3] == on_backend(backend, _with_timeout).map(range(2), timeout=3)

    def test_submit_with_return_exceptions(self, backend: str) -> None:
        """With ``return_exceptions`` a future's result is the exception."""
        task = on_backend(backend, fail_on, return_exceptions=True)
        assert isinstance(task.submit(1, bad=[1], error=(KeyError, 1)).result(60), KeyError)

    def test_defaults_reach_the_map(self, backend: Any) -> None:
        """Options of an enclosing ``defaults`` block hold for tasks that set none."""
        from sharedtask import defaults

        task = parallel(fail_on)
        with defaults(backend=backend, return_exceptions=True):
            results: list[Any] = task.map(range(3), bad=[1], error=(KeyError, 1))
        assert isinstance(results[1], KeyError)

    def test_cancelled_future_is_not_run(self, backend: str, tmp_path: Path) -> None:
        """A future that is cancelled in the queue never runs."""
        if backend == "serial":
            pytest.skip("a submitted item is done before anyone could cancel it")
        task = on_backend(backend, counted_sleep, workers=1)
        busy = [task.submit(k, folder=str(tmp_path), seconds=0.2) for k in range(3)]
        late = task.submit(99, folder=str(tmp_path), seconds=0.0)
        assert late.cancel()
        with pytest.raises(CancelledError):
            late.result()
        assert [0, 1, 2] == [future.result(60) for future in busy]
        assert [5] == task.map([5], folder=str(tmp_path), seconds=0.0)
        assert {"0": 1, "1": 1, "2": 1, "5": 1} == counted(tmp_path)


def _with_timeout(_x: int, timeout: int) -> int:
    return timeout
