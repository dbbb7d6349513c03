"""Adds the call to the error of a value that did not fit."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sharedtask.errors import StoreFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


@contextlib.contextmanager
def needed_for(task: str, what: str | Callable[[], str]) -> Generator[None]:
    """Add task and need to a StoreFullError; ``what`` ends in "does not fit"."""
    try:
        yield
    except StoreFullError as error:
        said = what if isinstance(what, str) else what()
        raise full(task, said, error) from error


def full(task: str, said: str, error: StoreFullError) -> StoreFullError:
    """The error of a task, for the path of every call: a ``with`` block would cost 2 us."""
    return StoreFullError(f"{task}(): {said}: {error}")
