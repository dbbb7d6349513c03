"""Whether a class of the script is as it was when it was sent with a value.

The values of attributes are compared by identity: a table that was changed in place is not seen.
"""

from __future__ import annotations

import weakref
from operator import is_
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class ClassState(NamedTuple):
    """A class, and its bases and attributes at one moment."""

    cls: weakref.ref[type]
    bases: tuple[type, ...]
    attributes: dict[str, Any]


def states_of(sent: Iterable[type]) -> tuple[ClassState, ...]:
    """The states of classes now.

    Examples:
        >>> class Model: rate = 1
        >>> states = states_of([Model])
        >>> Model.rate = 2
        >>> changed(states)
        (<class '...Model'>, 'rate')
    """
    return tuple(ClassState(weakref.ref(cls), cls.__bases__, _attributes(cls)) for cls in sent)


def changed(
    states: Iterable[ClassState], except_for: Collection[int] = ()
) -> tuple[type, str] | None:
    """The first class that has another attribute by now, and the name; None if there is none.

    Classes with these identities are not looked at.
    """
    for state in states:
        cls = state.cls()
        if cls is not None and id(cls) not in except_for:
            name = _differing(state, cls)
            if name is not None:
                return cls, name
    return None


def _attributes(cls: type) -> dict[str, Any]:
    """What a program sets: Python itself keeps other things in a class."""
    return {name: value for name, value in vars(cls).items() if _is_set(name, value)}


def _is_set(name: str, value: object) -> bool:
    if not name.startswith("__"):
        return True
    return type(value) is FunctionType and "annotat" not in name


def _differing(state: ClassState, cls: type) -> str | None:
    bases, before, now = cls.__bases__, state.attributes, _attributes(cls)
    if len(bases) != len(state.bases) or not all(map(is_, bases, state.bases)):
        return "__bases__"
    for name in {**before, **now}:
        if name not in before or name not in now or before[name] is not now[name]:
            return name
    return None
