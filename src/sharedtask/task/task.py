"""``Task``: the decorated function.

Calling it calls the function; ``map`` and similar methods run it over many items.
"""

from __future__ import annotations

import functools
import sys
from types import FunctionType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    ParamSpec,
    TypeVar,
    overload,
)

import numpy as np
import wrapt

from sharedtask import observing
from sharedtask.backends import registry
from sharedtask.options import check_options, resolve
from sharedtask.recipes import Slots
from sharedtask.serialization import functions
from sharedtask.store.cache import CacheInfo
from sharedtask.system import critical_sections
from sharedtask.system.loading import undisturbed
from sharedtask.system.tracebacks import SHORTENED, shorten, shortened
from sharedtask.task.signature.spec import build_spec
from sharedtask.writing.partitioned.partitions import TAKEN

from . import call_hints
from .aio import Steps, in_thread
from .callsite import callsite_of
from .chunking import Pace
from .direct_call import call_directly
from .futures import TaskFuture
from .plan import CAPTURE_FROM, PLAIN, NoItems, Plan, Target, plan_map
from .run import Run, as_completed, collect, in_order
from .submits import Submits

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Callable,
        Generator,
        Iterable,
        Mapping,
        Sequence,
    )

    import numpy.typing as npt
    from typing_extensions import Unpack

    from sharedtask.backends.base import Share
    from sharedtask.explaining.report import Explanation
    from sharedtask.options import OptionsDict
    from sharedtask.task.signature.spec import Kind, Lists, TaskSpec

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
J = TypeVar("J")
C = TypeVar("C")
A = TypeVar("A", bound="np.ndarray[Any, Any]")


class Usage:
    """Statistics of a task: its shared values, and the time of its items; and its slots."""

    def __init__(self) -> None:
        self.slots = Slots()
        self.pace = Pace()
        self.hits = self.misses = 0
        self.tokens: set[int] = set()
        self._lock = critical_sections.object_lock()

    def count(self, shares: Sequence[Share]) -> None:
        """Count the shared values of a call."""
        with self._lock:
            for share in shares:
                self.hits += share.hit
                self.misses += not share.hit
                self.tokens.add(share.token)

    def info(self) -> CacheInfo:
        """The counts, and the present publications."""
        backends = registry.running()
        sizes = [size for backend in backends for size in backend.stored(self.tokens)]
        limit = max((backend.limit() for backend in backends), default=0)
        return CacheInfo(self.hits, self.misses, limit, len(sizes), sum(sizes))

    def clear(self) -> None:
        """Release the publications and reset the counts."""
        for backend in registry.running():
            backend.forget(self.tokens)
        self.hits = self.misses = 0
        self.tokens.clear()


class Parts(NamedTuple):
    """What a call needs of a task: its target, the options that it sets, and its statistics."""

    target: Target
    explicit: Mapping[str, Any]
    usage: Usage


