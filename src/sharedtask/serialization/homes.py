"""A function of an importable module, and the globals of that module in memory.

A worker imports the module from its file. The program may have changed it in memory::

    mod.LIMIT = 5        since the function's first use     -> it is sent by value
    mod.LIMIT = 5        before, if the file has a constant -> it is sent by value
    mod.SIZES.append(5)  the same object as before          -> workers use the file's
"""

from __future__ import annotations

import dis
import itertools
import sys
import weakref
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from operator import attrgetter, call, is_
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from .composition import names, own_parts, same, stored_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "PLAIN_LOADERS",
    "Defaults",
    "Glance",
    "defaults",
    "functions_of",
    "glance_at",
    "is_plain",
    "parts_of",
    "set_defaults",
    "state",
    "was_changed",
]

# The positional defaults, and those by keyword.
Defaults = tuple[tuple[Any, ...] | None, tuple[tuple[str, Any], ...] | None]

PLAIN_LOADERS = (SourceFileLoader, SourcelessFileLoader)
_PLAIN = frozenset((int, float, complex, bool, str, bytes, type(None)))


# In the state of a function: values themselves, as the marks between parts; values by reference.
_KEPT = _PLAIN | {object}
_REFERRED = frozenset((FunctionType, CodeType, ModuleType, type))


def is_plain(value: Any) -> bool:
    """True for values that are equal in another process if their form is equal."""
    kind = type(value)
    return kind in _PLAIN or (kind is tuple and all(map(is_plain, value)))


# ------------------------------------------------------------------------------- defaults


def defaults(function: Any) -> Defaults | None:
    """The defaults of a function, None if another process cannot have equal ones."""
    if type(function) is not FunctionType:
        return None
    by_keyword = function.__kwdefaults__
    found = function.__defaults__, None if by_keyword is None else tuple(by_keyword.items())
    return found if is_plain(found) else None


def set_defaults(function: Any, given: Defaults) -> None:
    """Set the caller's defaults on an imported function."""
    function.__defaults__ = given[0]
    function.__kwdefaults__ = None if given[1] is None else dict(given[1])


# ------------------------------------------------------------------------------- memory


def functions_of(function: Any) -> list[Any]:
    """The function, and the functions of its module that it uses, also indirectly."""
    return [each for each, _ in _with_parts(function, _home_of(function))]


def _with_parts(function: Any, home: Mapping[str, Any]) -> list[tuple[Any, list[Any]]]:
    """Each of ``functions_of``, with its parts and the globals of its module."""
    queue, met = [function], {id(function)}
    found = []
    for each in queue:
        parts: list[Any] = []
        if type(each) is FunctionType:
            parts = own_parts(each, names(each.__code__))
        found.append((each, parts))
        for value in parts:
            if type(value) is FunctionType and id(value) not in met:
                met.add(id(value))
                if value.__globals__ is home:
                    queue.append(value)
    return found


def state(function: Any) -> list[Any]:
    """The parts of a function and of those of its module that it uses, with their globals.

    The spec of the module comes first: another one means that it was reloaded. A global that one of
    them sets itself, such as a counter or a lazily created object, does not count.
    """
    module = _module_of(function)
    found: list[Any] = [getattr(module, "__spec__", None)]
    known = _with_parts(function, {} if module is None else vars(module))
    for each, parts in known:
        if parts and stored_names(each.__code__):
            known = [(each, own_parts(each, read)) for each, read in _reads([f for f, _ in known])]
            break
    for _, parts in known:
        for value in parts:
            kind = type(value)
            if kind in _KEPT:
                found.append(value)
            else:
                found.append(weakref.ref(value) if kind in _REFERRED else _held(value))
    return found


# ------------------------------------------------------------------------- at a glance

_own_of = attrgetter(
    *("__code__", "__qualname__", "__module__", "__doc__"),
    *("__defaults__", "__kwdefaults__", "__closure__"),
)
_absents = itertools.repeat(object())  # a global that is undefined, or is a builtin


class _Look(NamedTuple):
    """A function, its own parts, and what gives the globals that it reads as they were."""

    refer: Callable[[], Any]
    own: tuple[Any, ...]
    read: tuple[str, ...]
    givers: list[Callable[[], Any]]

    def holds(self) -> bool:
        """Whether they are the same now."""
        function = self.refer()
        if function is None or function.__dict__ or not all(map(is_, _own_of(function), self.own)):
            return False
        now = map(function.__globals__.get, self.read, _absents)
        return all(map(is_, now, map(call, self.givers)))


