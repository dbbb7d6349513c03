"""The parts of a function: recorded when it is encoded, compared before its encoding is reused.

Encoding a function at every call costs 50 us and more; checking that it still consists of the same
objects costs a few. That is a proof only if those objects are immutable, so a function that refers
to any other object has no composition and is encoded and compared every time::

    encode   pickler --reduction--> Record.note      the parts read are the parts written
    publish  Record.composition()    -> kept with the publication
    call     of_function(now)        -> the same objects: the publication is current

The record contains the objects that the pickler read. Objects read before or after it may
belong to another moment: thread 1 reads X, thread 2 sets X, thread 1 pickles the new X.
"""

from __future__ import annotations

import dis
import itertools
import operator
import sys
import types
import weakref
from contextvars import ContextVar
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle

from .modules import MAIN, is_made_by_hand
from .sources import names_in_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "MAIN",
    "Composition",
    "Record",
    "composition_of",
    "is_constant",
    "is_named",
    "names",
    "of_function",
    "own_parts",
    "same",
    "stored_names",
]

# Objects in the order in which they were met. The same objects in the same order are the same
# function.
Composition = list[Any]

_NEXT = object()  # between two parts of a function
_EMPTY = object()  # a cell without contents
_MISSING = object()  # a global that is undefined, or is a builtin
_BY_NAME = object()  # marks a function that is sent by name
_ATOMS = frozenset(
    (int, float, complex, bool, str, bytes, type(None), type(Ellipsis), CodeType, object)
)


def same(old: Composition | None, new: Composition | None) -> bool:
    """True if both consist of the same objects; False if that is unknown."""
    if old is None or new is None or len(old) != len(new):
        return False
    return all(map(operator.is_, old, new))


def of_function(function: Any, by_value: tuple[Any, ...] = ()) -> Composition | None:
    """The present parts of a function; None if one of them is mutable.

    The function itself is sent by value, and so are these others.
    """
    if type(function) is not FunctionType:
        return None

    def read(other: FunctionType) -> list[Any] | None:
        return None if other not in by_value and is_named(other) else _parts_now(other)

    return _flattened(function, _parts_now(function), read)


def composition_of(record: Record | None, value: object) -> Composition | None:
    """The composition of an encoded function; None for any other value."""
    return None if record is None else record.composition(value)


class Record:
    """The parts of functions, and of their closures' cells, as they were pickled."""

    __slots__ = ("_cells", "_functions", "_modules")

    def __init__(self) -> None:
        self._functions: dict[FunctionType, tuple[Any, ...]] = {}
        self._cells: dict[int, Any] = {}
        self._modules = _loaded()

    def note(self, function: FunctionType, reduction: Any) -> None:
        """Take the parts of a function from the reduction that cloudpickle made of it.

        In another version of cloudpickle it may look different. Then nothing is noted.
        """
        try:
            (code, *_), (attributes, slots) = reduction[1:3]
            if slots["__kwdefaults__"]:  # the function's own dict, which other threads may change
                slots["__kwdefaults__"] = dict(slots["__kwdefaults__"])
            parts = _parts(
                code,
                (slots["__qualname__"], slots["__module__"], slots["__doc__"]),
                slots["__defaults__"],
                slots["__kwdefaults__"],
                attributes,
            )
            self._functions[function] = (parts, slots["__closure__"], slots["__globals__"])
        except (LookupError, TypeError, ValueError):
            pass

    def read(self, cell: types.CellType) -> tuple[Any, ...]:
        """The contents of a cell, which are read once; empty if the cell is."""
        found = self._cells[id(cell)] = _contents(cell)
        return () if found is _EMPTY else (found,)

    def composition(self, function: Any) -> Composition | None:
        """The composition of ``function`` when it was pickled; None if it is unknown."""
        if type(function) is not FunctionType or function not in self._functions:
            return None
        try:
            return _flattened(function, self._own(function), self._own, self._modules)
        except KeyError:
            return None

    def _own(self, function: FunctionType) -> list[Any] | None:
        found = self._functions.get(function)
        if found is None:
            return None
        parts, closure, values = found
        cells = [self._cells[id(cell)] for cell in closure or ()]
        known = [values.get(name, _MISSING) for name in names(parts[0])]
        return [*parts, *cells, _NEXT, *known]


def _parts_now(function: FunctionType) -> list[Any]:
    return own_parts(function, names(function.__code__))


def own_parts(function: FunctionType, read: tuple[str, ...]) -> list[Any]:
    """The parts of a function and the globals that it reads, in the form of ``Record``."""
    parts = _parts(
        function.__code__,
        (function.__qualname__, function.__module__, function.__doc__),
        function.__defaults__,
        function.__kwdefaults__,
        function.__dict__,
    )
    if function.__closure__:
        parts.extend(map(_contents, function.__closure__))
    parts.append(_NEXT)
    values = function.__globals__
    parts.extend(map(values.get, read, itertools.repeat(_MISSING)))
    return parts


