"""From a bound call to a plan: the role of each value, and the items. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sized
from dataclasses import replace
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask import context
from sharedtask.annotations import Role
from sharedtask.backends.base import Call, SharedValue, with_initializer
from sharedtask.backends.worker.randomness import Randomness
from sharedtask.errors import ArgumentError, OptionsError
from sharedtask.habits import OTHER_SPELLINGS
from sharedtask.options import OPTION_NAMES, Options
from sharedtask.recipes import PerWorkerValue, Slots, recipe_of, refusal_of_recipe
from sharedtask.store.handles import Handle
from sharedtask.system import critical_sections
from sharedtask.system.records import dataclass, field
from sharedtask.task.signature.spec import TaskSpec, refuse_unshareable
from sharedtask.text import did_you_mean
from sharedtask.writing import roles
from sharedtask.writing.handler import Wanted
from sharedtask.writing.partitioned.partitions import INTO

from . import call_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from sharedtask.backends.base import Team
    from sharedtask.writing.handler import Handler


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a call: the plain function, its spec, and the object it is bound to.

    For ``uncopied`` and ``slots`` see ``Call``.
    """

    spec: TaskSpec
    function: Callable[..., Any]
    bound: tuple[Any, ...] = ()
    uncopied: bool = False
    slots: Slots = field(default_factory=Slots)


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
    if options.journal is not None:
        options = _journalled(target.spec, options, into=into is not None)
    if type(items) not in PLAIN:
        _check_items(target.spec.name, items)
        items = _countable(items)
    elif star and not options.return_exceptions:
        _check_first(target.spec.name, items)
    if options.progress and isinstance(items, _FINITE) and not streams:
        items = list(items)  # the bar shows a total; the results take as much memory anyhow
    if target.spec.writes and roles.knows_items(target.spec.roles.values()):
        items = list(items)
    if into is not None and not isinstance(items, (list, tuple, range, np.ndarray)):
        items = list(items)
    call = plan_call(target, args, kwargs, options, star=star, items=items, into=into)
    for handler in call.handlers:
        items = handler.separated(items)
    if call.block is not None:
        call = replace(call, options=replace(options, chunksize=call.block))
    counted = type(items) in PLAIN or isinstance(items, Sized)
    total = len(items) if counted else None  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    return Plan(call, items, total, streams)


# Smaller arrays in the function or its object are pickled with them.
CAPTURE_FROM = 1 << 20
# Most items come in one of these. A check against an abstract class takes a microsecond.
PLAIN = frozenset((list, tuple, range))
# They have an end, and hold all that they are made of, so they may be read early.
_FINITE = (
    itertools.product,
    itertools.permutations,
    itertools.combinations,
    itertools.combinations_with_replacement,
)


def plan_call(
    target: Target,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Options,
    *,
    items: Iterable[Any],
    star: bool = False,
    team: Team | None = None,
    into: npt.NDArray[Any] | None = None,
) -> Call:
    """Check the arguments of every item, and sort them by role.

    ``into`` takes the results, as an array of which each item has a block.
    """
    critical_sections.reserve_stack()
    spec = target.spec
    values = _Arguments(spec, target.bound, args, kwargs, star=star)
    shared = values.take_all()
    values.refuse_unmarked_recipes()
    handlers: tuple[Handler, ...] = ()
    if spec.writes or into is not None:
        handlers = _plan_written(spec, shared, items, options, star=star, into=into)
    if into is not None:
        shared = {**shared, INTO: SharedValue(into, roles.RESULTS)}
    return Call(
        task=spec.name,
        function=target.function,
        bound=() if spec.bound in shared else target.bound,
        args=values.args,
        kwargs=values.kwargs,
        shared=shared if options.initializer is None else with_initializer(shared, options),
        options=options,
        bound_name=spec.bound,
        handlers=handlers,
        randomness=Randomness.of(spec.generators, options.seed) if spec.generators else None,
        block=next((h.block for h in handlers if h.block), None) if handlers else None,
        star=star,
        capture_from=CAPTURE_FROM if options.captured == "share" else None,
        uncopied=target.uncopied,
        slots=target.slots,
        team=team,
    )


