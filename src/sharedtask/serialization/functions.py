"""How a function is sent: by name if the worker can import it, else by value."""

from __future__ import annotations

import contextlib
import importlib
import sys
import zlib
from types import CodeType, FrameType, FunctionType
from typing import TYPE_CHECKING, Any

from cloudpickle import list_registry_pickle_by_value

from sharedtask.errors import SerializationError
from sharedtask.system.finalizers import Known
from sharedtask.system.records import dataclass

from . import homes
from .composition import of_function, same
from .modules import travels_by_value
from .sources import names_in_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .composition import Composition


@dataclass(frozen=True, slots=True, weakref_slot=True)
class NamedFunction:
    """A function of an importable module.

    ``code`` is a checksum of the function's code, 0 for unknown; ``generation`` counts how often
    the caller's process has reloaded the module since its first use. ``defaults`` are those that it
    has in the caller, if another process can have them.
    """

    module: str
    qualname: str
    code: int
    generation: int
    defaults: homes.Defaults | None = None

    def load(self) -> Callable[..., Any]:
        """Import the function.

        A worker outlives versions of a module: if the caller has reloaded or patched it, it is
        reloaded here too.

        Raises:
            SerializationError: The module's file contains another function than the caller has.
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
        if self.defaults is not None:
            homes.set_defaults(function, self.defaults)
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
    """The form in which a function is shared: its name, or the function itself.

    ``by_value`` are functions that are sent by value, although a worker could import them.
    ``composition`` has the present parts of the function; None if these do not show changes.
    """

    value: Any
    by_value: tuple[Any, ...] = ()
    composition: Composition | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """The name of a function, and its state when that name was verified."""

    portable: Portable
    state: list[Any]
    is_ours: bool
    glance: homes.Glance | None


_known: Known[_Known] = Known()
# Functions of the library, which no program changes.
_OF_WORKERS = "sharedtask.backends.worker."


def portable(function: Callable[..., Any]) -> Portable:
    """The present portable form of ``function``.

    Redefining a function, a global that it uses, or a function that it calls changes the form.
    """
    if type(function) is FunctionType and _has_no_name(function):
        return Portable(function, (), of_function(function))
    known = _known.get(function)
    if known is not None:
        holds = known.is_ours or (known.glance is not None and known.glance.holds())
        if holds and (known.is_ours or not list_registry_pickle_by_value()):
            return known.portable
    state = homes.state(function)
    if known is not None and same(known.state, state) and not list_registry_pickle_by_value():
        return known.portable
    return _looked_up(function, known, state)


def _looked_up(function: Any, known: _Known | None, state: list[Any]) -> Portable:
    """Find the name of a function that is new, or has changed since its first use."""
    named = by_name(function)
    if named is None:
        return _as_it_is(function, () if _is_shown_elsewhere(function) else (function,))
    if homes.was_changed(function, None if known is None else known.state, state):
        return _as_it_is(function, tuple(homes.functions_of(function)))
    sent, is_ours = Portable(named), named.module.startswith(_OF_WORKERS)
    with contextlib.suppress(TypeError):
        _known.put(function, _Known(sent, state, is_ours, _glance_of(function, state)))
    return sent


def _glance_of(function: Any, state: list[Any]) -> homes.Glance | None:
    """A glance at a function that is in this state; None if another thread changes it now."""
    glance = homes.glance_at(function)
    if glance is None or not glance.holds() or not same(state, homes.state(function)):
        return None
    return glance


def _as_it_is(function: Any, by_value: tuple[Any, ...]) -> Portable:
    return Portable(function, by_value, of_function(function, by_value))


def _has_no_name(function: FunctionType) -> bool:
    return function.__module__ == "__main__" or "<" in function.__qualname__


def global_names(code: CodeType) -> list[str]:
    """Names that the code, and code inside it, looks up."""
    found = [*code.co_names, *names_in_texts(code)]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found.extend(global_names(constant))
    return found


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def by_name(function: Callable[..., Any]) -> NamedFunction | None:
    """The name under which a worker can import ``function``, or None.

    None for ``__main__`` (the user's script is never run twice), for lambdas and nested
    functions, for modules created at run time, and if the name now means another one.
    """
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or "<" in qualname:
        return None
    home = sys.modules.get(module)
    if module == "__main__" or home is None or home.__spec__ is None or travels_by_value(home):
        return None
    if not _is_written_in(function, vars(home)):
        return None  # another module's function with this one's name
    try:
        found = resolve(module, qualname)
    except (AttributeError, ImportError):
        return None
    if found is not function:
        return None
    # A custom loader (pytest's, which rewrites assertions) compiles other code from the file
    # than a worker will.
    plain = type(home.__spec__.loader) in homes.PLAIN_LOADERS
    code = code_checksum(function) if plain else 0
    return NamedFunction(module, qualname, code, _generation_of(module), homes.defaults(function))


def name_for(function: Callable[..., Any], caller: FrameType) -> tuple[str, str] | None:
    """Module and name by which the pickler that ``caller`` runs refers to a function, or None.

    Plain ``pickle`` refers to functions of the script by name: multiprocessing's processes have
    the script too. Picklers that send them by value, such as cloudpickle's and ours, must not: a
    pickler written in C has no frame, but the method or function that has called it does.
    """
    name = function.__module__, function.__qualname__
    if function.__module__ == "__main__":
        by_value = caller.f_globals.get("__name__", "").startswith("sharedtask.") or hasattr(
            type(caller.f_locals.get("self")), "reducer_override"
        )
        return None if by_value or "<" in function.__qualname__ else name
    return None if by_name(function) is None else name


def _is_written_in(function: Any, home: Mapping[str, Any]) -> bool:
    """True for a function of this module, and for a wrapper of one (``functools.wraps``)."""
    while getattr(function, "__globals__", home) is not home:
        function = getattr(function, "__wrapped__", None)
        if function is None:
            return False
    return True


def _is_shown_elsewhere(function: Any) -> bool:
    """True for a function whose ``__module__`` names another module, such as ``numpy.ones``."""
    written = getattr(function, "__globals__", {})
    home = sys.modules.get(written.get("__name__", ""))
    return home is not None and vars(home) is written and home.__spec__ is not None


def is_defined_as_task(function: Callable[..., Any]) -> bool:
    """True if importing the function in a worker defines a task."""
    named = portable(function).value
    if not isinstance(named, NamedFunction):
        return False
    return hasattr(type(find(named.module, named.qualname)), "_sharedtask_")


def resolve(module: str, qualname: str) -> Callable[..., Any]:
    """Find a function by name, below the decorators around it."""
    return bare(find(module, qualname))


def find(module: str, qualname: str) -> Any:
    """The object under a name, as it was written into its module or class; a task is found bare."""
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = vars(found)[name] if name in vars(found) else getattr(found, name)
    inner = getattr(found, "__func__", None)  # of a static method
    return inner if hasattr(type(inner), "_sharedtask_") else found


def found(module: str, qualname: str) -> Any:
    """As ``find``, but None if there is no such object."""
    try:
        return find(module, qualname)
    except (AttributeError, ImportError, TypeError):
        return None


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
    if code is None:
        return 0
    total = _checksum(code)
    for cell in getattr(function, "__closure__", None) or ():  # the arguments of its decorator
        value = _contents(cell)
        if homes.is_plain(value):
            total = zlib.crc32(_constant(value), total)
    return total


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
