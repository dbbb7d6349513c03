"""What a worker makes for itself by recipes: it keeps it, and closes it.

token of a recipe -> made before the first item that needs it -> kept
the caller drops the token, or the worker ends -> closed, in the thread that made it
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections import deque
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sharedtask.errors import RemoteTraceback
from sharedtask.outcomes import RaisedError, add_note
from sharedtask.recipes import INITIALIZER
from sharedtask.system import critical_sections, interrupts

from . import kept_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Iterable

    from sharedtask.recipes import Recipe

    from .call_header import SharedParameter
    from .kept_settings import Kept


class Made(NamedTuple):
    """A value that was made, and what ends it, if anything does."""

    value: Any
    close: Callable[[], object] | None
    told: str


# What a call needs under one name: the token of the recipe, and the recipe.
Wanted: TypeAlias = "tuple[str, Hashable, Callable[[], Recipe]]"


class Failure(NamedTuple):
    """The error of a recipe in a call, and the same packed: each item gets one of its own."""

    token: Hashable
    call: Hashable
    error: BaseException
    packed: RaisedError

    def again(self) -> BaseException:
        """The error for further items."""
        error = self.packed.unpacked()
        if error is None:
            return self.error
        error.__cause__ = RemoteTraceback(self.packed.trace)
        return error


class Table:
    """What one worker has made, by the tokens of the recipes.

    ``drop`` may be called in any thread, also by a finalizer; the rest belongs to the thread of the
    worker, unless it says otherwise.
    """

    def __init__(self, wake: Callable[[], object] = bool) -> None:
        """Start empty. ``wake`` is called in any thread when there is something to close."""
        self._wake = wake
        self._pid = os.getpid()
        self._made: dict[Hashable, Made] = {}
        self._due: deque[Made] = deque()
        self._failure: Failure | None = None
        self._closes_here = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to close."""
        return not (self._made or self._due)

    @property
    def is_due(self) -> bool:
        """Whether something was dropped and not closed yet."""
        return bool(self._due)

    @property
    def is_ours(self) -> bool:
        """Whether this process made the values, and not the one that it was forked from."""
        return self._pid == os.getpid()

    def values(self, task: str, wanted: Iterable[Wanted], call: Hashable) -> dict[str, Any]:
        """The values that the items of a call get; what is missing is made.

        A recipe that has failed is not tried again in the same ``call``, unless that is None.

        Raises the errors of recipes, with a note that names the parameter.
        """
        values = {}
        for name, token, recipe in wanted:
            if token not in self._made:
                self._make(task, (name, token, recipe), call)
            if name != INITIALIZER:
                values[name] = self._made[token].value
        return values

    def restore_settings(self, parameters: Iterable[SharedParameter], *, threads: bool) -> None:
        """Make the settings again that the initializer made, if it has run.

        ``threads``: those of numerical libraries as well, which a call has just limited.
        """
        for parameter in parameters:
            if parameter.name == INITIALIZER and parameter.token in self._made:
                kept: Kept = self._made[parameter.token].value
                kept.restore()
                if threads:
                    kept.restore_threads()

    def with_settings(self, token: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, called with the settings that an initializer made here."""
        around: Callable[..., Any] = self._made[token].value.around(function)
        return around

    def _make(self, task: str, wanted: Wanted, call: Hashable) -> None:
        (name, token, recipe), failure = wanted, self._failure
        if failure is not None and call is not None and failure[:2] == (token, call):
            raise failure.again()
        try:
            interrupts.exposed(self._make_by, task, name, token, recipe())
        except BaseException as error:
            if not interrupts.is_real(error):
                add_note(error, _note(task, name))
                self._failure = Failure(token, call, error, RaisedError.of(error))
            raise

    def _make_by(self, task: str, name: str, token: Hashable, recipe: Recipe) -> None:
        """Make and keep a value, in one step: an interrupt that comes later loses nothing."""
        if name == INITIALIZER:
            self._made[token] = Made(kept_settings.noted(recipe.call), None, "")
        else:
            told = f"{name!r} of {task}(), made by {recipe!r}"
            self._made[token] = Made(*made_by(recipe), told)

    def drop(self, token: Hashable) -> None:
        """The recipe is not needed any more: what it made is closed soon."""
        failure, made = self._failure, self._made.pop(token, None)
        if failure is not None and failure.token == token:
            self._failure = None
        if made is not None:
            self._due.append(made)
            if not self._closes_here:
                self._wake()

    @contextlib.contextmanager
    def closing_here(self) -> Generator[None]:
        """What this thread drops within the block is closed at its end."""
        self._closes_here = True
        try:
            yield
        finally:
            self._closes_here = False
            self.close_due()

    def close_due(self) -> None:
        """Close what was dropped."""
        if self.is_ours:
            while (made := critical_sections.first_of(self._due)) is not None:
                close(made)

    def close_elsewhere(self) -> None:
        """Close what was dropped in another thread; what refuses that is left to its own."""
        left = []
        while self.is_ours and (made := critical_sections.first_of(self._due)) is not None:
            if made.close is not None:
                try:
                    made.close()
                except Exception:  # noqa: BLE001  SQLite, for one, is of the thread that opened it
                    left.append(made)
        self._due.extend(left)

    def drop_those(self, is_over: Callable[[Hashable], bool]) -> None:
        """Drop what was made by recipes that are over, and close it in this other thread."""
        for token in list(filter(is_over, self._made)):
            self.drop(token)
        self.close_elsewhere()

    def drop_all(self) -> None:
        """Drop all, the last one first."""
        for token in reversed(list(self._made)):
            self.drop(token)

    def close_all(self) -> None:
        """The worker ends: close all, the last one first."""
        with self.closing_here():
            self.drop_all()

    def __del__(self) -> None:
        """A thread of the caller has ended, or a forked child drops what belongs to its parent."""
        if self.is_ours:
            self.close_all()
        else:
            _of_parents.append((self._made, self._due))


# Values of the process that this one was forked from: never closed here.
_of_parents: list[object] = []


def _note(task: str, name: str) -> str:
    if name == INITIALIZER:
        return f"in the initializer of {task}()"
    return f"while {name!r} of {task}() was made in a worker"


# --------------------------------------------------------------------------- one value


def made_by(recipe: Recipe) -> tuple[Any, Callable[[], object] | None]:
    """Make a value; returns it with what closes it: ``close=``, ``.close()`` or ``__exit__``."""
    value = recipe.call()
    if recipe.close is not None:
        return value, partial(recipe.close, value)
    if isinstance(value, (type, ModuleType)):
        return value, None
    closes = getattr(value, "close", None)
    if callable(closes):
        return value, _synchronous(closes, recipe)
    if _is_context_manager(value):
        return value.__enter__(), partial(value.__exit__, None, None, None)
    return value, None


def _is_context_manager(value: Any) -> bool:
    """Whether it is one; a lock is a thing to enter again and again."""
    cls = type(value)
    is_one = hasattr(cls, "__enter__") and hasattr(cls, "__exit__")
    return is_one and not hasattr(cls, "acquire")


def _synchronous(closes: Any, recipe: Recipe) -> Callable[[], object]:
    code = getattr(getattr(closes, "__func__", closes), "__code__", None)
    if code is not None and code.co_flags & _COROUTINE:
        msg = (
            f"what {recipe!r} makes has an async close(), which needs an event loop. Say how to"
            " close it: per_worker(..., close=lambda value: asyncio.run(value.close()))."
        )
        raise TypeError(msg)
    function: Callable[[], object] = closes
    return function


_COROUTINE = 0x80  # inspect.CO_COROUTINE; that module takes 10 ms to load


def close(made: Made) -> None:
    """Close a value; an error is printed, as one of a finalizer is: no call could raise it."""
    if made.close is None:
        return
    try:
        interrupts.exposed(made.close)
    except BaseException as error:
        if interrupts.is_real(error):
            raise
        lines = traceback.format_exception(error)
        sys.stderr.write(f"Exception ignored while closing {made.told}:\n{''.join(lines)}")
