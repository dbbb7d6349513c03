"""Recipes: what a worker calls to set itself up, or to make a value that it keeps.

``per_worker`` makes the argument for a parameter that is annotated ``PerWorker``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar, overload

from sharedtask.errors import ArgumentError, UnshareableError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A function and its arguments, called in a worker; ``close`` is given what it made."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[Any], object] | None = None

    def __reduce__(self) -> Any:
        return Recipe, (self.function, self.args, dict(self.kwargs), self.close)

    def __repr__(self) -> str:
        return f"{self.name}(...)" if self.args or self.kwargs else f"{self.name}()"

    @property
    def name(self) -> str:
        """The name of the function, for messages."""
        function: Any = self.function
        while isinstance(function, functools.partial):
            function = function.func
        name = getattr(function, "__qualname__", None) or type(function).__qualname__
        return str(name).rpartition("<locals>.")[2]

    def call(self) -> Any:
        """Call the function with the arguments."""
        return self.function(*self.args, **self.kwargs)


class Slot:
    """Identifies what a task sets up in its workers under one name, for as long as the task lives.

    A publication belongs to it, and so the values that workers made by the recipe there.
    """

    __slots__ = ("__weakref__",)


class Slots:
    """The slots of a task, by parameter; ``INITIALIZER`` is that of the option."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}

    def of(self, name: str) -> Slot:
        """The slot of this name; the same one each time."""
        return self._slots.setdefault(name, Slot())


INITIALIZER = "initializer="
"""The name of the initializer among the values of a call; no parameter can have it."""


class PerWorkerValue(Generic[T]):
    """The argument for a parameter annotated ``PerWorker``; made by ``per_worker``."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __repr__(self) -> str:
        return f"per_worker({self.recipe.name}, ...)"

    def __reduce__(self) -> NoReturn:
        msg = f"{self!r} is for a parameter of its own that is annotated PerWorker: {_CURE}."
        raise UnshareableError(msg)


_CURE = "db: PerWorker[Connection]"


@overload
def per_worker(
    factory: Callable[..., AbstractContextManager[T]], /, *args: Any, **kwargs: Any
) -> T: ...
@overload
def per_worker(
    factory: Callable[..., T],
    /,
    *args: Any,
    close: Callable[[T], object] | None = None,
    **kwargs: Any,
) -> T: ...
def per_worker(
    factory: Callable[..., Any],
    /,
    *args: Any,
    close: Callable[[Any], object] | None = None,
    **kwargs: Any,
) -> Any:
    """Describe a value that each worker makes once and keeps, for a ``PerWorker`` parameter.

    A worker calls ``factory(*args, **kwargs)`` before its first item of the task, and keeps the
    value for later items and calls; the value is never pickled. The worker closes it when it ends,
    when the task is garbage collected, or when a call passes different arguments. Equal arguments
    mean the same value; they are compared like shared values. Each worker process, each thread
    on the thread backend and each Ray worker has its own value. A direct call makes and closes one.

    Args:
        factory: A function or class, which workers call. If it has a parameter ``close`` itself,
            use ``functools.partial``.
        *args: Its arguments. They are sent like shared values: arrays in them are read-only.
        close: Called with the value at its end; by default its method ``close``. If the value is a
            context manager without ``close``, the worker enters it, passes the result to the task,
            and exits it at the end.
        **kwargs: Further arguments of the factory.

    Returns:
        The argument to pass. To a type checker it is the value itself.

    Raises:
        ArgumentError: ``factory`` or ``close`` cannot be called.

    Examples:
        >>> import sqlite3
        >>> from sharedtask import PerWorker, parallel, per_worker
        >>> @parallel(backend="serial")
        ... def square(x: int, db: PerWorker[sqlite3.Connection]) -> int:
        ...     return db.execute("select ? * ?", (x, x)).fetchone()[0]
        >>> square.map(range(3), db=per_worker(sqlite3.connect, ":memory:"))
        [0, 1, 4]
    """
    for name, function in (("factory", factory), ("close", close)):
        if not callable(function) and not (name == "close" and function is None):
            msg = f"per_worker(): {name} must be a callable, got {function!r:.80}."
            raise ArgumentError(msg)
    return PerWorkerValue(Recipe(factory, args, kwargs, close))


def recipe_of(task: str, name: str, value: object) -> Recipe:
    """The recipe that was passed to a ``PerWorker`` parameter.

    Raises:
        ArgumentError: It is something else.
    """
    if isinstance(value, PerWorkerValue):
        return value.recipe
    kind = type(value).__qualname__
    msg = (
        f"{task}(): '{name}' is PerWorker, and got a {kind}. Say how each worker makes its"
        f" own: {name}=per_worker(function, *args)."
    )
    raise ArgumentError(msg)


def refusal_of_recipe(task: str, name: str, value: PerWorkerValue[Any]) -> str:
    """What is wrong where ``per_worker(...)`` is passed to a parameter of another kind."""
    which = f"'{name}'" if name else "an argument"
    cure = f"{name or 'db'}: PerWorker[...]"
    return (
        f"{task}(): {which} got {value!r}, which is for a parameter that is annotated"
        f" PerWorker. Annotate it: {cure}."
    )
