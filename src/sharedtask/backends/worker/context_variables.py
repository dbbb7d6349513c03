"""Context variables: a task in a worker reads the values that its caller has set.

    caller   the context of the call -> the set values, each by itself  -> sent with the arguments
    worker   its own context and these values -> a copy of it for what an item sets

numpy's and decimal's settings are context variables too, but handled in settings.py.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import warnings
from functools import partial
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedtask.serialization import codec, homes, variables
from sharedtask.serialization.composition import is_constant
from sharedtask.system.finalizers import Known
from sharedtask.system.loading import when_loaded
from sharedtask.system.tracebacks import level_of_user

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import ContextVar


class Carried(NamedTuple):
    """A variable of a module, by its name, and its value; ``data`` contains both for others."""

    module: str
    path: str
    data: bytes


# ------------------------------------------------------------------------- the caller's side

_OWN = ("sharedtask", "numpy", "decimal")
# These are not found in any module. numpy's contains an object of C code.
_IN_C = ("decimal_context", "numpy.ufunc.extobj")

_left_out: dict[ContextVar[Any], bool] = {}
_constants: dict[ContextVar[Any], tuple[Any, Carried]] = {}
_refused: Known[str] = Known()  # why a value cannot be sent
_warned: set[ContextVar[Any]] = set()


def carried(task: str, function: Any) -> tuple[Carried, ...]:
    """The set variables of a call's context, ready to send: in most programs none."""
    found = []
    for variable, value in contextvars.copy_context().items():
        if not _is_left_out(variable):
            known = _constants.get(variable)
            if known is not None and known[0] is value:
                found.append(known[1])
            else:
                found += _encoded(variable, value, partial(_warn, task, function, variable))
    return tuple(found)


def _is_left_out(variable: ContextVar[Any]) -> bool:
    try:
        return _left_out[variable]
    except KeyError:
        found = _left_out[variable] = variable.name in _IN_C or _is_own(variable)
        return found


def _is_own(variable: ContextVar[Any]) -> bool:
    place = variables.place_of(variable)
    return place is not None and place[0].partition(".")[0] in _OWN


def _encoded(variable: ContextVar[Any], value: Any, tell: Callable[[str], None]) -> list[Carried]:
    why = _refused.get(value)
    if why is None:
        try:
            made = _made(variable, value)
        except codec.FAILURES as error:
            why = str(error)
            with contextlib.suppress(TypeError):  # else it is retried at each call
                _refused.put(value, why)
        else:
            if is_constant(value):
                _constants[variable] = value, made
            return [made]
    tell(why)  # at each call: an earlier one may have been of a task that does not read it
    return []


def _made(variable: ContextVar[Any], value: Any) -> Carried:
    place = variables.place_of(variable)
    if place is None:
        return Carried("", "", codec.encode_inband((variables.parts_of(variable), value)))
    return Carried(*place, codec.encode_inband(value))


def _warn(task: str, function: Any, variable: ContextVar[Any], why: str) -> None:
    """Warn the caller about a value that is not sent, if the task may need it.

    Libraries keep connections, locks and the like in context variables that no task reads.
    """
    if variable in _warned or not _is_reached(variable, function):
        return
    msg = (
        f"{task}(): workers do not have the value of the context variable {variable.name!r}, "
        f"which cannot be sent: {why}. Pass what the task needs of it as an argument."
    )
    warnings.warn(msg, RuntimeWarning, stacklevel=level_of_user())
    _warned.add(variable)  # not if a filter makes it an error: then the next call is told as well


def _is_reached(variable: ContextVar[Any], function: Any) -> bool:
    """Whether the task, or a function of its module that it calls, reads the variable."""
    return variable in variables.met or any(
        part is variable
        for each in homes.functions_of(function)
        if type(each) is FunctionType
        for part in homes.parts_of(each)
    )


# ----------------------------------------------------------------------------- in a worker


class ChunkContext:
    """The context in which the items of a chunk run.

    On threads each item has a copy of it. Here that would cost more than a small item, so the items
    of a block share one, unless the function appears to set a variable, until they are seen to do
    so. The first block of a chunk is a single item.
    """

    def __init__(self, given: Sequence[Carried], function: Callable[..., Any]) -> None:
        self._base = contextvars.copy_context()
        self._is_written = _may_set(function)
        _awaited.clear()
        for each in given:
            if each.module and each.module not in sys.modules:
                self._await(each)
            else:
                self._set(each)

    def _set(self, each: Carried, *, now: bool = False) -> None:
        try:
            variable, value = _decoded(each)
        except Exception as error:  # noqa: BLE001  user code
            msg = f"this worker does not have a context variable of its caller: {error!r}"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
        else:
            self._base.run(variable.set, value)
            if now:
                variable.set(value)

    def _await(self, each: Carried) -> None:
        """No module is imported for a variable: it is set when its module is loaded."""
        if each.module not in _hooked:
            _hooked.add(each.module)
            when_loaded(each.module, lambda _: _set_awaited(each.module))
        _awaited.setdefault(each.module, []).append(partial(self._set, each, now=True))

    def run(
        self,
        run_block: Callable[..., Any],
        block: Sequence[Any],
        call: Callable[[Any], Any],
        loaded: Any,
    ) -> Any:
        """Run the items of a block by ``call``, so that their settings are dropped afterwards."""
        if self._is_written:
            return run_block(block, self._isolated(call), loaded)
        copy = self._base.copy()
        try:
            return copy.run(run_block, block, call, loaded)
        finally:
            self._is_written = _differ(copy, self._base)

    def _isolated(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A call for one item whose settings the next one does not see."""
        base = self._base
        return lambda item: base.copy().run(call, item)


def _may_set(function: Any) -> bool:
    """Whether the code of a task, or of a function that it calls, contains a setter's name."""
    known = _setting.get(function)
    if known is None:
        known = any(_says_set(each.__code__) for each in _with_callees(function))
        with contextlib.suppress(TypeError):
            _setting.put(function, known)
    return known


def _with_callees(function: Any) -> list[FunctionType]:
    """The function and those of the same script or module that it calls, also indirectly."""
    found = [function] if type(function) is FunctionType else []
    for each in found:
        for part in homes.parts_of(each):
            if type(part) is FunctionType and part.__globals__ is function.__globals__:
                found += [] if part in found else [part]
    return found


_setting: Known[bool] = Known()
_WORDS = frozenset(
    ("set", "reset", "seterr", "errstate", "getcontext", "setcontext", "localcontext")
)


def _says_set(code: CodeType) -> bool:
    inner = (each for each in code.co_consts if type(each) is CodeType)
    return not _WORDS.isdisjoint(code.co_names) or any(map(_says_set, inner))


def _decoded(each: Carried) -> tuple[ContextVar[Any], Any]:
    value = codec.decode(each.data)
    if each.module:
        return variables.find_variable(each.module, each.path), value
    parts, value = value
    return variables.build_variable(*parts), value


def _differ(one: contextvars.Context, other: contextvars.Context) -> bool:
    """Whether two contexts differ; contexts compare their values, which may run any code."""
    try:
        return bool(one != other)
    except Exception:  # noqa: BLE001  as an array, of which some elements are equal
        return True


# Actions of the current chunk for when a module is loaded.
_awaited: dict[str, list[Callable[[], object]]] = {}
_hooked: set[str] = set()


def _set_awaited(module: str) -> None:
    _hooked.discard(module)
    for action in _awaited.pop(module, ()):
        action()
