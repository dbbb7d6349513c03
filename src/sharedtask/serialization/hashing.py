"""Digests of values and functions: equal for equal ones, in every process, at any time.

A pickle is no such digest. It writes sets in the order of this process's hashes, records which
parts are the same object, gives a class of ``__main__`` a random number, and a function its line
numbers. So the pickle that is hashed here is never loaded: parts that express more than the
contents are replaced::

    value -> pickle without a memo -> blake2b          set       its elements, in order
                                                       array     dtype, shape, digest of its bytes
                                                       function  see ``Fingerprints.parts``

The order of a dict counts: a task can see it.
"""

from __future__ import annotations

import contextlib
import marshal
from hashlib import blake2b
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.memory import mapping
from sharedtask.memory.strided import dense
from sharedtask.system.records import dataclass, field

from . import buffers, codec, functions, reducers
from .buffer_collector import Outgoing
from .class_memos import is_noted
from .kinds import named
from .lazy import reduce_lazy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy.typing as npt

__all__ = ["SIZE", "Fingerprints", "fingerprint", "joined"]

SIZE = 16
# Written by marshal, which ignores identity in this version of its format.
_ATOMS: frozenset[type] = frozenset((int, float, complex, bool, str, bytes, type(None)))
_MARSHAL_VERSION = 2
_PLAIN, _ARRAY, _PICKLED = b"p", b"a", b"o"


def fingerprint(value: object) -> bytes:
    """The digest of a value; pickling errors propagate."""
    return Fingerprints().of(value)


def joined(digests: Mapping[str, bytes]) -> bytes:
    """One digest for named ones."""
    return _hashed(_PLAIN, marshal.dumps(sorted(digests.items()), _MARSHAL_VERSION))


def _hashed(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=SIZE).digest()


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is tuple or kind is list:
        return _ATOMS.issuperset(map(type, value))
    return kind is dict and _ATOMS.issuperset(map(type, (*value, *value.values())))


@dataclass(slots=True)
class _Walk:
    """The objects met in a traversal of a function or class and the globals that it names.

    ``home`` has the globals of its module: objects defined there are traversed.
    """

    home: Mapping[str, Any]
    numbers: dict[int, int] = field(default_factory=dict)
    held: list[object] = field(default_factory=list)

    def enter(self, met: object) -> int | None:
        """None for a new object, else the number that it got at its first visit."""
        number = self.numbers.get(id(met))
        if number is None:
            self.numbers[id(met)] = len(self.numbers)
            self.held.append(met)
        return number


