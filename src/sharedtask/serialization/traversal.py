"""The parts of a value, as pickle sees them, and the Python expression of each.

Only parts that pickle would take are visited: items, elements, and the state of ``__reduce_ex__``
. Properties are not read, and no ``__repr__`` of a user's class is called.
"""

from __future__ import annotations

import dataclasses
import dis
import types
from collections import deque
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.serialization.kinds import exceptions

from . import codec, functions
from .composition import is_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# A step of a path, such as ``.weights`` or ``['a']``, and the part there.
Part = tuple[str, Any]

# Values without parts.
ATOMS = frozenset(
    {int, float, complex, bool, str, bytes, bytearray, type(None), type(...), range, slice}
)
_LONGEST_KEY = 40


def parts(value: Any) -> Iterator[Part]:
    """The parts of ``value`` in the order of pickle."""
    cls = type(value)
    if cls in ATOMS:
        return iter(())
    find = _PARTS.get(cls)
    if find is not None:
        return find(value)
    # isinstance() would read __class__, which may be a property of the user's.
    if issubclass(cls, type):
        return _of_class(value)
    if issubclass(cls, np.ndarray):
        return _of_array(value)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _of_named_tuple(value)
    if issubclass(cls, BaseException) and not exceptions.has_own_way(cls):
        return _of_exception(value)
    return _of_object(value)


def count(value: Any) -> int | None:
    """How many items or elements a container has; None if ``value`` is none."""
    if type(value) in _COUNTED:
        return len(value)
    return value.size if is_object_array(value) else None


def is_object_array(value: Any) -> bool:
    """Whether ``value`` is an array of Python objects."""
    return issubclass(type(value), np.ndarray) and value.dtype == object


def is_sent_by_value(function: types.FunctionType) -> bool:
    """Whether a function is pickled with its captured values, not by its name."""
    return functions.by_name(function) is None


