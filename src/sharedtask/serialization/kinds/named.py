"""Objects that pickle would send by name, from a script that workers do not run: by value.

A function with a cache, a dispatcher, a NewType, an object whose ``__reduce__`` is a name. Those of
a module are sent by name, as pickle does.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
import typing
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_PROTOCOL = 5
_SCRIPTS = ("__main__", "__mp_main__")


def is_of_script(obj: Any) -> bool:
    """Whether other processes cannot find ``obj`` by its module and name."""
    module = getattr(obj, "__module__", None)
    if module in _SCRIPTS:
        return True
    name: str = getattr(obj, "__qualname__", "")
    found: Any = sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not obj


# ------------------------------------------------------------------------------ functools

_CACHED_OWN = ("__wrapped__", "cache_parameters")


def reduce_cached(function: Any, out: Any) -> Any:
    """A function with ``functools.cache`` or ``lru_cache``: the cache is not sent."""
    del out
    if not is_of_script(function):
        return NotImplemented
    own = {name: value for name, value in vars(function).items() if name not in _CACHED_OWN}
    parts = function.__wrapped__, function.cache_parameters()
    return build_cached, parts, own, None, None, _update


def build_cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """The function with an empty cache of its own."""
    return functools.lru_cache(**parameters)(function)


def _update(obj: Any, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)


def reduce_cached_property(prop: Any, out: Any) -> Any:
    """A ``functools.cached_property``, which has a lock before Python 3.12."""
    del out
    own = {name: value for name, value in vars(prop).items() if name not in ("func", "lock")}
    return functools.cached_property, (prop.func,), own, None, None, _update


def reduce_dispatching_method(method: Any, out: Any) -> Any:
    """A ``functools.singledispatchmethod``, which has a cache from Python 3.13 on."""
    del out
    own = {name: value for name, value in vars(method).items() if name not in ("func", _CACHE)}
    return functools.singledispatchmethod, (method.func,), own, None, None, _update


_CACHE = "_method_cache"


def is_dispatcher(function: Any) -> bool:
    """Whether ``functools.singledispatch`` made it: all have the same code."""
    return function.__code__ is _DISPATCHER


_EXAMPLE: Any = functools.singledispatch(lambda _: None)
_DISPATCHER = _EXAMPLE.__code__
_DISPATCHER_OWN = frozenset(vars(_EXAMPLE))


def reduce_dispatcher(function: Any) -> Any:
    """A function with ``functools.singledispatch`` and what is registered with it."""
    own = {name: value for name, value in vars(function).items() if name not in _DISPATCHER_OWN}
    return (
        build_dispatcher,
        (function.__wrapped__,),
        (dict(function.registry), own),
        None,
        None,
        fill,
    )


def build_dispatcher(function: Callable[..., Any]) -> Any:
    """A dispatcher with the default only."""
    return functools.singledispatch(function)


def fill(dispatcher: Any, state: tuple[dict[type, Any], dict[str, Any]]) -> None:
    """Register the implementations again."""
    registry, own = state
    for cls, function in registry.items():
        dispatcher.register(cls, function)
    vars(dispatcher).update(own)


# ---------------------------------------------------------------------------------- numpy


def reduce_ufunc(ufunc: Any, out: Any) -> Any:
    """A ufunc of ``np.frompyfunc``, sent by its function."""
    del out
    held = [each for each in gc.get_referents(ufunc) if callable(each)]
    if len(held) != 1 or not ufunc.__name__.endswith(_MADE):
        return NotImplemented
    return build_ufunc, (held[0], ufunc.nin, ufunc.nout, *_identity_of(ufunc))


_MADE = " (vectorized)"


def _identity_of(ufunc: Any) -> tuple[Any, ...]:
    """The identity of its reductions; None for no identity, or for one that is None."""
    if ufunc.identity is not None or (ufunc.nin, ufunc.nout) != (2, 1):
        return () if ufunc.identity is None else (ufunc.identity,)
    try:
        ufunc.reduce(np.empty((1, 1), object), axis=(0, 1))  # calls nothing
    except ValueError:  # without an identity the order of the axes counts
        return ()
    return (None,)


def build_ufunc(function: Callable[..., Any], nin: int, nout: int, *identity: Any) -> Any:
    """Rebuild the ufunc."""
    return np.frompyfunc(function, nin, nout, **dict(zip(["identity"], identity, strict=False)))


# --------------------------------------------------------------------------------- typing


def reduce_new_type(new_type: Any, out: Any) -> Any:
    """A ``typing.NewType``."""
    del out
    if not is_of_script(new_type):
        return NotImplemented
    parts = new_type.__name__, new_type.__supertype__, new_type.__module__, new_type.__qualname__
    return build_new_type, parts


def build_new_type(name: str, supertype: Any, module: str, qualname: str) -> Any:
    """A NewType of that name."""
    make: Any = typing.NewType
    made = make(name, supertype)
    made.__module__, made.__qualname__ = module, qualname
    return made


# ------------------------------------------------------------------ objects that name themselves

_WAYS = ("__reduce__", "__reduce_ex__")
_found: weakref.WeakValueDictionary[tuple[str, str], Any] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def names_itself(cls: type) -> bool:
    """Whether objects of a class of the script may pickle as a name."""
    own = [base for base in cls.__mro__ if base.__module__ in _SCRIPTS]
    return any(way in vars(base) for base in own for way in _WAYS)


def reduce_named(obj: Any, out: Any) -> Any:
    """An object whose reduction is a name of the script: one in each process."""
    del out
    reduced = obj.__reduce_ex__(_PROTOCOL)
    if not isinstance(reduced, str):
        return reduced
    cls = type(obj)
    return find_named, (cls.__module__, reduced, cls, dict(getattr(obj, "__dict__", {})))


def find_named(module: str, name: str, cls: type, attributes: dict[str, Any]) -> Any:
    """The object of that name: the script's own, or its counterpart here."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if type(found) is cls:
        return found
    with _lock:
        found = _found.get((module, name))
        if type(found) is not cls:
            found = object.__new__(cls)
            vars(found).update(attributes)
            _found[module, name] = found
    return found