class Fingerprints:
    """Computes digests, and caches those of functions and classes.

    Args:
        known: Called for the digest of each array inside a value; None if it has to be computed.
    """

    def __init__(self, known: Callable[[npt.NDArray[Any]], bytes | None] = lambda _: None) -> None:
        self.known = known
        self._roots: dict[int, tuple[object, bytes]] = {}
        self._named: dict[FunctionType, bool] = {}

    def of(self, value: Any) -> bytes:
        """The digest of a value.

        Raises:
            Exception: Any error of pickling it.
        """
        if _is_plain(value):
            return _hashed(_PLAIN, marshal.dumps(value, _MARSHAL_VERSION))
        if type(value) is np.ndarray and _has_bytes(value):
            return self.of_array(value)
        return self.pickled(value, None)

    def of_array(self, array: npt.NDArray[Any]) -> bytes:
        """The digest of an array: dtype, shape and elements, in any memory order."""
        hashed = blake2b(_ARRAY, digest_size=SIZE)
        hashed.update(self.of((reducers.dtype_key(array.dtype), *array.shape)))
        if array.dtype.names is not None:  # there may be padding between its fields
            for name in array.dtype.names:
                hashed.update(self.of_array(array[name]))
        elif array.dtype.itemsize:
            for block in _blocks(array):
                hashed.update(mapping.memory_of(buffers.flat(block)))
        return hashed.digest()

    def parts(self, function: Callable[..., Any], name: str) -> dict[str, bytes]:
        """The parts that determine a function's results, as text, and the digest of each.

        These are its code, its defaults and attributes, its captured values, and each global that
        it names. Functions and classes of its own module, of ``__main__`` and of other functions
        are traversed in the same way; those of other modules count by name, modules as well. An
        unpicklable part counts by its class.
        """
        if type(function) is not FunctionType or named.is_dispatcher(function):
            return {f"the code of {name}()": self.of(function)}
        found = {f"the code of {name}()": self._part(function, function.__code__)}
        defaults = function.__defaults__, function.__kwdefaults__
        if any(defaults):
            found[f"a default of {name}()"] = self._part(function, defaults)
        for variable, value in sorted(function.__dict__.items()):
            found[f"{name}.{variable}"] = self._part(function, value)
        for variable, value in _captured(function):
            found[f"{variable!r}, which {name}() captures"] = self._part(function, value)
        for variable, value in _globals(function):
            found[_called(variable, value)] = self._part(function, value)
        return found

    def _part(self, function: FunctionType, value: object) -> bytes:
        walk = _Walk(function.__globals__)
        walk.enter(function)
        return self.attempt(value, walk)

    def attempt(self, value: object, walk: _Walk) -> bytes:
        """The digest of a part of a function; of an unpicklable part, that of its class."""
        numbers = dict(walk.numbers)
        try:
            return self.pickled(value, walk)
        except Exception:  # noqa: BLE001  pickling runs user code
            walk.numbers = numbers
            kind = type(value)
            return _hashed(b"?", f"{kind.__module__}.{kind.__qualname__}".encode())

    def root(self, met: Any) -> bytes:
        """The digest of a function or class by itself, independent of its context."""
        found = self._roots.get(id(met))
        if found is None:
            walk = _Walk(getattr(met, "__globals__", {}))
            digest = self.pickled(met, walk)
            found = self._roots[id(met)] = met, digest
        return found[1]

    def is_named(self, function: FunctionType) -> bool:
        """Whether it is found by its name."""
        found = self._named.get(function)
        if found is None:
            found = self._named[function] = functions.by_name(function) is not None
        return found

    def pickled(self, value: object, walk: _Walk | None) -> bytes:
        """The digest of the canonical pickle, with a memo only if a value contains itself."""
        numbers = {} if walk is None else dict(walk.numbers)
        try:
            return self._pickled(value, walk, fast=True)
        except Exception:  # noqa: BLE001  it may contain itself; anything else is raised again
            if walk is not None:
                walk.numbers = numbers
        return self._pickled(value, walk, fast=False)

    def _pickled(self, value: object, walk: _Walk | None, *, fast: bool) -> bytes:
        out = Outgoing(in_band=False, by_path=False)
        hashed = blake2b(_PICKLED, digest_size=SIZE)
        pickler = _Canonical(_Hashing(hashed.update), value, out, out.passed.append)
        pickler.prints, pickler.walk, pickler.fast = self, walk, fast
        codec.dump(pickler, value)
        sources, table = out.parts()
        hashed.update(table)
        for source in sources:
            hashed.update(source.nbytes.to_bytes(8, "little"))
            hashed.update(mapping.memory_of(dense(source)))
        return hashed.digest()


@dataclass(frozen=True, slots=True)
class _Hashing:
    """A stream that hashes and keeps nothing."""

    write: Callable[[Any], object]


class _Canonical(codec.ValuePickler):
    """Writes the contents of a value, independent of place and time."""

    prints: Fingerprints
    walk: _Walk | None

    def persistent_id(self, obj: Any) -> Any:
        """The replacement for objects that pickle would write itself."""
        stand_in = _STAND_INS.get(type(obj))
        return None if stand_in is None else stand_in(self, obj)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and self._looks_into(obj, obj.__module__):
            return tuple, ((self._once(obj, _of_class),),)
        if hasattr(type(obj), "_sharedtask_"):
            return tuple, ((self.function(functions.bare(obj)),),)
        held = reduce_lazy(obj)
        if held is not None:
            return held
        return super().reducer_override(obj)

    def _looks_into(self, obj: Any, module: str) -> bool:
        """Whether its code counts, not only its name."""
        if module == "__main__" or "<" in obj.__qualname__:
            return True
        return self.walk is not None and module == self.walk.home.get("__name__")

    def _once(self, obj: Any, describe: Callable[[_Canonical, Any], Any]) -> Any:
        if self.walk is None:
            return "root", self.prints.root(obj)
        number = self.walk.enter(obj)
        return describe(self, obj) if number is None else ("met", number)

    def function(self, function: Any) -> Any:
        """A function by its code, or by its name if it belongs to another module."""
        if type(function) is not FunctionType:
            return "callable", function
        if self._looks_into(function, function.__module__) or not self.prints.is_named(function):
            return self._once(function, _of_function)
        return "name", function.__module__, function.__qualname__

    def attempts(self, named: Iterable[tuple[str, Any]]) -> list[tuple[str, bytes]]:
        """Digests of the parts of a function or class."""
        assert self.walk is not None  # noqa: S101  entered by ``_once``
        return [(name, self.prints.attempt(value, self.walk)) for name, value in named]

    def elements(self, values: Any) -> Any:
        """A set, in an order that does not depend on hashes."""
        if len({type(value) for value in values}) == 1 and type(next(iter(values))) in _SORTED:
            return type(values).__name__, sorted(values)
        if self.walk is None:
            return type(values).__name__, sorted(map(self.prints.of, values))
        return type(values).__name__, sorted(self.prints.attempt(v, self.walk) for v in values)

    def array(self, array: npt.NDArray[Any]) -> Any:
        """An array: its digest instead of its bytes."""
        if not _has_bytes(array):
            return None
        return "array", self.prints.known(array) or self.prints.of_array(array)