def _plan_written(
    spec: TaskSpec,
    shared: Mapping[str, SharedValue],
    items: Iterable[Any],
    options: Options,
    *,
    star: bool,
    into: npt.NDArray[Any] | None,
) -> tuple[Handler, ...]:
    """The handlers of what tasks write."""
    values = {name: value.value for name, value in shared.items()}
    by_role: dict[Role, dict[str, Any]] = {}
    for name, value in shared.items():
        if value.role.writes:
            by_role.setdefault(value.role, {})[name] = value.value
    written = {name: value for of_role in by_role.values() for name, value in of_role.items()}
    wanted = Wanted(spec.name, {}, values, written, spec.rules, items, options, star)
    if into is not None:
        by_role.setdefault(roles.RESULTS, {})[INTO] = into
    return roles.plan_all(wanted, by_role)


def _journalled(spec: TaskSpec, options: Options, *, into: bool) -> Options:
    """Refuse to record results outside of a journal; a map inside a task is not recorded.

    The results of an inner map are part of the task's own result.
    """
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


class NoItems:
    """Takes the place of items that a call has left out, as in ``map(image_id=range(10))``."""


def _check_items(task: str, items: Any) -> None:
    if items is NoItems:
        msg = (
            f"{task}(): the items are missing. Pass them first and without a name, as in "
            f"{task}.map(items, other=value): arguments with a name are the same for all items."
        )
        raise ArgumentError(msg)
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


def _check_first(task: str, items: Any) -> None:
    """Refuse what was meant for ``map``, where the first item of a ``starmap`` shows it."""
    of = type(items[0]) if items else tuple
    if not hasattr(of, "__iter__") and not hasattr(of, "__getitem__"):
        msg = (
            f"{task}(): starmap() passes the elements of each item as the first arguments, and "
            f"item 0 has none: {of.__name__}. Pass tuples, or use map()."
        )
        raise ArgumentError(msg)


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
            hint = (
                _hint(kwargs, signature)
                or _hint_at_made(str(error), self._spec.generators)
                or _hint_at_starmap(args)
            )
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
            if there and not (self._spec.may_leave_out and self._is_left_out(name, role)):
                shared[name] = self._take(name, role)
        return shared

    def refuse_unmarked_recipes(self) -> None:
        """Refuse ``per_worker(...)`` for a parameter that is not annotated so."""
        if not (self.kwargs or self.args):
            return
        for value in (*self.args, *self.kwargs.values()):
            if type(value) is PerWorkerValue:
                name = next((k for k, v in self.kwargs.items() if v is value), "")
                raise ArgumentError(refusal_of_recipe(self._spec.name, name, value))

    def _is_left_out(self, name: str, role: Role) -> bool:
        """Whether the value is None instead of an array, allowed by a default or ``| None``."""
        can_be_none = role.writes or role is Role.PER_WORKER
        if not can_be_none or self.kwargs.get(name, self) is not None:
            return False
        self._spec.check_value(name, None)
        return True

    def _take(self, name: str, role: Role) -> SharedValue:
        value = self._bound if name == self._spec.bound else self.kwargs.pop(name)
        if role is Role.PER_WORKER:
            return SharedValue(recipe_of(self._spec.name, name, value), role)
        if type(value) is PerWorkerValue:
            raise ArgumentError(refusal_of_recipe(self._spec.name, name, value))
        if role.writes:
            value = roles.HANDLERS[role].array_of(value)
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


def _hint_at_starmap(args: tuple[Any, ...]) -> str:
    if not any(call_hints.may_be_items(value) for value in args):
        return ""
    return " For items from several collections: starmap(zip(a, b, strict=True))."


_ITEM = object()
_MADE = object()
