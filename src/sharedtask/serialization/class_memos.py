"""What the process remembers of a class of a script, besides its attributes.

The class may be registered with abstract classes of modules, which then take it for a subclass. And
sympy keeps what functions of its classes have computed.
"""

from __future__ import annotations

import abc
import collections.abc
import io
import numbers
import sys
import weakref
from abc import ABCMeta
from importlib import import_module
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any, cast

from sharedtask.system.finalizers import Known

from .modules import MAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

_get_dump = cast("Any", getattr(abc, "_get_dump", None))  # of CPython
# Those that are asked; others have to be searched for.
_ABSTRACT: tuple[Any, ...] = tuple(
    value
    for module in (collections.abc, numbers, io)
    for value in vars(module).values()
    if isinstance(value, ABCMeta)
)
# An abstract class: its module and its name there.
_Name = tuple[str, str]
# What a class is registered with, as long as no register() is called: there is a counter of that.
_found: Known[tuple[object, tuple[_Name, ...]]] = Known()


def registered_with(cls: type) -> tuple[_Name, ...]:
    """The abstract classes of modules that take ``cls`` for a subclass by register().

    Those that look at its methods do that anywhere.
    """
    token = abc.get_cache_token()
    found = _found.get(cls)
    if found is not None and found[0] == token:
        return found[1]
    others = tuple(_searched(cls, token)) if _is_in_a_registry(cls) else ()
    asked = tuple(_name(each) for each in _ABSTRACT if _is_registered(cls, each))
    _found.put(cls, (token, asked + others))
    return asked + others


def _is_registered(cls: type, abstract: Any) -> bool:
    try:
        if abstract in cls.__mro__ or abstract.__subclasshook__(cls) is True:
            return False
        return issubclass(cls, abstract)
    except Exception:  # noqa: BLE001  a metaclass of the script may do anything
        return False


def _is_in_a_registry(cls: type) -> bool:
    """Whether an abstract class has a weak reference to it: by register(), or from a question.

    A search takes 30 ms where large libraries are loaded, and most programs need none.
    """
    references = [each for each in weakref.getweakrefs(cls) if type(each) is weakref.ref]
    return any(type(each.__callback__) is BuiltinFunctionType for each in references)


def _searched(cls: type, token: object) -> Iterator[_Name]:
    """The other abstract classes that it is registered with."""
    if _searches.get("token") != token:
        _searches.update(token=token, found=_search())
    for registered, name in _searches["found"].get(id(cls), ()):
        if registered() is cls:
            yield name


_searches: dict[str, Any] = {}  # the last one


def _search() -> dict[int, list[tuple[weakref.ref[type], _Name]]]:
    """What is registered with other abstract classes of modules, by identity."""
    found: dict[int, list[tuple[weakref.ref[type], _Name]]] = {}
    if _get_dump is None:
        return found
    for abstract in _classes():
        if isinstance(abstract, ABCMeta) and abstract not in _ABSTRACT:
            registry = _get_dump(abstract)[0]
            if registry and _is_of_a_module(abstract):
                for each in registry:
                    found.setdefault(id(each()), []).append((each, _name(abstract)))
    return found


def _classes() -> Iterator[type]:
    """All classes."""
    left, seen = [object], set[int]()
    while left:
        for cls in type.__subclasses__(left.pop()):
            if id(cls) not in seen and cls is not type:
                seen.add(id(cls))
                left.append(cls)
                yield cls


def _is_of_a_module(abstract: type) -> bool:
    module = abstract.__module__
    if module in MAIN or getattr(sys.modules.get(module), "__spec__", None) is None:
        return False
    return _named(_name(abstract)) is abstract


def _name(cls: type) -> _Name:
    return cls.__module__, cls.__qualname__


def _named(name: _Name) -> Any:
    found: Any = import_module(name[0])
    for part in name[1].split("."):
        found = getattr(found, part, None)
    return found


def is_noted(name: str, value: object) -> bool:
    """Whether Python wrote this attribute into a class when it was used, not its program.

    That is without annotations until someone asks for them, as a question of a protocol does.
    copyreg writes the names of slots when an instance is copied or pickled first.
    """
    return name == "__slotnames__" or (name in _ANNOTATIONS and value in (None, {}))


# From Python 3.14 on in two attributes, of other names.
_ANNOTATIONS = ("__annotations__", "__annotations_cache__", "__annotate_func__")


def register(cls: type, abstract: tuple[_Name, ...]) -> None:
    """Register the class with all of these that there are."""
    for name in abstract:
        try:
            _named(name).register(cls)
        except Exception:  # noqa: BLE001, S112  the module is not here: nothing asks it
            continue


def forget_results(cls: type) -> None:
    """The class has other attributes now: drop what libraries have computed with the old ones."""
    cache = sys.modules.get("sympy.core.cache")
    if cache is not None and any(base.__module__.startswith("sympy.") for base in cls.__mro__):
        cache.clear_cache()
