"""A direct call of a task: the function is called here, with what a worker would give it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sharedtask.annotations import Role
from sharedtask.backends.worker.randomness import Randomness
from sharedtask.errors import ArgumentError
from sharedtask.options import resolve
from sharedtask.recipes import PerWorkerValue, refusal_of_recipe
from sharedtask.store.handles import Handle
from sharedtask.system.loading import undisturbed
from sharedtask.writing.locked.acquire import Use, close_all, use_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sharedtask.task.signature.spec import TaskSpec

R = TypeVar("R")


def call_directly(
    spec: Callable[[], TaskSpec],
    explicit: Mapping[str, Any],
    wrapped: Callable[..., R],
    instance: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> R:
    """A direct call of a task: calls the function with the values of handles.

    A locked array is passed behind locks here as well, a parameter for random numbers gets those
    of the first item, and what a worker would keep is made for this call and closed.
    """
    if any(type(value) is Handle for value in (*args, *kwargs.values())):
        args = tuple(map(value_behind, args))
        kwargs = {name: value_behind(value) for name, value in kwargs.items()}
    if spec().generators:
        kwargs = {**_made(spec(), explicit, _by_place(spec(), instance, args)), **kwargs}
    if any(type(value) is PerWorkerValue for value in (*args, *kwargs.values())):
        with contextlib.ExitStack() as made:
            by_place = _by_place(spec(), instance, args)
            names = [*by_place, *[""] * (len(args) - len(by_place))]
            pairs = list(zip(names, args, strict=True))
            return call_directly(
                spec,
                explicit,
                wrapped,
                instance,
                tuple(_made_here(spec(), made, name, value) for name, value in pairs),
                {name: _made_here(spec(), made, name, v) for name, v in kwargs.items()},
            )
    if Role.LOCKED in spec().roles.values():
        return _call_locked(spec(), wrapped, _by_place(spec(), instance, args), args, kwargs)
    return wrapped(*args, **kwargs)


def _made_here(spec: TaskSpec, made: contextlib.ExitStack, name: str, value: Any) -> Any:
    """The value that is made for this call and closed with ``made``; others as they are."""
    if type(value) is not PerWorkerValue:
        return value
    if spec.roles.get(name) is not Role.PER_WORKER:
        raise ArgumentError(refusal_of_recipe(spec.name, name, value))
    with undisturbed("sharedtask.backends.worker.making"):  # needed by few calls
        from sharedtask.backends.worker.making import made_by

    result, close = made_by(value.recipe)
    if close is not None:
        made.callback(close)
    return result


def _by_place(spec: TaskSpec, instance: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    skipped = 0 if instance is None else 1
    names = list(spec.signature.parameters)[skipped:]
    return dict(zip(names, args, strict=False))


def _made(
    spec: TaskSpec, explicit: Mapping[str, Any], by_place: Mapping[str, Any]
) -> dict[str, Any]:
    """The generators that the caller left out: those of item 0 of a map."""
    made = Randomness.of(spec.generators, resolve(explicit).seed)
    generators = {} if made is None else made.generators(0)
    return {name: made for name, made in generators.items() if name not in by_place}


def _call_locked(
    spec: TaskSpec,
    wrapped: Callable[..., R],
    by_place: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> R:
    """Call a function that locks arrays; those passed without locks are locked for it."""
    found = {
        name: (value, spec.regions(name))
        for name, value in {**by_place, **kwargs}.items()
        if spec.roles.get(name) is Role.LOCKED and isinstance(value, np.ndarray)
    }
    uses: dict[str, Use] = {}
    places = [*by_place, *[""] * (len(args) - len(by_place))]
    try:
        use_all(uses, {name: found[name] for name in spec.roles if name in found}, shared=False)
        locked = {name: use.locked for name, use in uses.items()}
        return wrapped(
            *(locked.get(name, value) for name, value in zip(places, args, strict=True)),
            **{name: locked.get(name, value) for name, value in kwargs.items()},
        )
    finally:
        close_all(uses, wrote=True)


def value_behind(value: Any) -> Any:
    """The value of a handle; other values as they are."""
    return value.value if type(value) is Handle else value
