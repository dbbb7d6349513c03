"""Errors that name the user's function and argument, not joblib's wrappers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from sharedtask.backends.worker.refusals import captured, is_refusal, readonly
from sharedtask.errors import SerializationError
from sharedtask.outcomes import add_note
from sharedtask.serialization.unpicklable import culprit, encodes
from sharedtask.task.signature.spec import name_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .batches import AnyCall


def name_of_all(calls: Sequence[AnyCall]) -> str:
    """The name of the calls' function in messages; "Parallel" if there are several."""
    functions = {id(function): function for function, _, _ in calls}
    names = {name_of(function) for function in functions.values()}
    return names.pop() if len(names) == 1 else "Parallel"


def with_culprit(error: Exception, calls: Sequence[AnyCall], numbers: range) -> Exception:
    """The error of calls that cannot be sent, with the unpicklable part."""
    if not isinstance(error, SerializationError):
        return error
    for number, call in zip(numbers, calls, strict=True):
        for name, value in _parts(call):
            if not encodes(value):
                place = f"{name_of(call[0])}(), item {number}"
                return _unsendable(place, culprit(value, name), error)
    return error


def _unsendable(place: str, where: str, error: Exception) -> Exception:
    cause = error.__cause__ or error
    made = SerializationError(f"{place}, cannot be sent to a worker: {where}. ({cause})")
    made.__cause__ = error.__cause__
    return made


def _parts(call: AnyCall) -> Iterator[tuple[str, Any]]:
    """The function of a call and its arguments, by their names."""
    function, args, kwargs = call
    yield name_of(function), function
    yield from zip(_names(function, len(args)), args, strict=True)
    yield from kwargs.items()


def _names(function: Any, count: int) -> list[str]:
    """The names of the parameters that take the first arguments."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    by_place = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    known = [each.name for each in parameters if each.kind in by_place][:count]
    return [*known, *(f"argument {k + 1}" for k in range(len(known), count))]


def advise(error: Exception, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Add advice to an error that reports a refused write."""
    if not is_refusal(error):
        return
    given = {**dict(zip(_names(function, len(args)), args, strict=True)), **kwargs}
    names = [*map(repr, readonly(given)), *captured(inspect.unwrap(function))]
    if names:
        add_note(
            error,
            f"{' and '.join(names)} of {name_of(function)}() is read-only in a worker: large arrays"
            " are shared, and the caller would not see writes to them. Return what is"
            " made, work on a copy (x = x.copy()), or pass an np.memmap that is open for writing.",
        )
