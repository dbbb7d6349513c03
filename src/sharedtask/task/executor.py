"""``Executor``: the library's workers behind the interface of ``concurrent.futures``."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections import deque
from concurrent import futures
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, TypeVar

from sharedtask.backends import registry
from sharedtask.backends.worker import packed_calls
from sharedtask.errors import OptionsError
from sharedtask.options import Options, check_options, resolve
from sharedtask.system.cpus import available_cpus
from sharedtask.system.finalizers import Known
from sharedtask.system.tracebacks import shortened
from sharedtask.task.signature.spec import name_of

from .callsite import callsite_of
from .chunking import Pace
from .function_calls import FunctionCalls, call_of
from .futures import TaskFuture
from .mapped import LastingRun, Mapped
from .plan import Plan
from .unfinished import Unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

P = ParamSpec("P")
T = TypeVar("T")

# Options that are said in another way here.
_ELSEWHERE = {
    "workers": "say max_workers=",
    "chunksize": "give it to map()",
    "buffersize": "give it to map()",
    "journal": "a task keeps results: sharedtask.parallel(function).with_options(journal=...)",
    "seed": "a function of an executor has no parameter annotated Rng",
}


class Executor(futures.Executor):
    """A ``concurrent.futures.Executor`` on the workers that all tasks of the process share.

    It runs functions of any kind, including lambdas, closures and those of scripts. Large
    arrays in arguments and closures go into shared memory automatically, and again only after a
    change; in a call they are read-only. If a worker dies, only its call fails.

    Args:
        max_workers: Number of calls of this executor that run at the same time; None for all CPUs
            that this process may use.
        initializer: Called once in each worker before its first call of this executor. If it
            raises, the executor is broken, as in the standard library: all pending and later calls
            raise ``InitializerError``, which is a ``BrokenExecutor``.
        initargs: Its arguments.
        **options: ``backend``, ``timeout`` (seconds per call), ``retries``, ``retry_on``,
            ``return_exceptions``, ``verify``, ``captured``, ``strict``, ``progress`` and ``desc``
            (of ``map``), ``memory_limit``, ``tasks_per_worker``, ``logs``, ``ray_options``: see
            ``parallel``.

    Raises:
        OptionsError: An option is unknown, out of range, or not available here.

    Examples:
        >>> import sharedtask
        >>> with sharedtask.Executor(max_workers=2) as executor:
        ...     future = executor.submit(pow, 2, 10)
        ...     squares = list(executor.map(lambda x: x * x, range(4)))
        >>> future.result(), squares
        (1024, [0, 1, 4, 9])
    """

    @shortened
    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        if initializer is not None:
            given = _callable(initializer), tuple(initargs)
            options["initializer"] = packed_calls.initialize, given
        self._explicit = _checked(max_workers, options)
        self._begin()

    def _begin(self) -> None:
        self._unfinished = Unfinished()
        self._calls = FunctionCalls(self._unfinished.break_off)
        self._paces: Known[Pace] = Known()

    @property
    def _max_workers(self) -> int:
        """Under this name libraries ask the standard library's executors for it."""
        return self._options().workers or available_cpus()

    @property
    def _broken(self) -> str | bool:
        """Why it takes no more calls, under the name of the standard library; else False."""
        broken = self._unfinished.broken
        return False if broken is None else str(broken)

    def _options(self) -> Options:
        return _of_calls(resolve(self._explicit))

    def _here(self) -> Unfinished:
        """What was begun in this process; a forked child begins with nothing."""
        if self._unfinished.pid != os.getpid():
            was_shut = self._unfinished.is_shut
            self._begin()
            self._unfinished.is_shut = was_shut
        return self._unfinished

    @shortened
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Start ``fn(*args, **kwargs)`` and return its future, which also has a ``kill()``.

        Raises:
            RuntimeError: The executor, or the interpreter, is shut down.
        """
        here = self._here()
        here.enter()
        try:
            future = self._calls.submit(name_of(fn), fn, args, kwargs, self._options())
            here.add(future)
        finally:
            here.leave()
        return future

    @shortened
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like the builtin ``map``, but all calls start immediately; results are in order.

        Args:
            fn: Called with one element of each iterable, to the end of the shortest.
            *iterables: Read to their end before this returns, unless there is a ``buffersize``.
            timeout: Seconds from now after which a missing result raises TimeoutError.
            chunksize: Number of calls that are sent together; "auto" chooses it by their duration.
            buffersize: Maximum number of started calls whose results you have not
                taken: the iterables are read as you take results, and may be endless.

        Returns:
            An iterator over the results. If a call failed, it raises the error in the place of
            the result, and ends. Calls that have not started by then, or when you close it, do not
            run.

        Raises:
            OptionsError: ``chunksize`` or ``buffersize`` is out of range.
            RuntimeError: The executor, or the interpreter, is shut down.
            SerializationError: The function cannot be encoded.

        Examples:
            >>> import sharedtask
            >>> with sharedtask.Executor() as executor:
            ...     list(executor.map(pow, [2, 3], [3, 2]))
            [8, 9]
        """
        until = None if timeout is None else time.monotonic() + timeout
        given = {"chunksize": chunksize, "buffersize": buffersize}
        checked = check_options(given, "Executor.map()")
        if buffersize is not None:
            waiting = zip(*iterables, strict=False)
            begun = [self.submit(fn, *args) for args in itertools.islice(waiting, buffersize)]
            return _buffered(deque(begun), functools.partial(self.submit, fn), waiting, until)
        here = self._here()
        here.enter()
        try:
            mapped = Mapped(here)
            here.add_map(mapped)
            self._map(mapped, fn, iterables, checked["chunksize"])
        finally:
            here.leave()
        return mapped.results(until)

    def _map(
        self,
        mapped: Mapped,
        fn: Callable[..., Any],
        iterables: Sequence[Iterable[Any]],
        chunksize: int | Literal["auto"],
    ) -> None:
        given = self._options()
        options = replace(given, return_exceptions=True)
        if chunksize != "auto":
            options = replace(options, chunksize=chunksize)
        star = len(iterables) != 1
        items = list(zip(*iterables, strict=False)) if star else _items(*iterables)
        calls = self._calls
        call = call_of(name_of(fn), fn, options, calls.team, calls.slots, star=star)
        backend = registry.of(options)
        call = replace(call, apart=True)
        plan = Plan(call, items, len(items), streams=False)
        callsite = callsite_of(options)
        run = LastingRun(backend, plan, self._pace_of(fn), _count_nothing, callsite)
        run.returns, run.on_broken = given.return_exceptions, calls.break_off
        mapped.begin(run, backend)

    def _pace_of(self, fn: Callable[..., Any]) -> Pace:
        """How long a function takes, as known from maps before."""
        pace = self._paces.get(fn) or Pace()
        try:
            self._paces.put(fn, pace)
        except TypeError:  # it cannot be referred to weakly
            return pace
        return pace

    def kill(self, future: futures.Future[Any]) -> bool:
        """End a call, waiting or running; its worker is replaced. See ``TaskFuture.kill``.

        Returns:
            Whether this ended it. False if it was done, or is not a future of this library.

        Examples:
            >>> import sharedtask, time
            >>> with sharedtask.Executor() as executor:
            ...     executor.kill(executor.submit(time.sleep, 60))
            True
        """
        return future.kill() if isinstance(future, TaskFuture) else False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. The workers stay, because all tasks of the process use them.

        Args:
            wait: Whether to wait for pending calls. They finish in any case.
            cancel_futures: Whether to cancel maps, and calls that have not started.
        """
        here = self._here()
        here.is_shut = True
        if cancel_futures:
            here.cancel()
        if wait:
            here.wait()

    def __reduce__(self) -> NoReturn:
        msg = "an Executor belongs to its process: make one where it is needed"
        raise TypeError(msg)


def _callable(initializer: Any) -> Any:
    if not callable(initializer):
        msg = f"Executor(): initializer must be a callable, got {initializer!r:.80}."
        raise OptionsError(msg)
    return initializer


def _checked(max_workers: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the form that ``resolve`` takes.

    Raises:
        OptionsError: One of them cannot be given here, or not with this value.
    """
    for name in options.keys() & _ELSEWHERE.keys():
        msg = f"Executor() has no {name}=: {_ELSEWHERE[name]}."
        raise OptionsError(msg)
    checked = check_options(options, "Executor()")
    if max_workers is None:
        return checked
    try:
        return {**checked, **check_options({"workers": max_workers}, "Executor()")}
    except OptionsError as error:
        reason = str(error).replace("workers must be", "max_workers must be greater than 0,")
        raise OptionsError(reason) from None


@functools.lru_cache(maxsize=64)
def _of_calls(options: Options) -> Options:
    """Without what only maps of tasks have; equal options give the same object."""
    return replace(options, journal=None, seed=None, buffersize=None)


def _items(given: Iterable[Any]) -> Sequence[Any]:
    """The elements of an iterable as they are now."""
    return given if isinstance(given, (tuple, range)) else list(given)


def _buffered(
    begun: deque[TaskFuture[Any]],
    submit: Callable[..., TaskFuture[Any]],
    waiting: Iterator[tuple[Any, ...]],
    until: float | None,
) -> Generator[Any, None, None]:
    """The results of calls; for each that the caller takes, the next one is begun."""
    try:
        while begun:
            seconds = None if until is None else max(until - time.monotonic(), 0.0)
            result = [begun[0].result(seconds)]
            begun.popleft()
            begun.extend(submit(*args) for args in itertools.islice(waiting, 1))
            yield result.pop()
    finally:
        for future in begun:
            future.cancel()


def _count_nothing(shares: Any) -> None:
    """These values belong to no task's statistics."""