class Runs(Generic[P, R]):
    """The ways to run a task over many items; ``Task`` and its bound form have them."""

    if TYPE_CHECKING:

        def _parts(self) -> Parts: ...

        def _submits(self) -> Submits: ...

    def map(
        self: Runs[Concatenate[J, Q], R], items: Iterable[J], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> list[R]:
        """Run the task for every item and return the results in the order of the items.

        Args:
            items: The values of the first parameter, one after the other. Not a str or bytes.
            *args: Further positional arguments, the same for all items.
            **kwargs: Further arguments of the function, the same for all items. Shared
                ones are put into shared memory once; others are copied with each chunk.

        Returns:
            One result per item. With ``return_exceptions`` the result of a failed item
            is its exception.

        Raises:
            ArgumentError: An argument is missing, extra, or does not match its annotation.
            Exception: The exception that the task raised, with a note that names
                the item; if several items failed, that of the first.
            WorkerDiedError: The worker ended while it ran an item.
            TaskTimeoutError: An item took longer than ``timeout`` seconds.

        Examples:
            >>> from sharedtask import Shared, parallel
            >>> @parallel
            ... def scale(x: int, table: Shared[dict]) -> int:
            ...     return x * table["factor"]
            >>> scale.map(range(4), table={"factor": 10})
            [0, 10, 20, 30]
        """
        try:
            run, plan = self._prepare(items, args, kwargs, waits=True)
            return collect(run(), plan.total)
        except SHORTENED as error:
            shorten(error)
            raise

    def map_into(
        self: Runs[Concatenate[J, Q], Any],
        out: A,
        items: Iterable[J],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> A:
        """Like ``map``; result i is written to ``out[i]``, by the worker that computed it.

        No result is sent if ``out`` is in shared memory (``empty``, ``zeros`` ...). If a
        value does not fit ``out[i]``, its item fails as the assignment would.

        Args:
            out: A writable array whose first axis has one entry for each item.
            items: See ``map``.
            *args: See ``map``.
            **kwargs: See ``map``.

        Returns:
            ``out``. The entries of failed items are unchanged.

        Raises:
            ArgumentError: ``out`` is read-only, or does not have one entry for each item.
            ExceptionGroup: With ``return_exceptions``, after all items: the exceptions.
            Exception: See ``map``.

        Examples:
            >>> import sharedtask
            >>> square = sharedtask.parallel(lambda x: x * x)
            >>> square.map_into(sharedtask.empty(4), range(4))
            array([0., 1., 4., 9.])
        """
        try:
            run, plan = self._prepare(items, args, kwargs, into=out, waits=True)
            failed = [result for result in collect(run(), plan.total) if result is not TAKEN]
        except SHORTENED as error:
            shorten(error)
            raise
        if failed:
            msg = f"{len(failed)} of {plan.total} items of {plan.call.task}() failed"
            raise ExceptionGroup(msg, failed)
        return out

    def starmap(self, items: Iterable[Iterable[Any]], /, **kwargs: Any) -> list[R]:
        """Like ``map``, but each item is a tuple that is unpacked into the first parameters.

        Examples:
            >>> from sharedtask import parallel
            >>> @parallel
            ... def power(base: int, exponent: int) -> int:
            ...     return base**exponent
            >>> power.starmap([(2, 3), (3, 2)])
            [8, 9]
        """
        try:
            run, plan = self._prepare(items, (), kwargs, star=True, waits=True)
            return collect(run(), plan.total)
        except SHORTENED as error:
            shorten(error)
            raise

    def imap(
        self: Runs[Concatenate[J, Q], R], items: Iterable[J], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Generator[R, None, None]:
        """Like ``map``, but a stream: results in order, each as soon as all earlier ones are ready.

        Items are read only as fast as you take results: at most ``buffersize`` items are in
        flight or finished ahead of you, so ``items`` may be endless. Leaving the loop stops the
        workers.

        Examples:
            >>> from itertools import count
            >>> from sharedtask import parallel
            >>> square = parallel(lambda x: x * x)
            >>> for y in square.imap(count()):
            ...     if y > 20:
            ...         break
            >>> y
            25
        """
        run, _ = self._prepare(items, args, kwargs, streams=True)
        return in_order(run)

    def imap_unordered(
        self: Runs[Concatenate[J, Q], R], items: Iterable[J], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Generator[R, None, None]:
        """Like ``imap``, but in the order in which results become ready."""
        run, _ = self._prepare(items, args, kwargs, streams=True)
        return as_completed(run)

    def submit(
        self: Runs[Concatenate[J, Q], R], item: J, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> TaskFuture[R]:
        """Run the task for one item and return a future of its result.

        It is a standard library future, with a ``kill()`` that ends a running item.
        With a ``seed`` the items that one task object submits get the random numbers of
        items 0, 1, 2 ... of a map, in the order of the submits.

        Examples:
            >>> from sharedtask import parallel
            >>> double = parallel(lambda x: 2 * x)
            >>> double.submit(21).result()
            42
        """
        target, explicit, usage = self._parts()
        try:
            return self._submits().submit(target, explicit, item, args, kwargs, usage.count)
        except SHORTENED as error:
            shorten(error)
            raise

    async def amap(
        self: Runs[Concatenate[J, Q], R], items: Iterable[J], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> list[R]:
        """``map`` for coroutines: it does not block the event loop.

        If it is cancelled, the run is stopped first, and lets go of the arrays that tasks write.
        """
        start, plan = self._prepare(items, args, kwargs)
        run = start()
        try:
            results: list[R] = await in_thread(collect, run, plan.total, stop=run.stop)
        except SHORTENED as error:
            shorten(error)
            raise
        return results

    async def aimap(
        self: Runs[Concatenate[J, Q], R], items: Iterable[J], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> AsyncGenerator[R, None]:
        """``imap`` for coroutines: ``async for result in task.aimap(items)``."""
        start, _ = self._prepare(items, args, kwargs, streams=True)
        run = start()
        stream = Steps(in_order(lambda: run))
        try:
            while results := await in_thread(stream.step):
                for result in results:
                    yield result
        except SHORTENED as error:
            shorten(error)
            raise
        finally:
            run.stop()
            await in_thread(stream.close)

    @shortened
    def explain(self, /, **kwargs: Any) -> Explanation:
        """Explain how each argument of a call would be sent, and what the function captures.

        Args:
            **kwargs: Any arguments of the function.

        Returns:
            A table to print: see ``sharedtask.explain``. It advises to
            mark large unmarked arguments; captured values have their own section.

        Raises:
            ArgumentError: The function has no parameter of that name.

        Examples:
            >>> import numpy as np
            >>> from sharedtask import Shared, parallel
            >>> @parallel
            ... def score(row: int, table: Shared[np.ndarray], scale: float = 1.0) -> float:
            ...     return float(table[row].sum() * scale)
            >>> told = score.explain(table=np.ones((1000, 100)), scale=2.0)
            >>> {row.path: row.travels for row in told.rows}
            {'table': 'zero-copy', 'scale': 'copied'}
        """
        with undisturbed("sharedtask.task.explain_call"):
            from .explain_call import explain_call

        target, explicit, _ = self._parts()
        capture_from = CAPTURE_FROM if resolve(explicit).captured == "share" else None
        return explain_call(target.spec, target.function, target.bound, kwargs, capture_from)

    def cache_info(self) -> CacheInfo:
        """Return cache hits and misses of this task's shared values, and their memory."""
        return self._parts()[2].info()

    def cache_clear(self) -> None:
        """Free the shared memory of this task's values."""
        self._parts()[2].clear()

    def _prepare(
        self,
        items: Iterable[Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        star: bool = False,
        streams: bool = False,
        into: npt.NDArray[Any] | None = None,
        waits: bool = False,
    ) -> tuple[Callable[[], Run], Plan]:
        """Check everything now; return a function that opens the run.

        If the caller ``waits`` for all results, its line is on the stack until the end.
        """
        if observing.recorder is not None:
            observing.recorder.call_begins()
        target, explicit, usage = self._parts()
        try:
            options = resolve(explicit)
            plan = plan_map(
                target, items, args, kwargs, options, star=star, streams=streams, into=into
            )
            if args or type(items) not in PLAIN:
                call_hints.tell(target.spec, items, args)
            backend = registry.of(options)
        except SHORTENED as error:
            shorten(error)
            raise
        callsite = functools.partial(callsite_of, options) if waits else callsite_of(options)
        return lambda: Run(backend, plan, usage.pace, usage.count, callsite), plan


for _method in vars(Runs).values():  # Python's own errors should name Task.map()
    if isinstance(_method, FunctionType):
        _method.__qualname__ = f"Task.{_method.__name__}"
        # What is left out is an error that says more.
        if "items" in _method.__code__.co_varnames and _method.__name__[0] != "_":
            _method.__defaults__ = (NoItems,)


if TYPE_CHECKING:
    # wrapt's own types allow any attribute and every operator, so that no misspelt method of a task
    # would be reported. These types have what is used here, and what a user may rely on.

    class _Nothing: ...

    class _Proxy(Generic[P, R]):
        __name__: str
        __qualname__: str
        __wrapped__: Callable[P, R]
        _self_instance: Any
        _self_owner: Any

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    class _BoundBase(_Proxy[P, R]):
        _self_parent: Any  # a task; declared as one, checkers would bind it

    class _TaskBase(_Proxy[P, R]):
        def __init__(self, wrapped: Callable[P, R], wrapper: Callable[..., Any]) -> None: ...

else:
    # wrapt would say that a task *is* a function, and cloudpickle would then send the function
    # without its task.
    class _BoundBase(wrapt.BoundFunctionWrapper, Generic[P, R]):
        __class__ = property(type)

    class _TaskBase(wrapt.FunctionWrapper, Generic[P, R]):
        __class__ = property(type)


class BoundTask(Runs[P, R], _BoundBase[P, R]):
    """A task taken from an object or a class: ``obj.method``."""

    _sharedtask_ = True

    def _parts(self) -> Parts:
        task: Task[..., R] = self._self_parent
        return task._bound_parts(self)

    def _submits(self) -> Submits:
        submits: Submits = self._self_parent._submits()
        return submits

    def with_options(self, **options: Unpack[OptionsDict]) -> BoundTask[P, R]:
        """Return the same method with other options."""
        task = self._self_parent.with_options(**options)
        bound: BoundTask[P, R] = task.__get__(self._self_instance, self._self_owner)
        return bound

    def __reduce_ex__(self, protocol: Any) -> Any:
        owner = self._self_instance if self._self_instance is not None else self._self_owner
        return _bind, (self._self_parent, owner)

    def __copy__(self) -> BoundTask[P, R]:
        return self

    def __deepcopy__(self, memo: Any) -> BoundTask[P, R]:
        return self


class Task(Runs[P, R], _TaskBase[P, R]):
    """A function that can be mapped over many items; made by ``parallel``.

    Calling it calls the function directly.
    """

    __bound_function_wrapper__ = BoundTask
    _sharedtask_ = True

    def __init__(
        self,
        wrapped: Callable[P, R],
        make_spec: Callable[[], TaskSpec],
        options: Mapping[str, Any],
        recipe: tuple[Any, ...],
    ) -> None:
        self_spec = functools.cache(make_spec)
        super().__init__(wrapped, functools.partial(call_directly, self_spec, options))
        self._self_spec = self_spec
        self._self_options = dict(options)
        self._self_recipe = recipe  # rebuilds it if it cannot be found by name
        self._self_usage = Usage()
        self._self_submits = Submits()
        self._self_parts: Parts | None = None

    @property
    def spec(self) -> TaskSpec:
        """The spec of the function: its signature and the roles of its parameters."""
        return self._self_spec()

    def with_options(self, **options: Unpack[OptionsDict]) -> Task[P, R]:
        """Return a copy of the task with other options; all other options stay unchanged.

        Items that you submit to the copy get the random numbers of items 0, 1, 2 ... again.

        Raises:
            OptionsError: An option is unknown or out of range.

        Examples:
            >>> from sharedtask import parallel
            >>> double = parallel(lambda x: 2 * x)
            >>> double.with_options(workers=2, chunksize=10).map(range(3))
            [0, 2, 4]
        """
        try:
            checked = check_options(options, f"{self.spec.name}.with_options()")
            self.spec.refuse_options(checked)
        except SHORTENED as error:
            shorten(error)
            raise
        merged = {**self._self_options, **checked}
        recipe = (*self._self_recipe[:-1], merged)
        task = Task(self.__wrapped__, lambda: self.spec, merged, recipe)
        task._self_usage = self._self_usage  # the same values, the same pace
        return task

    def _submits(self) -> Submits:
        return self._self_submits

    def _parts(self) -> Parts:
        if self._self_parts is None:
            function, slots = functions.bare(self.__wrapped__), self._self_usage.slots
            target = Target(self.spec, function, slots=slots)
            self._self_parts = Parts(target, self._self_options, self._self_usage)
        return self._self_parts

    def _bound_parts(self, bound: Any) -> Parts:
        instance, spec = bound._self_instance, self.spec
        wrapped: object = self.__wrapped__
        if isinstance(wrapped, staticmethod):
            values: tuple[Any, ...] = ()
        elif isinstance(wrapped, classmethod):
            values = (type(instance) if instance is not None else bound._self_owner,)
        elif instance is None:
            values = ()
        else:
            values, spec = (instance,), spec.on_object()
        slots = self._self_usage.slots
        target = Target(spec, functions.bare(wrapped), values, slots=slots)
        return Parts(target, self._self_options, self._self_usage)

    # A task pickles as its name if it is found by it, else as its parts.

    def __reduce_ex__(self, protocol: Any) -> Any:
        function = functions.bare(self.__wrapped__)
        name = functions.name_for(function, sys._getframe(1))
        found = None if name is None else functions.found(*name)
        if found is self:
            return functions.find, name
        if isinstance(found, Task):  # the named one, with other options
            return _with_options, (found, self._self_options)
        return rebuild, self._self_recipe

    def __copy__(self) -> Task[P, R]:
        return self

    def __deepcopy__(self, memo: Any) -> Task[P, R]:
        return self

    def __repr__(self) -> str:
        return f"<Task {self.spec.shown}>"

    __str__ = __repr__

    if TYPE_CHECKING:
        # No checker tells a decorator that a function is a class method or a static one. pyright
        # infers it from the first parameter, which takes the class, the object or neither. mypy
        # does not compare first parameters, so the first overload that fits counts: from an object
        # it takes every task for a method, from a class it checks the result alone.

        @overload
        def __get__(
            self: Task[Concatenate[_Nothing, Q], R], instance: None, owner: type[Any]
        ) -> BoundTask[..., R]: ...
        @overload
        def __get__(
            self: Task[Concatenate[type[C], Q], R], instance: None, owner: type[C]
        ) -> BoundTask[Q, R]: ...
        @overload
        def __get__(self, instance: None, owner: type[Any]) -> BoundTask[P, R]: ...
        @overload
        def __get__(
            self: Task[Concatenate[type[C], Q], R], instance: C, owner: type[Any] | None = None
        ) -> BoundTask[Q, R]: ...
        @overload
        def __get__(
            self: Task[Concatenate[C, Q], R], instance: C, owner: type[Any] | None = None
        ) -> BoundTask[Q, R]: ...
        @overload
        def __get__(self, instance: object, owner: type[Any] | None = None) -> BoundTask[P, R]: ...
        def __get__(self, instance: Any, owner: Any = None) -> Any: ...


class _Ready(Runs[..., Any]):
    """A task whose parts were changed for one call."""

    def __init__(self, parts: Parts) -> None:
        self._made = parts

    def _parts(self) -> Parts:
        return self._made


def parts_of(task: Runs[..., Any]) -> Parts:
    """The parts of a task, or of a task taken from an object."""
    return task._parts()


def run_with(parts: Parts) -> Runs[..., Any]:
    """The ways to run a task of these parts."""
    return _Ready(parts)


def remade(task: Task[..., Any] | BoundTask[..., Any], make: Callable[..., Any]) -> Any:
    """The task that ``make(function, lists, options)`` makes of the same, with its statistics.

    Of a task that was taken from an object, it is taken from that object again.
    """
    if isinstance(task, BoundTask):
        parent = remade(task._self_parent, make)
        return parent.__get__(task._self_instance, task._self_owner)
    other = make(*task._self_recipe)
    other._self_usage = task._self_usage  # the same values, the same pace
    return other


def _bind(task: Task[..., Any], owner: Any) -> Any:
    if isinstance(owner, type):
        return task.__get__(None, owner)
    return task.__get__(owner, type(owner))


def _with_options(task: Task[..., Any], options: Mapping[str, Any]) -> Task[..., Any]:
    return task.with_options(**options)


def rebuild(
    wrapped: Callable[..., Any],
    lists: Lists,
    options: Mapping[str, Any],
) -> Task[..., Any]:
    """Rebuild a task from its parts; its signature is read at its first use.

    While a function that refers to its own task is unpickled, it has no annotations yet.
    """
    return make_task(wrapped, lists, options)


def make_task(
    function: Callable[P, R],
    lists: Lists,
    options: Mapping[str, Any],
    spec: TaskSpec | None = None,
) -> Task[P, R]:
    """Make a task; without a ``spec`` the signature is read at its first use."""

    def make_spec() -> TaskSpec:
        return spec or build_spec(functions.bare(function), kind=kind_of(function), **lists)

    return Task(function, make_spec, options, (function, lists, options))


def kind_of(function: Any) -> Kind:
    """The kind of declaration of the function in its class."""
    if isinstance(function, staticmethod):
        return "static"
    return "class" if isinstance(function, classmethod) else "function"