def _parts(
    code: CodeType,
    said: tuple[Any, ...],
    defaults: tuple[Any, ...] | None,
    kwdefaults: dict[str, Any] | None,
    attributes: dict[str, Any],
) -> list[Any]:
    qualname, *rest = said
    # cloudpickle writes copies of names.
    interned = sys.intern(qualname) if type(qualname) is str else qualname
    parts = [code, interned, *rest, *(defaults or ()), _NEXT]
    if kwdefaults:
        parts += _items(kwdefaults)
    parts.append(_NEXT)
    if attributes:
        parts += _items(attributes)
    parts.append(_NEXT)
    return parts


def _items(named: dict[str, Any]) -> Iterator[Any]:
    for name, value in named.copy().items():
        yield _interned(name)
        yield value


def _interned(name: str) -> str:
    """The interned string: cloudpickle writes copies of names."""
    return sys.intern(name) if type(name) is str else name


def _flattened(
    root: FunctionType,
    own: list[Any] | None,
    read: Callable[[FunctionType], list[Any] | None],
    modules: int | None = None,
) -> Composition | None:
    """The parts of a function and of all functions in it; None if one of them is mutable.

    ``read`` gives the parts of a function, None for one that is sent by name.
    """
    parts: Composition = []
    met, queue = {root}, [own]
    packages = False
    for each in queue:
        if each is None or _ATOMS.issuperset(map(type, each)):
            parts += (_BY_NAME,) if each is None else each
            continue
        for value in each:
            kind = type(value)
            if kind is FunctionType:
                parts.append(weakref.ref(value))  # a recursive function would never be freed
                if value not in met:
                    met.add(value)
                    queue.append(read(value))
            elif is_constant(value):
                parts.append(value)
                packages = packages or (kind is types.ModuleType and hasattr(value, "__path__"))
            else:
                return None
    if packages:
        # A function that uses a package is sent with the names of its loaded modules.
        parts.append(_loaded() if modules is None else modules)
    return parts


_last_loaded = 0


def _loaded() -> int:
    """How many modules are loaded: the same object as long as it is the same number."""
    global _last_loaded  # noqa: PLW0603  a memo
    found = len(sys.modules)
    if found != _last_loaded:
        _last_loaded = found
    return _last_loaded


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


class _Names(NamedTuple):
    """Globals that a code object, and code inside it, looks up or sets; and those that it sets."""

    used: tuple[str, ...]
    stored: tuple[str, ...]


_known_names: dict[int, _Names] = {}
_codes: dict[int, weakref.ref[CodeType]] = {}


def names(code: CodeType) -> tuple[str, ...]:
    """Globals that the code, and code inside it, looks up or sets."""
    # By identity: hashing a code object takes as long as the rest.
    found = _known_names.get(id(code))
    return (_look_at(code) if found is None else found).used


def stored_names(code: CodeType) -> tuple[str, ...]:
    """Globals that the code, and code inside it, sets."""
    found = _known_names.get(id(code))
    return (_look_at(code) if found is None else found).stored


def _look_at(code: CodeType) -> _Names:
    met = list(_global_names(code))
    used = tuple(dict.fromkeys((*(name for _, name in met), *names_in_texts(code))))
    stored = tuple(dict.fromkeys(name for how, name in met if how == "STORE_GLOBAL"))
    found, key = _Names(used, stored), id(code)

    def forget(_: object) -> None:
        _known_names.pop(key, None)
        _codes.pop(key, None)

    _codes[key] = weakref.ref(code, forget)
    _known_names[key] = found
    return found


def _global_names(code: CodeType) -> Iterator[tuple[str, str]]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBAL_OPERATIONS:
            yield instruction.opname, instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


_GLOBAL_OPERATIONS = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL")


# ------------------------------------------------------------------------------- what is constant


def is_constant(value: Any) -> bool:
    """True for immutable values, and for those that are sent by name only.

    An object of a derived class may have attributes, so the types are exact. A method that is bound
    to an object reaches that object.
    """
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is types.ModuleType:
        return _is_loaded(value)
    if kind is ContextVar:  # its value is sent separately
        return True
    if issubclass(kind, type):
        return is_named(value)
    if kind is types.BuiltinFunctionType:
        home = value.__self__
        return home is None or (isinstance(home, (types.ModuleType, type)) and is_constant(home))
    if kind in _METHODS_OF_CLASSES:
        return is_named(value.__objclass__)
    if kind is tuple or kind is frozenset:
        return all(map(is_constant, value))
    return False


_METHODS_OF_CLASSES = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)


def is_named(obj: Any) -> bool:
    """True for a function or class that is found by its name; False says nothing."""
    module: Any = getattr(obj, "__module__", None)
    home = None if module in MAIN else sys.modules.get(module)
    if type(home) is not types.ModuleType or is_made_by_hand(home):
        return False
    found: Any = home
    for name in obj.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
        if found is None:
            return False
    return found is obj and not cloudpickle.list_registry_pickle_by_value()


def _is_loaded(module: types.ModuleType) -> bool:
    name: Any = getattr(module, "__name__", None)
    if sys.modules.get(name) is not module or is_made_by_hand(module):
        return False
    return not cloudpickle.list_registry_pickle_by_value()
