"""How a function travels: by name where the worker can import it, by value elsewhere."""

from __future__ import annotations

import contextlib
import importlib
import operator
import sys
import types
import weakref
import zlib
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from types import CodeType
from typing import TYPE_CHECKING, Any

from sharedtask.errors import SerializationError
from sharedtask.sharing.sources import names_in_texts

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, weakref_slot=True)
class NamedFunction:
    """A function of an importable module.

    ``code`` is a checksum of what the function should do, 0 for unknown; ``generation`` counts how
    often the caller's process has reloaded the module since it was first seen.
    """

    module: str
    qualname: str
    code: int
    generation: int

    def load(self) -> Callable[..., Any]:
        """Import the function.

        A worker lives longer than one version of a module: where the caller has reloaded or patched
        it, it is reloaded here too.

        Raises:
            SerializationError: The module's file holds another function than the caller has.
        """
        known = _generations.setdefault(self.module, _Generation(None, self.generation))
        function = resolve(self.module, self.qualname)
        if known.number != self.generation or self._differs_from(function):
            importlib.reload(sys.modules[self.module])
            known.number = self.generation
            function = resolve(self.module, self.qualname)
        if self._differs_from(function):
            msg = (
                f"{self.module}.{self.qualname} was changed in memory and differs from its file, "
                "which is what workers import. Save the file and reload the module."
            )
            raise SerializationError(msg)
        return function

    def _differs_from(self, function: Callable[..., Any]) -> bool:
        return self.code not in (0, code_checksum(function))


@dataclass(slots=True)
class _Generation:
    """How often a module was reloaded: each time it gets another spec."""

    spec: Any
    number: int


_generations: dict[str, _Generation] = {}


def _generation_of(module: str) -> int:
    spec = sys.modules[module].__spec__
    known = _generations.setdefault(module, _Generation(spec, 0))
    if known.spec is not spec:
        known.spec = spec
        known.number += 1
    return known.number


@dataclass(frozen=True, slots=True)
class Portable:
    """What stands for a function when it is shared: its name, or the function itself.

    ``fixed`` means that it cannot have changed since it was seen last, so nothing need be verified.
    """

    value: Any
    fixed: bool


class _Seen:
    """The name by which a function was last sent, if it has one, and what it was made of then."""

    __slots__ = ("parts", "value")

    def __init__(self, value: Any, parts: list[Any] | None) -> None:
        self.value = value
        self.parts = parts


_seen: weakref.WeakKeyDictionary[Any, _Seen] = weakref.WeakKeyDictionary()


def portable(function: Callable[..., Any]) -> Portable:
    """How ``function`` travels now.

    Redefining a function, a global that it uses, or a function that it calls makes it another one.
    """
    try:
        seen = _seen.get(function)
    except TypeError:  # neither hashable nor weakly referable
        return Portable(function, fixed=False)
    parts = _parts(function)
    if seen is not None and _same(seen.parts, parts):
        return Portable(seen.value or function, fixed=True)
    seen = _Seen(by_name(function), parts)
    with contextlib.suppress(TypeError):
        _seen[function] = seen
    return Portable(seen.value or function, fixed=False)


def _same(old: list[Any] | None, new: list[Any] | None) -> bool:
    if old is None or new is None or len(old) != len(new):
        return False
    return all(map(operator.is_, old, new))


# Values that cannot change, so that the same object means the same contents.
_CONSTANT = (int, float, bool, str, bytes, type(None), types.BuiltinFunctionType)


def _parts(function: Any, depth: int = 3) -> list[Any] | None:
    """All that a function is made of; None where some of it may change without being replaced."""
    if type(function) is not types.FunctionType or function.__dict__ or depth == 0:
        return None
    parts: list[Any] = [function.__code__]
    cells = [_contents(cell) for cell in function.__closure__ or ()]
    names = [n for n in _names(function.__code__) if n in function.__globals__]
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for value in (*values, *cells, *(function.__globals__[n] for n in names)):
        if type(value) is types.FunctionType:
            parts.append(weakref.ref(value))  # one that calls itself would never go
            inner = _parts(value, depth - 1)
            if inner is None:
                return None
            parts.extend(inner)
            continue
        parts.append(value)
        if not isinstance(value, _CONSTANT) and not _is_importable(value):
            return None
    return parts


def _names(code: CodeType) -> list[str]:
    """Names that the code, and code inside it, looks up."""
    found = [*code.co_names, *names_in_texts(code)]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found.extend(_names(constant))
    return found


def _is_importable(value: object) -> bool:
    """True for modules and classes that travel by name."""
    if isinstance(value, types.ModuleType):
        return value.__spec__ is not None
    if not isinstance(value, type):
        return False
    return value.__module__ != "__main__" and "<" not in value.__qualname__


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def by_name(function: Callable[..., Any]) -> NamedFunction | None:
    """The name under which a worker can import ``function``, or None.

    None for ``__main__`` (the user's script is never run twice), for lambdas and nested
    functions, for modules made by hand, and where the name now means another function.
    """
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or "<" in qualname:
        return None
    home = sys.modules.get(module)
    if module == "__main__" or home is None or home.__spec__ is None:
        return None
    if getattr(function, "__globals__", vars(home)) is not vars(home):
        return None  # another module's function that took this one's name, as functools.wraps does
    try:
        found = resolve(module, qualname)
    except (AttributeError, ImportError):
        return None
    if found is not function:
        return None
    # A loader of somebody's own (pytest's, which rewrites assertions) makes other code of the file
    # than a worker will.
    plain = type(home.__spec__.loader) in _PLAIN_LOADERS
    code = code_checksum(function) if plain else 0
    return NamedFunction(module, qualname, code, _generation_of(module))


_PLAIN_LOADERS = (SourceFileLoader, SourcelessFileLoader)


def is_defined_as_task(function: Callable[..., Any]) -> bool:
    """True where a worker that imports the function makes a task of it in passing."""
    named = portable(function).value
    if not isinstance(named, NamedFunction):
        return False
    return hasattr(type(find(named.module, named.qualname)), "_sharedtask_")


def resolve(module: str, qualname: str) -> Callable[..., Any]:
    """Find a function by name, under the decorators that hide it."""
    return bare(find(module, qualname))


def find(module: str, qualname: str) -> Any:
    """What stands under a name, as it was written into its module or class."""
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = vars(found)[name] if name in vars(found) else getattr(found, name)
    return found


def bare(function: Any) -> Callable[..., Any]:
    """The plain function under a task, a static method or a class method."""
    while True:
        if isinstance(function, (staticmethod, classmethod)):
            function = function.__func__
        elif hasattr(type(function), "_sharedtask_"):
            function = function.__wrapped__
        else:
            plain: Callable[..., Any] = function
            return plain


def code_checksum(function: Any) -> int:
    """A number that changes with the function's code and is the same in every process."""
    code = getattr(function, "__code__", None)
    return 0 if code is None else _checksum(code)


def _checksum(code: CodeType) -> int:
    total = zlib.crc32(code.co_code)
    for name in (*code.co_names, *code.co_varnames, *code.co_freevars):
        total = zlib.crc32(name.encode("utf-8", "surrogatepass"), total)
    for constant in code.co_consts:
        total = zlib.crc32(_constant(constant), total)
    return total


def _constant(constant: object) -> bytes:
    if isinstance(constant, CodeType):
        return _checksum(constant).to_bytes(4, "little")
    if isinstance(constant, frozenset):  # its order changes with the hash seed
        return repr(sorted(map(repr, constant))).encode("utf-8", "backslashreplace")
    return repr(constant).encode("utf-8", "backslashreplace")