class Glance:
    """Tells whether a function has the ``state`` that it had, in a third of the time.

    It takes the parts that can be read without a decision; for other functions there is none.
    """

    __slots__ = ("_looks", "_module", "_spec")

    def __init__(self, module: ModuleType, looks: list[_Look]) -> None:
        self._module, self._spec = module.__name__, module.__spec__
        self._looks = looks

    def holds(self) -> bool:
        """Whether it has; False if that is unknown."""
        if getattr(sys.modules.get(self._module), "__spec__", None) is not self._spec:
            return False
        for look in self._looks:  # noqa: SIM110  at each call: a generator takes as long as this
            if not look.holds():
                return False
        return True


def glance_at(function: Any) -> Glance | None:
    """A glance at the present parts of a function; None if it has more than these."""
    module = _module_of(function)
    each = functions_of(function)
    if module is None or module.__name__ != function.__module__ or not all(map(_is_simple, each)):
        return None
    return Glance(module, list(map(_look_at, each)))


def _is_simple(function: Any) -> bool:
    if type(function) is not FunctionType or stored_names(function.__code__):
        return False
    others = function.__closure__, function.__kwdefaults__, function.__dict__
    return not any(others) and is_plain(function.__defaults__)


def _look_at(function: FunctionType) -> _Look:
    read = names(function.__code__)
    values = map(function.__globals__.get, read, _absents)
    return _Look(
        weakref.ref(function), _own_of(function), read, [_giver_of(value) for value in values]
    )


def _giver_of(value: Any) -> Callable[[], Any]:
    """What gives a value again, and keeps it only if it must: see ``state``."""
    held = value if type(value) in _KEPT else _held(value)
    return held if type(held) is weakref.ref else itertools.repeat(held).__next__


def parts_of(function: FunctionType) -> list[Any]:
    """The parts of a function, with the globals that it reads."""
    return own_parts(function, names(function.__code__))


def was_changed(function: Any, known: list[Any] | None, now: list[Any]) -> bool:
    """True if a worker that imports the module gets something else than the caller has.

    ``known`` is the state at its first use.
    """
    if known is not None and known[0] is now[0]:
        return not same(known, now)
    home = _home_of(function)
    constants = _constants_of(_module_of(function))
    return bool(constants) and any(
        name in constants and not _looks_like(constants[name], each.__globals__.get(name, home))
        for each, read in _reads(functions_of(function))
        if each.__globals__ is home
        for name in read
    )


def _home_of(function: Any) -> Mapping[str, Any]:
    """The globals of the module that the function's ``__module__`` names."""
    home = _module_of(function)
    return {} if home is None else vars(home)


def _module_of(function: Any) -> ModuleType | None:
    name: Any = getattr(function, "__module__", None)
    return sys.modules.get(name)


def _reads(functions: Iterable[Any]) -> list[tuple[FunctionType, tuple[str, ...]]]:
    """Functions, each with the globals that count."""
    plain = [each for each in functions if type(each) is FunctionType]
    own = {name for each in plain for name in stored_names(each.__code__)}
    read = [(each, names(each.__code__)) for each in plain]
    if not own:
        return read
    return [(each, tuple(name for name in found if name not in own)) for each, found in read]


def _held(value: Any) -> Any:
    """A weak reference to a value, or the value itself if its type allows none."""
    try:
        return weakref.ref(value)
    except TypeError:
        return value


def _looks_like(constant: Any, value: Any) -> bool:
    return is_plain(value) and type(value) is type(constant) and repr(value) == repr(constant)


_files: weakref.WeakKeyDictionary[ModuleType, tuple[Any, dict[str, Any]]] = (
    weakref.WeakKeyDictionary()
)


def _constants_of(home: ModuleType | None) -> dict[str, Any]:
    """The globals that the file of a module sets once, to a constant."""
    spec = getattr(home, "__spec__", None)
    if home is None or spec is None or type(spec.loader) not in PLAIN_LOADERS:
        return {}
    known = _files.get(home)
    if known is None or known[0] is not spec:
        known = _files[home] = spec, _constants_in(spec)
    return known[1]


def _constants_in(spec: Any) -> dict[str, Any]:
    try:
        code = spec.loader.get_code(spec.name)
    except (ImportError, OSError, SyntaxError):  # the file was removed, or is being written
        return {}
    return {} if code is None else _assigned(code)


def _assigned(code: CodeType) -> dict[str, Any]:
    found: dict[str, Any] = {}
    often: set[str] = set()
    instructions = list(dis.get_instructions(code))
    for before, instruction in itertools.pairwise(instructions):
        if instruction.opname in ("STORE_NAME", "STORE_GLOBAL", "DELETE_NAME"):
            name, value = instruction.argval, before.argval
            constant = before.opname in ("LOAD_CONST", "LOAD_SMALL_INT") and is_plain(value)
            if name in found or not constant:
                often.add(name)
            else:
                found[name] = value
    return {name: value for name, value in found.items() if name not in often}
