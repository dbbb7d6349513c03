"""Outcomes of items: values, errors, and how the caller gets an error.

An exception of the user's function arrives as itself: see ``serialization/exceptions.py``.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sharedtask.errors import (
    ChangedValueWarning,
    RemoteTraceback,
    SharedTaskError,
    TaskExitError,
    WorkerDiedError,
    item_note,
    set_fields,
)
from sharedtask.serialization import codec, exceptions
from sharedtask.system.records import dataclass, field
from sharedtask.system.tracebacks import shorten, user_frames
from sharedtask.text import see

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Partial:
    """The partial results of ``count`` items from ``first`` on, by parameter."""

    first: int
    count: int
    arrays: dict[str, Any]


@dataclass(slots=True)
class Batch:
    """Outcomes of consecutive items: ``values[k]`` or ``errors[k]`` belongs to ``first + k``."""

    first: int
    values: list[Any]
    errors: dict[int, BaseException] = field(default_factory=dict)
    partial: Partial | None = None


class Change(NamedTuple):
    """A task has changed a value that all items see.

    It was one of the items from ``first`` to ``last`` of the call; None if it was an earlier
    call's. ``path`` begins with the parameter. ``beside``: other threads ran items meanwhile.
    ``bypassed``: it is memory of the caller that was written, past numpy's flag.
    """

    parameter: str
    path: str
    first: int | None
    last: int | None
    beside: bool = False
    bypassed: bool = False

    def warning(self, task: str) -> ChangedValueWarning:
        """The warning for the caller."""
        items = range(0) if self.first is None else range(self.first, (self.last or 0) + 1)
        return ChangedValueWarning(
            task, self.parameter, self.path, items, self.beside, self.bypassed
        )


class Delivery(Protocol):
    """Outcomes that were received but not opened yet; one of the methods is called, once."""

    @property
    def is_plain(self) -> bool:
        """Whether opening it runs no user code, since there is nothing to unpickle."""
        ...

    def open(self) -> Batch:
        """Decode the outcomes: runs in the thread that asked for them."""
        ...

    def discard(self) -> None:
        """Free the memory of outcomes that are not needed."""


@dataclass(slots=True)
class Known:
    """A delivery of outcomes that need no decoding."""

    batch: Batch

    @property
    def is_plain(self) -> bool:
        """False for errors, whose items may be retried, which pickles them."""
        return not self.batch.errors

    def open(self) -> Batch:
        """The batch."""
        return self.batch

    def discard(self) -> None:
        """Nothing to free."""


@dataclass(slots=True)
class Report:
    """A backend's report about ``count`` items of a chunk, from position ``first`` on.

    The items before ``stop`` have their outcomes. With ``finished`` the chunk is over, and the
    others were not begun. ``seconds`` is how long the worker was busy with the items of this
    report. The caller is to be warned of ``change``. ``trace`` is what the worker tells of the
    chunk, in a call that is traced.
    """

    chunk: int
    delivery: Delivery
    count: int
    finished: bool
    seconds: float = 0.0
    change: Change | None = None
    first: int = 0
    trace: bytes = b""

    @property
    def stop(self) -> int:
        """The position in the chunk after the last item of this report."""
        return self.first + self.count


# ------------------------------------------------------------------------------ transport


@dataclass(frozen=True, slots=True)
class RaisedError:
    """An exception sent by a worker; ``pickled`` is None if it cannot be rebuilt."""

    class_name: str
    text: str
    trace: str
    pickled: bytes | None

    @classmethod
    def of(cls, error: BaseException) -> RaisedError:
        """Pack ``error``; never raises."""
        if isinstance(error, NameError) and _passes_a_script(error):
            add_note(error, _UNKNOWN_NAME)
        elif _is_not_found_in_main(error):
            add_note(error, _OF_THE_SCRIPT)
        pickled = exceptions.packed(error) if isinstance(error, Exception) else None
        return cls(_class_name(error), text_of(error), remote_text(error), pickled)

    def restore(self, task: str, index: int) -> BaseException:
        """The exception for the caller, with a note that names its item."""
        error = self.unpacked()
        if error is None:
            return TaskExitError(task, self.class_name, self.text, self.trace, index)
        _set(error, "__cause__", RemoteTraceback(self.trace))
        return with_item_note(error, task, index)

    def unpacked(self) -> Exception | None:
        """The bare exception, or None if it cannot be rebuilt."""
        if self.pickled is None:
            return None
        try:
            error = codec.decode(self.pickled)
        except Exception:  # noqa: BLE001  user code runs here
            return None
        return error if isinstance(error, Exception) else None


_UNKNOWN_NAME = (
    "A worker knows of a script those globals that the code of its functions names. Name one that "
    "is only in a string, as for eval() or DataFrame.query(), in the function too, or pass it."
)


_OF_THE_SCRIPT = (
    "A worker is not the script: another pool within a task, which finds functions and classes by "
    "name, does not find the script's. Move them to a module, or use a task's own map() there."
)


def _is_not_found_in_main(error: BaseException) -> bool:
    """Whether plain pickle did not find something of ``__main__``; ours sends it by value."""
    plain = isinstance(error, pickle.PicklingError | AttributeError)
    return plain and not isinstance(error, SharedTaskError) and "__main__" in str(error)


def _passes_a_script(error: BaseException) -> bool:
    """Whether one of its frames is of code that was sent by value, without a module's globals."""
    frames = (frame.f_globals for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        (known := sys.modules.get(found.get("__name__", ""))) is None or vars(known) is not found
        for found in frames
    )