_SORTED = (int, str, bytes)
_STAND_INS: dict[type, Callable[[_Canonical, Any], Any]] = {
    set: _Canonical.elements,
    frozenset: _Canonical.elements,
    np.ndarray: _Canonical.array,
    FunctionType: _Canonical.function,
    CodeType: lambda _, code: _of_code(code),
    ModuleType: lambda _, module: ("module", module.__name__),
}


def _blocks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Parts that can be copied: an array in another order is never copied as a whole."""
    if array.flags.c_contiguous:
        yield array
        return
    rows = max(_BLOCK * len(array) // max(array.nbytes, 1), 1)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


_BLOCK = 1 << 24


def _has_bytes(array: npt.NDArray[Any]) -> bool:
    return not array.dtype.hasobject and array.dtype.itemsize > 0


# ---------------------------------------------------------------------- functions, classes


def _of_function(pickler: _Canonical, function: FunctionType) -> Any:
    if named.is_dispatcher(function):
        return _of_dispatcher(pickler, function)
    return (
        "function",
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        pickler.attempts(sorted(function.__dict__.items())),
        pickler.attempts(_captured(function)),
        pickler.attempts(_globals(function)),
    )


def _of_dispatcher(pickler: _Canonical, function: Any) -> Any:
    """What is registered with it: its own variables change when it is used."""
    _, (default,), (registry, own), *_ = named.reduce_dispatcher(function)
    found = [(cls.__qualname__, (cls, each)) for cls, each in registry.items()]
    return "dispatcher", pickler.attempts([("", default), *found, *sorted(own.items())])


# Flags that change calls: *args, **kwargs, generators and coroutines. Others depend on where the
# code was written.
_KINDS = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200


def _of_code(code: CodeType) -> Any:
    """All of a code object except its location, its documentation and its own name."""
    constants = code.co_consts
    if constants and type(constants[0]) is str and not code.co_name.startswith("<"):
        constants = (None, *constants[1:])  # a string before the first statement: its documentation
    return (
        "code",
        code.co_code,
        constants,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _KINDS),
        getattr(code, "co_exceptiontable", b""),
    )


def _of_class(pickler: _Canonical, cls: type) -> Any:
    own = {name: value for name, value in vars(cls).items() if name not in _NO_PART}
    if own.get("__annotate_func__") is not None:
        own.pop("__annotations_cache__", None)  # its results, once someone has asked for them
    members = sorted((name, value) for name, value in own.items() if not is_noted(name, value))
    return "class", cls.__qualname__, cls.__bases__, pickler.attempts(members)


_NO_PART = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__module__",
        "__doc__",
        "__firstlineno__",
        "__static_attributes__",
        "_abc_impl",
        "_value2member_map_",  # of the members; a flag adds combinations that were asked for
    }
)


def _captured(function: FunctionType) -> Iterator[tuple[str, Any]]:
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        if name == "__classdict__":  # of its class, for annotations: what counts is a member there
            continue
        with contextlib.suppress(ValueError):  # an empty cell differs from one with None
            yield name, cell.cell_contents


def _globals(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals that the function, and functions written inside it, may look up."""
    for name in sorted(set(functions.global_names(function.__code__))):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _called(name: str, value: object) -> str:
    """The description of a global."""
    if isinstance(value, ModuleType):
        return f"the module {name!r}"
    if isinstance(value, (FunctionType, type)) or hasattr(type(value), "_sharedtask_"):
        return f"the code of {name}()"
    return f"the global {name!r}"
