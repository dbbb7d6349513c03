"""``task.explain()``: the arguments of a call by their roles, and captured values."""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from sharedtask.annotations import Role
from sharedtask.errors import ArgumentError
from sharedtask.explaining.measuring import Found, Measure, explanation_of
from sharedtask.explaining.rows import Fold, Transfers
from sharedtask.explaining.tree import is_small
from sharedtask.recipes import PerWorkerValue
from sharedtask.serialization import functions
from sharedtask.serialization.traversal import captured
from sharedtask.system.records import dataclass
from sharedtask.text import did_you_mean
from sharedtask.writing.locked.locked import Locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sharedtask.explaining.report import Explanation, Row
    from sharedtask.task.signature.spec import TaskSpec

# Smaller values cost less to send than to look up.
_WORTH_SHARING = 100_000


@dataclass(frozen=True, slots=True)
class _Manner:
    """How the arguments of one role are sent, and the advice if they are large.

    ``together`` names the arguments that are encoded in one piece, so that their common parts are
    sent once.
    """

    section: str
    transfers: Transfers
    advice: str = ""
    together: str = ""


@dataclass(frozen=True, slots=True)
class _Argument:
    name: str
    value: Any
    manner: _Manner
    marking: str = ""


_BORN_SHARED = "make it with sharedtask.zeros(...) or array(...): then it is not copied"
_MANNERS: dict[Role | None, _Manner] = {
    Role.SHARED: _Manner("Shared", Transfers()),
    Role.COPY_ON_WRITE: _Manner(
        "CopyOnWrite",
        Transfers(
            inside="copied",
            said="written pages of arrays, and everything else again for each item",
        ),
        "mark it Shared if tasks do not write to it",
    ),
    Role.PARTITIONED: _Manner(
        "Partitioned",
        Transfers(
            "copied", "copied", said="into shared memory once in a call; blocks are copied back"
        ),
        _BORN_SHARED,
    ),
    Role.REDUCED: _Manner(
        "Reduced",
        Transfers(
            "copied", "copied", "copied", "an array of this size in each worker, combined later"
        ),
    ),
    Role.LOCKED: _Manner(
        "Locked",
        Transfers("copied", "copied", said="into shared memory when a call begins, and back"),
        _BORN_SHARED,
    ),
    Role.PER_WORKER: _Manner(
        "PerWorker", Transfers(said="each worker makes its own by this, once, and keeps it")
    ),
    None: _Manner(
        "not marked",
        Transfers("copied", "copied", "copied", "pickled, and sent with each chunk"),
        "{marking}",
        together="constants",
    ),
}
_CAPTURED = _Manner(
    "captured by the function",
    Transfers(),
    "pass it to a parameter that is marked Shared",
    together="function",
)
_HAS = {
    "captured": "a variable around the definition",
    "default": "a default",
    "global": "a global",
}


def explain_call(
    spec: TaskSpec,
    function: Any,
    bound: tuple[Any, ...],
    given: Mapping[str, Any],
    capture_from: int | None = None,
) -> Explanation:
    """Explain the arguments of a call, and the values that the function captures.

    Unmarked arrays of at least ``capture_from`` bytes are stored by themselves.

    Raises:
        ArgumentError: The function has no parameter of such a name.
    """
    _refuse_unknown(spec, given)
    arguments = [*_arguments(spec, bound, given), *_captured(spec, function)]
    found = list(zip(arguments, _measured(arguments, capture_from), strict=True))
    whole = sum(each.weight.nbytes for _, each in found)
    rows = [row for argument, each in found for row in _rows(argument, each, whole, capture_from)]
    return explanation_of(
        spec.shown, rows, [(each, argument.manner.transfers) for argument, each in found]
    )


def _refuse_unknown(spec: TaskSpec, given: Mapping[str, Any]) -> None:
    names = spec.signature.parameters
    for name in given:
        if name not in names and not spec.accepts_kwargs:
            near = did_you_mean(name, names)
            raise ArgumentError(f"{spec.name}.explain(): there is no parameter {name!r}.{near}")


def _arguments(
    spec: TaskSpec, bound: tuple[Any, ...], given: Mapping[str, Any]
) -> Iterator[_Argument]:
    named = [(spec.bound or "self", value) for value in bound if not issubclass(type(value), type)]
    for name, value in (*named, *given.items()):
        yield _Argument(name, _behind(value), _MANNERS[spec.roles.get(name)], _marking(spec, name))


def _behind(value: Any) -> Any:
    """What is sent for an argument that is passed in a form of ours."""
    if type(value) is Locked:
        return value.array
    return value.recipe if type(value) is PerWorkerValue else value


def _marking(spec: TaskSpec, name: str) -> str:
    """How a parameter is marked, where it can be."""
    if name not in spec.signature.parameters and name != (spec.bound or "self"):
        return f"give it a parameter of its own, {name}: Shared[...]"
    if name == (spec.bound or "self") or "<lambda>" in spec.name:
        return f"mark it: @parallel(shared=[{name!r}])"
    return f"mark it: {name}: Shared[...]"


def _captured(spec: TaskSpec, function: Any) -> Iterator[_Argument]:
    named = functions.by_name(function)
    if named is not None:
        said = f"by name: a worker imports it from {named.module}"
        yield _Argument(spec.name, function, _saying(said))
    elif type(function) is FunctionType:
        for how, name, value in captured(function):
            if is_small(value) or type(value) is ModuleType:
                continue
            yield _Argument(name, value, _saying(f"{_HAS[how]} of {spec.name}()"))
    else:
        yield _Argument(spec.name, function, _CAPTURED)


def _saying(why: str) -> _Manner:
    return replace(_CAPTURED, transfers=Transfers(said=why))


def _measured(arguments: list[_Argument], capture_from: int | None) -> Iterator[Found]:
    measure = Measure()
    walks = {
        manner.together: measure.walk(
            in_place=manner.transfers.placed == "in place", capture_from=capture_from
        )
        for manner in (*_MANNERS.values(), _CAPTURED)
        if manner.together
    }
    for argument in arguments:
        walk = walks.get(argument.manner.together) or measure.walk()
        yield measure.measure(walk, argument.value, argument.name)


def _rows(argument: _Argument, found: Found, whole: int, capture_from: int | None) -> Iterator[Row]:
    """The rows of an argument; the first large part that is copied has the advice."""
    manner = argument.manner
    advice = manner.advice.format(marking=argument.marking)
    for row in Fold.of(manner.transfers, whole, manner.section).rows(found.node):
        alone = (
            capture_from is not None and row.nbytes >= capture_from and row.travels == "zero-copy"
        )
        fits = row.travels == "copied" or (manner.section == _CAPTURED.section and not alone)
        if manner.transfers.outside == "copied" and row.travels == "zero-copy":
            yield replace(row, why="a large array: stored by itself, writable for each chunk")
            continue
        if advice and fits and row.nbytes >= _WORTH_SHARING:
            yield replace(row, why=manner.transfers.said, advice=advice)
            advice = ""
        else:
            yield row