def with_item_note(error: BaseException, task: str, index: int) -> BaseException:
    """``error`` with a note that names the item."""
    note = item_note(task, index)
    if note not in _notes(error):  # one object raised for several items
        add_note(error, note)
    return error


def told_of(error: BaseException, task: str, index: int, function: str) -> BaseException:
    """An error of an item as one of a call of ``function``, which has no items."""
    item, call = item_note(task, index), item_note(function, None)
    notes = _notes(error)
    if item in notes:
        _set(error, "__notes__", [call if note == item else note for note in notes])
    if isinstance(error, SharedTaskError):
        _name_call(error, task, index, function)
    return error


def _name_call(error: SharedTaskError, task: str, index: int, function: str) -> None:
    """Not in an error of another task, which the call has raised."""
    if getattr(error, "function", None) == task:
        set_fields(error, function=function, index=None, item=None)
    elif str(error).startswith(f"{task}()"):
        text = str(error).replace(f"the result of item {index}", "its result")
        error.args = (text.replace(f"{task}()", f"{function}()", 1),)


def _notes(error: BaseException) -> list[Any]:
    notes = vars(error).get("__notes__")
    return notes if isinstance(notes, list) else []


def add_note(error: BaseException, note: str) -> None:
    """Add a note, also to a frozen error."""
    _set(error, "__notes__", [*_notes(error), note])


def _set(error: BaseException, name: str, value: object) -> None:
    """Set an attribute of every exception, also if its class is a frozen dataclass."""
    BaseException.__setattr__(error, name, value)


# Signals of an access to memory that is not allowed: SIGBUS and SIGSEGV.
_ACCESS = (7, 11)


def written_advice(error: WorkerDiedError, names: Sequence[str]) -> None:
    """Add advice if a worker may have died because it wrote to read-only memory: to ``names``."""
    if names and error.signal in _ACCESS:
        verb = "is" if len(names) == 1 else "are"
        note = (
            f"{' and '.join(names)} {verb} read-only shared memory in a task. Native code may have"
            " written there, as np.add.at does before numpy 2.5, or torch where a tensor is changed"
            f" in place: give it a copy, or mark it CopyOnWrite. {see('read-only')}"
        )
        add_note(error, note)


def contained(error: BaseException, task: str, index: int) -> BaseException:
    """An error of a task that ran in this process, for the caller."""
    if isinstance(error, Exception):
        told = with_item_note(error, task, index)
        with contextlib.suppress(Exception):  # a class of the user may refuse
            shorten(told)
        return told
    exit_error = TaskExitError(task, _class_name(error), text_of(error), remote_text(error), index)
    exit_error.__cause__ = error
    return exit_error


def remote_text(error: BaseException) -> str:
    """The traceback as text, without our own frames at its beginning."""
    try:
        return "".join(traceback.format_exception(type(error), error, user_frames(error)))
    except BaseException:  # noqa: BLE001  __str__ of the user's class may do anything
        return f"{_class_name(error)} (its traceback could not be formatted)\n"


def text_of(error: BaseException) -> str:
    """The text of the error; never raises."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  see above
        return "(its text could not be formatted)"


def _class_name(error: BaseException) -> str:
    cls = type(error)
    if cls.__module__ == "builtins":
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"
