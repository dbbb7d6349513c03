"""How a function travels: by name where the worker can import it, by value elsewhere."""

from __future__ import annotations

import importlib
import sys
import zlib
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any

from sharedtask.sharing import codec

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class NamedFunction:
    """A function of an importable module; ``code`` is a checksum of what it should do."""

    module: str
    qualname: str
    code: int

    def load(self) -> Callable[..., Any]:
        """Import the function.

        A worker lives longer than one version of a module. When the caller's process has
        reloaded or patched it, the checksum differs and the module is reloaded here too.
        """
        function = resolve(self.module, self.qualname)
        if code_checksum(function) != self.code:
            importlib.reload(sys.modules[self.module])
            function = resolve(self.module, self.qualname)
        return function


def encode_function(function: Callable[..., Any]) -> codec.Payload:
    """Encode a function; large arrays that it captured become buffers like any other array."""
    named = by_name(function)
    return codec.encode(function if named is None else named)


def load_function(decoded: Any) -> Callable[..., Any]:
    """The callable behind what ``encode_function`` made."""
    return decoded.load() if isinstance(decoded, NamedFunction) else decoded


def by_name(function: Callable[..., Any]) -> NamedFunction | None:
    """The name under which a worker can import ``function``, or None.

    None for ``__main__`` (the user's script is never run twice), for lambdas and nested
    functions, for modules made by hand, and where the name now means another function.
    """
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or "<" in qualname:
        return None
    if module == "__main__" or getattr(sys.modules.get(module), "__spec__", None) is None:
        return None
    try:
        found = resolve(module, qualname)
    except (AttributeError, ImportError):
        return None
    return NamedFunction(module, qualname, code_checksum(function)) if found is function else None


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
            return function


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
