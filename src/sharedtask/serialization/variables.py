"""How a context variable is found in another process: by its name in a module, or by a key.

A variable of a module, or of a class in it, is imported. Any other, of a script or created by a
function, is created once in each receiving process, under a key that its owner has assigned.
"""

from __future__ import annotations

import itertools
import operator
import os
import sys
from contextvars import Context, ContextVar
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .modules import MAIN, is_importable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Place",
    "build_variable",
    "find_variable",
    "met",
    "parts_of",
    "place_of",
    "reduce_variable",
]

# A module and the way to the variable in it.
Place = tuple[str, str]

# Variables live as long as the program, and cannot be referred to weakly.
_places: dict[ContextVar[Any], Place | None] = {}
_keys: dict[ContextVar[Any], bytes] = {}
_by_key: dict[bytes, ContextVar[Any]] = {}

met: set[ContextVar[Any]] = set()
"""Variables that were sent with a function or a value: some task refers to them."""


def reduce_variable(variable: ContextVar[Any], out: object) -> Any:
    """A variable by its name, or by its key with the data to create it; not its value."""
    del out
    met.add(variable)
    place = place_of(variable)
    if place is not None:
        return find_variable, place
    return build_variable, parts_of(variable)


def parts_of(variable: ContextVar[Any]) -> tuple[Any, ...]:
    """The arguments of ``build_variable``: its key, its name, and its default if it has one."""
    return (_key_of(variable), variable.name, *_default_of(variable))


def find_variable(module: str, path: str) -> ContextVar[Any]:
    """The variable that a module has under this name."""
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    variable: ContextVar[Any] = found
    return variable


def build_variable(key: bytes, name: str, *default: Any) -> ContextVar[Any]:
    """The variable of this key: this process's own, or its counterpart here."""
    found = _by_key.get(key)
    if found is None:
        made = ContextVar[Any](name, default=default[0]) if default else ContextVar[Any](name)
        found = _by_key.setdefault(key, made)  # another thread may have been faster
        _keys[found] = key
    return found


def _key_of(variable: ContextVar[Any]) -> bytes:
    key = _keys.setdefault(variable, os.urandom(16))
    _by_key[key] = variable
    return key


def _default_of(variable: ContextVar[Any]) -> tuple[Any, ...]:
    """Its default, if it has one: the value in an empty context."""
    try:
        return (Context().run(variable.get),)
    except LookupError:
        return ()


def place_of(variable: ContextVar[Any]) -> Place | None:
    """Where other processes find a variable; None for one that is sent by its key.

    The first result is kept: a function that was sent refers to the variable found there.
    """
    try:
        return _places[variable]
    except KeyError:
        return _places.setdefault(variable, next(_places_of(variable), None))


def _places_of(variable: ContextVar[Any]) -> Iterator[Place]:
    """In modules first, then in their classes: there are a hundred thousand objects to check.

    Only for a ``type`` is its class read, since other objects may run code then.
    """
    modules = [module for module in list(sys.modules.values()) if _is_searched(module)]
    for module in modules:
        yield from ((module.__name__, name) for name in _names_in(vars(module), variable))
    if any(_names_in(vars(sys.modules[name]), variable) for name in MAIN if name in sys.modules):
        return
    for module in modules:
        for name, cls in list(vars(module).items()):
            if issubclass(type(cls), type):
                own = type.__getattribute__(cls, "__dict__")
                if own.get("__module__") == module.__name__:
                    found = _names_in(own, variable)
                    yield from ((module.__name__, f"{name}.{each}") for each in found)


def _is_searched(module: object) -> bool:
    return type(module) is ModuleType and module.__name__ not in MAIN and is_importable(module)


def _names_in(own: Mapping[str, Any], variable: ContextVar[Any]) -> list[str]:
    values = list(own.values())
    if not any(map(operator.is_, values, itertools.repeat(variable))):
        return []
    return [name for name, value in own.items() if value is variable]
