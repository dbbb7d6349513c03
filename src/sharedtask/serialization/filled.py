"""Explains why a function or an object cannot be sent after it was called in the caller.

A function may store in a global, a captured variable or ``self`` an object from its first call: a
connection, a session, a lock. A worker that calls it has its own; a direct call creates one in the
caller, which would have to be sent from then on.
"""

from __future__ import annotations

import dis
import re
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from sharedtask.errors import UnshareableError

from . import functions
from .unpicklable import find_culprit
from .unshareable import advice_for, is_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["unshareable", "why_function", "why_object"]

# One step of a path: how a function has a variable, and its name.
_STEP = re.compile(r": (?:captured|default|global) (\w+)")
_STORES = frozenset({"STORE_GLOBAL", "STORE_DEREF"})
_CURE = "Have each worker make its own: in a function with @functools.cache that returns it"


def why_function(function: Callable[..., Any], name: str) -> str:
    """Describe the unpicklable part of a function, its likely origin, and the cure.

    Args:
        function: A function that cannot be pickled.
        name: Its name in messages.
    """
    found = find_culprit(function, name)
    steps = list(_STEP.finditer(found.path))
    if not steps or is_stream(found.part):
        return f"{found}."
    variable, is_inside = steps[-1][1], steps[-1].end() < len(found.path)
    filled = ""
    owner = _last_function(function, [step[1] for step in steps[:-1]])
    if variable in _stored(owner):
        filled = f" {_name(owner)}() sets {variable} itself: a direct call has filled it here."
    elif is_inside:
        filled = f" A direct call may have filled {variable}."
    return f"{found}.{filled} {_CURE}."


def why_object(value: object, name: str) -> str:
    """The same for an object, whose attributes a method call may have set."""
    found = find_culprit(value, name)
    if name != "self" or found.path == name or is_stream(found.part):
        return f"{found}."
    return (
        f"{found}. A direct call may have filled it. {_CURE}, or leave it out of the pickle of self"
        " with __getstate__."
    )


def unshareable(value: object, name: str, error: Exception, which: str) -> UnshareableError:
    """The error of a shared value that cannot be encoded; ``which`` begins its text."""
    found = find_culprit(value, name)
    cure = "" if name == "self" else advice_for(found.part)
    told = f"{found}: {cure}." if cure else why_object(value, name)
    return UnshareableError(f"{which} cannot be shared: {told} ({error})")


def _last_function(function: Any, names: list[str]) -> Any:
    """Follow the globals of functions that call each other."""
    for name in names:
        function = getattr(functions.bare(function), "__globals__", {}).get(name)
    return functions.bare(function)


def _stored(function: Any) -> set[str]:
    return set(_stored_by(function.__code__)) if isinstance(function, FunctionType) else set()


def _stored_by(code: CodeType) -> Iterator[str]:
    """The outer variables that code sets."""
    outside = {*code.co_freevars, *code.co_names}
    for instruction in dis.get_instructions(code):
        if instruction.opname in _STORES and instruction.argval in outside:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _stored_by(constant)


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", "it"))