def captured(function: types.FunctionType) -> Iterator[tuple[str, str, Any]]:
    """The values sent with a function: how it has each, its name, and the value."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield "captured", name, cell.cell_contents
        except ValueError:  # a variable without a value yet
            continue
    yield from (("default", name, value) for name, value in _defaults(function))
    for name in globals_of(function.__code__):
        if name in function.__globals__:
            yield "global", name, function.__globals__[name]


def globals_of(code: types.CodeType) -> list[str]:
    """The global names that code, and code inside it, reads."""
    found = [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return list(dict.fromkeys(chain(found, *map(globals_of, inner))))


def _defaults(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    given = function.__defaults__ or ()
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    yield from zip(positional[len(positional) - len(given) :], given, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


def columns(frame: Any) -> Iterator[Part]:
    """The columns of a DataFrame of pandas."""
    for place, name in enumerate(frame.columns):
        step = step_to(name) if type(name) is str else f".iloc[:, {place}]"
        yield step, frame.iloc[:, place]


# ------------------------------------------------------------------------------- each kind


def _of_dict(value: dict[Any, Any]) -> Iterator[Part]:
    for place, (key, item) in enumerate(value.items()):
        if type(key) not in ATOMS:
            yield f".keys()[{place}]", key
        yield step_to(key), item


def sequence_parts(value: Iterable[Any]) -> Iterator[Part]:
    """The items by their places."""
    return ((f"[{place}]", item) for place, item in enumerate(value))


def _of_array(array: np.ndarray[Any, Any]) -> Iterator[Part]:
    if not is_object_array(array):
        return
    for place in range(array.size):
        index = tuple(map(int, np.unravel_index(place, array.shape)))
        yield f"[{', '.join(map(str, index))}]", array[index]


def _of_named_tuple(value: Any) -> Iterator[Part]:
    names: tuple[str, ...] = type(value)._fields
    return ((f".{name}", item) for name, item in zip(names, tuple.__iter__(value), strict=False))


def _of_function(function: types.FunctionType) -> Iterator[Part]:
    if is_sent_by_value(function):
        yield from ((f": {how} {name}", value) for how, name, value in captured(function))


def _of_method(method: types.MethodType) -> Iterator[Part]:
    yield ".__self__", method.__self__
    yield ".__func__", method.__func__


def _of_partial(value: partial[Any]) -> Iterator[Part]:
    yield ".func", value.func
    yield ".args", value.args
    yield ".keywords", value.keywords


def _of_class(cls: type) -> Iterator[Part]:
    """The attributes of a class that is sent by value."""
    if not is_named(cls):
        skipped = {"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__"}
        yield from ((f".{name}", v) for name, v in vars(cls).items() if name not in skipped)


def _of_exception(error: BaseException) -> Iterator[Part]:
    fields = exceptions.Fields.of(error)
    yield from ((f".args{step}", part) for step, part in sequence_parts(fields.args))
    yield from ((attribute_step(name), part) for name, part in fields.attributes.items())
    yield from ((attribute_step(name), part) for _, name, part in fields.members)


def _of_object(value: Any) -> Iterator[Part]:
    try:
        reduced = codec.reduced(value)
    except Exception:  # noqa: BLE001  it runs user code
        return _attributes(value)
    return _of_reduced(type(value), reduced) if isinstance(reduced, tuple) else iter(())


def _of_reduced(cls: type, reduced: tuple[Any, ...]) -> Iterator[Part]:
    _, args, state, items, pairs = (*reduced, None, None, None)[:5]
    for place, argument in enumerate(args or ()):
        if argument is cls:
            if not is_named(cls):
                yield ".__class__", cls
        elif type(argument) not in ATOMS:
            yield f".__reduce__()[1][{place}]", argument
    yield from state_parts(state, cls)
    yield from sequence_parts(items or ())
    yield from ((step_to(key), item) for key, item in pairs or ())


def state_parts(state: Any, cls: type) -> Iterator[Part]:
    """Attributes if the state is a dict, or the pair of dicts of a class with slots."""
    if type(state) is list and getattr(cls, "__getstate__", None) is FIELDS_IN_ORDER:
        state = dict(zip((field.name for field in dataclasses.fields(cls)), state, strict=True))
    halves: Any = state if type(state) is tuple and len(state) == 2 else (state,)
    if all(half is None or isinstance(half, dict) for half in halves):
        for half in halves:
            yield from ((attribute_step(name), item) for name, item in (half or {}).items())
    else:
        yield ".__getstate__()", state


# ``__getstate__`` of frozen dataclasses with slots: the values of fields without names.
FIELDS_IN_ORDER: Any = getattr(dataclasses, "_dataclass_getstate", ...)


def _attributes(value: Any) -> Iterator[Part]:
    """Attributes of an object that cannot be reduced."""
    for cls in type(value).__mro__:
        for name, found in vars(cls).items():
            if isinstance(found, types.MemberDescriptorType):
                try:
                    yield f".{name}", found.__get__(value)
                except AttributeError:  # a slot that was never filled
                    continue
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return
    yield from ((attribute_step(name), item) for name, item in own.items())


_PARTS: dict[type, Callable[[Any], Iterator[Part]]] = {
    dict: _of_dict,
    list: sequence_parts,
    tuple: sequence_parts,
    set: sequence_parts,
    frozenset: sequence_parts,
    deque: sequence_parts,
    types.FunctionType: _of_function,
    types.MethodType: _of_method,
    types.BuiltinFunctionType: lambda _: iter(()),
    types.ModuleType: lambda _: iter(()),
    partial: _of_partial,
}
_COUNTED = (dict, list, tuple, set, frozenset, deque)


# ------------------------------------------------------------------------------- how it is written


def attribute_step(name: Any) -> str:
    """The step to an attribute, as Python code."""
    return f".{name}" if type(name) is str and name.isidentifier() else step_to(name)


def step_to(key: Any) -> str:
    """The step to a key, as Python code."""
    return f"[{_key(key)}]"


def _key(key: Any) -> str:
    """A key as Python code; for a user's class its name only, since a repr may do anything."""
    if type(key) is tuple and len(key) <= 4:
        return f"({', '.join(map(_key, key))}{',' if len(key) == 1 else ''})"
    if type(key) not in ATOMS:
        return f"<{type(key).__name__}>"
    if isinstance(key, (str, bytes)) and len(key) > _LONGEST_KEY:
        return f"{key[: _LONGEST_KEY - 3]!r}..."
    if type(key) is int and key.bit_length() > 200:
        return "<int>"
    return repr(key)
