"""From a bound call to a plan: the role of each value, and the items. Pure."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sized
from dataclasses import dataclass, replace
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sharedtask import context
from sharedtask.annotations import Role
from sharedtask.backends.base import Call, SharedValue
from sharedtask.errors import ArgumentError, OptionsError
from sharedtask.memory import locations
from sharedtask.options import OPTION_NAMES, OTHER_SPELLINGS, Options
from sharedtask.store.handles import Handle
from sharedtask.system import critical_sections
from sharedtask.task.signature.spec import TaskSpec, refuse_unshareable
from sharedtask.text import did_you_mean
from sharedtask.worker.randomness import Randomness
from sharedtask.writing.locked.locked import Locked
from sharedtask.writing.partitioned import partitions
from sharedtask.writing.partitioned.overlaps import check_overlap
from sharedtask.writing.partitioned.partitions import INTO, Blocks, Partition
from sharedtask.writing.reduced.operations import Reduction, Total, operation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from sharedtask.backends.base import Team
    from sharedtask.writing.locked.regions import Regions


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a call: the plain function, its spec, and the object it is bound to.

    For ``uncopied`` see ``Call``.
    """

    spec: TaskSpec
    function: Callable[..., Any]
    bound: tuple[Any, ...] = ()
    uncopied: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A call that has passed every check.

    ``total`` is None if the items cannot be counted; ``streams``: the caller takes the
    results one by one, at its own pace.
    """

    call: Call
    items: Iterable[Any]
    total: int | None
    streams: bool


def plan_map(
    target: Target,
    items: Iterable[Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Options,
    *,
    star: bool = False,
    streams: bool = False,
    into: npt.NDArray[Any] | None = None,
) -> Plan:
    """Check a map before anything runs; ``into`` is an array that takes the results.

    Raises:
        ArgumentError: ``items`` is no collection of items, an argument is missing, extra or given
            twice, or a shared value does not match its annotation.
        UnshareableError: A shared value belongs to this process: a lock, a socket, a generator.
        OptionsError: A journal is set, and results are written into arrays.
    """
    options = _journalled(target.spec, options, into=into is not None)
    if type(items) not in _PLAIN:
        _check_items(target.spec.name, items)
        items = _countable(items)
    if target.spec.writes and Role.PARTITIONED in target.spec.roles.values():
        items = list(items)  # all blocks must be known before one is written, as none may overlap
    if into is not None:
        items = _apart(items, into)
    call = plan_call(target, args, kwargs, options, star=star, items=items)
    if into is not None:
        call = _with_results(call, into, len(cast("Sequence[Any]", items)))
    for blocks in call.blocks.values():
        items = _apart(items, blocks.array)
    if call.block is not None:
        call = replace(call, options=replace(options, chunksize=call.block))
    counted = type(items) in _PLAIN or isinstance(items, Sized)
    return Plan(call, items, len(cast("Sized", items)) if counted else None, streams)


# Most items come in one of these. A check against an abstract class takes a microsecond.
_PLAIN = frozenset((list, tuple, range))


def plan_call(
    target: Target,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Options,
    *,
    items: Iterable[Any],
    star: bool = False,
    team: Team | None = None,
) -> Call:
    """Check the arguments of every item, and sort them by role."""
    critical_sections.reserve_stack()
    spec = target.spec
    values = _Arguments(spec, target.bound, args, kwargs, star=star)
    shared = values.take_all()
    blocks: dict[str, Blocks] = {}
    totals: dict[str, Total] = {}
    locked: dict[str, Regions] = {}
    if spec.writes:
        totals = plan_totals(spec, shared)
        blocks = plan_blocks(spec, shared, items, star=star)
        locked = plan_locks(spec, shared)
    stops = not options.return_exceptions and not options.retries
    ordered = bool(totals) and _is_ordered(spec, totals)
    return Call(
        task=spec.name,
        function=target.function,
        bound=() if spec.bound in shared else target.bound,
        args=values.args,
        kwargs=values.kwargs,
        shared=shared,
        options=options,
        bound_name=spec.bound,
        blocks=blocks,
        totals=totals,
        locked=locked,
        randomness=Randomness.of(spec.generators, options.seed) if spec.generators else None,
        itemwise=bool(totals) and (ordered or not stops),
        block=_block_length(items, options) if ordered else None,
        star=star,
        capture_from=CAPTURE_FROM if options.captured == "share" else None,
        uncopied=target.uncopied,
        team=team,
    )


def plan_blocks(
    spec: TaskSpec, shared: Mapping[str, SharedValue], items: Iterable[Any], *, star: bool
) -> dict[str, Blocks]:
    """Find the block of each item in each partitioned array, and refuse what overlaps.

    Raises:
        ArgumentError: A value has no blocks that can be written, or an item names none.
        OverlapError: Two items would write to the same memory.
    """
    found = {}
    for name, value in shared.items():
        if value.role is Role.PARTITIONED:
            rule: Any = spec.rules.get(name, Partition())
            by, array = rule.by, value.value
            _check_written(array, name)
            _refuse_other_use(spec.name, name, array, shared)
            indices = partitions.indices_of(_named_by(items, by, star=star), by)
            check_overlap(array, indices, "item {}".format, name)
            found[name] = Blocks(array, by, indices)
    return found


def _journalled(spec: TaskSpec, options: Options, *, into: bool) -> Options:
    """Refuse to record results outside of a journal; a map inside a task is not recorded.

    The results of an inner map are part of the task's own result.
    """
    if options.journal is None:
        return options
    if context.a_task() or context.a_recorded_task():
        return replace(options, journal=None)
    written = [name for name, role in spec.roles.items() if role.writes]
    if written or into:
        what = "'out' of map_into()" if into else repr(written[0])
        msg = (
            f"{spec.name}(): journal={options.journal!r} keeps what tasks return, and not what they"
            f" write into {what}. Return it instead, or say with_options(journal=None)."
        )
        raise OptionsError(msg)
    if spec.generators and options.seed is None:
        msg = (
            f"{spec.name}(): with journal={options.journal!r} the random numbers of"
            f" {spec.generators[0]!r} must be the same in every run: give seed= as well."
        )
        raise OptionsError(msg)
    return options


def _apart(items: Iterable[Any], written: Any) -> Sequence[Any]:
    """Copies of items that share memory with arrays that tasks write.

    An array of items may be part of the written array, and so may each of a list of rows.
    """
    if isinstance(items, np.ndarray):
        return cast("Sequence[Any]", items.copy() if np.may_share_memory(items, written) else items)
    known = items if isinstance(items, (list, tuple, range)) else list(items)
    kinds = () if isinstance(known, range) else set(map(type, known))
    if not any(issubclass(kind, np.ndarray) for kind in kinds):
        return known
    return [
        item.copy() if isinstance(item, np.ndarray) and np.may_share_memory(item, written) else item
        for item in known
    ]


def _with_results(call: Call, into: npt.NDArray[Any], count: int) -> Call:
    """Write results into an array instead of returning them."""
    _check_written(into, "out")
    if not into.ndim or len(into) != count:
        msg = (
            f"{call.task}.map_into(): 'out' has shape {into.shape}, and there are {count} items. "
            "Its first axis must be as long as the items are many."
        )
        raise ArgumentError(msg)
    _refuse_other_use(call.task, INTO, into, call.shared, said="out")
    shared = {**call.shared, INTO: SharedValue(into, Role.PARTITIONED)}
    return replace(
        call, shared=shared, blocks={**call.blocks, INTO: Blocks(into, None, range(count))}
    )


def plan_totals(spec: TaskSpec, shared: Mapping[str, SharedValue]) -> dict[str, Total]:
    """Determine how the tasks' contributions are combined into each array.

    Raises:
        ArgumentError: A value is no writable array, or the operation does not fit it.
    """
    totals = {name: value.value for name, value in shared.items() if value.role is Role.REDUCED}
    written = {name: value for name, value in shared.items() if value.role.writes}
    for name, array in totals.items():
        _check_written(array, name)
        _refuse_other_use(spec.name, name, array, written)
    rules = _reductions(spec, totals)
    return {
        name: Total(array, operation(rules[name], array, name)) for name, array in totals.items()
    }


def plan_locks(spec: TaskSpec, shared: Mapping[str, SharedValue]) -> dict[str, Regions]:
    """Determine the regions of each array that are locked together.

    Raises:
        ArgumentError: A value is no array that can be written, or two are the same memory.
    """
    found = {}
    for name, value in shared.items():
        if value.role is Role.LOCKED:
            array: Any = value.value
            _check_written(array, name)
            _refuse_other_use(spec.name, name, array, shared)
            found[name] = spec.regions(name)
            found[name].lengths(array.shape)
    return found


def _reductions(spec: TaskSpec, names: Iterable[str]) -> dict[str, Reduction]:
    return {name: cast("Reduction", spec.rules.get(name, Reduction())) for name in names}


def _is_ordered(spec: TaskSpec, names: Iterable[str]) -> bool:
    return any(rule.deterministic for rule in _reductions(spec, names).values())


def _block_length(items: Iterable[Any], options: Options) -> int:
    """Number of items to combine first; depends only on their count and the user's options."""
    if options.chunksize != "auto":
        length = int(options.chunksize)
    elif isinstance(items, Sized):
        length = min(max(-(-len(items) // _BLOCKS), 1), _LONGEST_BLOCK)
    else:
        length = _BLOCKS
    return min(length, options.buffersize or length)


_BLOCKS, _LONGEST_BLOCK = 64, 4096
# Smaller arrays in the function or its object are pickled with them.
CAPTURE_FROM = 1 << 20


def _check_written(array: Any, name: str) -> None:
    """Refuse arrays that are read-only, or whose memory was freed."""
    partitions.check_base(array, name)
    locations.find(array)


def _share_memory(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays have a byte in common; True if that is too hard to decide."""
    shares: Any = np.shares_memory  # its types allow only two values of max_work
    try:
        return bool(shares(one, other, max_work=_WORK))
    except np.exceptions.TooHardError:
        return True


_WORK = 100_000


def _named_by(items: Iterable[Any], by: Any, *, star: bool) -> Sequence[Any]:
    """The names of the blocks: the items, or the first argument of each."""
    if star and by is None:
        return [_first(position, item) for position, item in enumerate(items)]
    return list(items)


def _first(position: int, item: Any) -> Any:
    try:
        return item[0]
    except (IndexError, KeyError, TypeError):
        msg = (
            f"item {position}, {reprlib.repr(item)}: an item of starmap is a tuple, and its first "
            "element names the block."
        )
        raise ArgumentError(msg) from None


def _refuse_other_use(
    task: str,
    name: str,
    array: npt.NDArray[Any],
    shared: Mapping[str, SharedValue],
    said: str = "",
) -> None:
    """Refuse memory that tasks write through one parameter and use through another."""
    for other, value in shared.items():
        theirs = value.value
        if other != name and isinstance(theirs, np.ndarray) and _share_memory(array, theirs):
            msg = (
                f"{task}(): {said or name!r} is written by tasks, and {other!r} is the same memory:"
                " what a task reads there would depend on the others."
                f" Pass {other}={other}.copy()."
            )
            raise ArgumentError(msg)


def _check_items(task: str, items: Any) -> None:
    if isinstance(items, (str, bytes, bytearray)):
        kind = type(items).__name__
        msg = (
            f"{task}(): a {kind} is one value and not a collection of items. "
            f"Pass a list of {kind}, or list(...) to map over its characters."
        )
        raise ArgumentError(msg)
    try:
        iter(items)
    except TypeError:
        msg = (
            f"{task}(): the items must be iterable, and {type(items).__name__} is not. "
            "Pass a list, a range, an array, a generator ..."
        )
        raise ArgumentError(msg) from None


def _countable(items: Iterable[Any]) -> Iterable[Any]:
    """The items if they have a length, else an iterator over them.

    A sparse matrix has a ``__len__`` that raises: a loop over it gives its rows all the same.
    """
    if isinstance(items, Sized):
        try:
            len(items)
        except TypeError:
            return iter(items)
    return items


class _Arguments:
    """The arguments of a call besides the item, by name if they have one."""

    def __init__(
        self,
        spec: TaskSpec,
        bound: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        star: bool,
    ) -> None:
        self._spec = spec
        self.args: tuple[Any, ...] = ()
        self._bound: Any = None
        others = spec.others
        if others is not None and not (args or bound or star) and others.are_in(kwargs):
            self.kwargs = dict(kwargs)  # most calls: ``bind`` would take 7 us for the same result
            return
        self.kwargs = {}
        named = self._bind(bound, args, kwargs, star=star)
        if spec.bound in named:
            self._bound = named.pop(spec.bound)
        for name, value in named.items():
            self._place(spec.signature.parameters[name], value)

    def _bind(
        self,
        bound: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        star: bool,
    ) -> dict[str, Any]:
        """Bind by Python's rules, with a placeholder for the item."""
        signature, name = self._spec.signature, self._spec.name
        kwargs = self._with_made(kwargs)
        if self._spec.bound is not None and not bound:
            msg = f"{name}() is a method: take it from an object, as in obj.method.map(items)."
            raise ArgumentError(msg)
        try:
            if star:  # the number of parameters that an item fills is known only when it runs
                found = signature.bind_partial(*bound, **kwargs).arguments
            else:
                found = signature.bind(*bound, _ITEM, *args, **kwargs).arguments
        except TypeError as error:
            hint = _hint(kwargs, signature) or _hint_at_made(str(error), self._spec.generators)
            msg = f"{name}(): {error}. It is {self._spec.shown}.{hint}"
            raise ArgumentError(msg) from None
        self._refuse_missing_shared(found, star=star)
        return {k: value for k, value in found.items() if value is not _ITEM and value is not _MADE}

    def _with_made(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keywords, with a placeholder for each argument that is made where the item runs."""
        made = self._spec.generators
        for name in made:
            if name in kwargs:
                msg = (
                    f"{self._spec.name}(): {name!r} is Rng: each item gets a generator of its own."
                    f" Leave it out; with_options(seed=...) decides its numbers."
                )
                raise ArgumentError(msg)
        return {**kwargs, **dict.fromkeys(made, _MADE)} if made else kwargs

    def _refuse_missing_shared(self, found: Mapping[str, Any], *, star: bool) -> None:
        if not star:
            return
        for name in self._spec.roles:
            parameter = self._spec.signature.parameters.get(name)
            if parameter and parameter.default is Parameter.empty and name not in found:
                msg = f"{self._spec.name}(): missing the shared argument {name!r}."
                raise ArgumentError(msg)

    def _place(self, parameter: Parameter, value: Any) -> None:
        if parameter.kind is Parameter.VAR_KEYWORD:
            self.kwargs.update(value)
        elif parameter.kind is Parameter.VAR_POSITIONAL:
            rest = value[1:] if value and value[0] is _ITEM else value
            # Positional parameters before *args must be given by position as well.
            self.args = (*self.args, *self.kwargs.values(), *rest)
            self.kwargs.clear()
        elif parameter.kind is Parameter.POSITIONAL_ONLY:
            self.args = (*self.args, value)
        else:
            self.kwargs[parameter.name] = value

    def take_all(self) -> dict[str, SharedValue]:
        """Take the shared values out and check them."""
        shared = {}
        for name, role in self._spec.roles.items():
            there = name in self.kwargs or (name == self._spec.bound and self._bound is not None)
            if there and not (self._spec.writes and self._leaves_out(name, role)):
                shared[name] = self._take(name, role)
        return shared

    def _leaves_out(self, name: str, role: Role) -> bool:
        """Whether the value is None instead of an array, allowed by a default or ``| None``."""
        if not role.writes or self.kwargs.get(name, self) is not None:
            return False
        self._spec.check_value(name, None)
        return True

    def _take(self, name: str, role: Role) -> SharedValue:
        value = self._bound if name == self._spec.bound else self.kwargs.pop(name)
        if isinstance(value, Locked) and role is Role.LOCKED:
            value = value.array
        if isinstance(value, Handle):
            value.publication  # noqa: B018  ClosedError before anything runs
        else:
            refuse_unshareable(self._spec.name, name, value)
            self._spec.check_value(name, value)
        return SharedValue(value, role)


def _hint(kwargs: Mapping[str, Any], signature: Signature) -> str:
    """A hint about a misspelt name, or about an option given as an argument, as in joblib."""
    parameters = signature.parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ""
    unknown = [name for name in kwargs if name not in parameters]
    for name in unknown:
        if name in OPTION_NAMES or name in OTHER_SPELLINGS:
            option = OTHER_SPELLINGS.get(name, name)
            return f" Pass options through with_options({option}=...)."
    return "".join(f" There is no {n!r}.{did_you_mean(n, parameters)}" for n in unknown)


def _hint_at_made(error: str, made: tuple[str, ...]) -> str:
    found = (name for name in made if f"values for argument {name!r}" in error)
    return "".join(f" {n!r} is made for each item: give those after it by name." for n in found)


_ITEM = object()
_MADE = object()
