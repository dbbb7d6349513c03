"""Calls of any functions in one queue: they wait together, and each has its own outcome.

fn, args -> packed -> SubmitQueue                  small calls, on a backend whose submits join
fn, args -> Submission, with a session of its own   others: large arrays in them are shared
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

from sharedtask.backends import registry
from sharedtask.backends.base import Call, Team, with_initializer
from sharedtask.backends.worker import packed_calls
from sharedtask.errors import InitializerError
from sharedtask.outcomes import told_of
from sharedtask.recipes import Slots
from sharedtask.serialization import losses, missing
from sharedtask.system import critical_sections, interrupts
from sharedtask.system.finalizers import Weak

from .calling import failed
from .callsite import callsite_of
from .packing import pack
from .plan import CAPTURE_FROM
from .submission import Submission
from .submit_queue import SubmitQueue, may_wait
from .submits import queue_for
from .unfinished import again

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sharedtask.backends.base import Backend
    from sharedtask.options import Options

    from .futures import TaskFuture

_TASK = "Executor.submit"


def call_of(
    name: str,
    function: Callable[..., Any],
    options: Options,
    team: Team,
    slots: Slots,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    star: bool = True,
) -> Call:
    """A call of any function, which need not be a task: nothing is marked.

    Large arrays that it captures, or that stand in ``args`` and ``kwargs``, are shared, each by
    itself.
    """
    return Call(
        task=name,
        function=function,
        bound=(),
        args=args,
        kwargs={} if kwargs is None else kwargs,
        shared=with_initializer({}, options),
        options=options,
        bound_name=None,
        handlers=(),
        randomness=None,
        block=None,
        star=star,
        capture_from=shared_from(options),
        uncopied=False,
        slots=slots,
        team=team,
    )


def shared_from(options: Options) -> int | None:
    """The size from which arrays are shared; None for none."""
    return CAPTURE_FROM if options.captured == "share" else None


class FunctionCalls:
    """The submits of one executor. Their ``team`` bounds them together; see ``Call`` for slots."""

    def __init__(self, on_broken: Callable[[InitializerError], object]) -> None:
        self._on_broken, self._is_broken = on_broken, False
        self._alone: Weak[int, _Alone] = Weak()  # those that an initializer may precede
        self.team, self.slots = Team(), Slots()
        self._indices = itertools.count()
        self._queue: SubmitQueue | None = None
        self._common: Call | None = None

    def submit(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Options,
    ) -> TaskFuture[Any]:
        """Begin a call. One that cannot be encoded is a failed future, as in other executors.

        Raises:
            Warning: Something of it is lost on its way, and warnings are errors.
        """
        critical_sections.reserve_stack()
        of_executor = options, self.team, self.slots
        call = functools.partial(call_of, name, function, *of_executor, args, kwargs)
        backend = registry.of(options)
        item = None
        if backend.joins and options.timeout is None:  # loading the function takes time as well
            item = _packed(name, function, args, kwargs, options, lambda: call().named())
        common = self._common_of(options)
        if item is not None and may_wait(common, item):
            with interrupts.shield():
                self._queue = queue_for(self._queue, backend, common, _count_nothing)
                return self._queue.add(next(self._indices), item, name)
        try:
            alone = _Alone(self, backend, call(), options)
        except Warning:
            raise
        except Exception as error:  # noqa: BLE001  pickling runs user code
            return failed(told_of(error, name, 0, name))
        if options.initializer is not None:
            self._alone.put(id(alone), alone)
        return alone.future

    def break_off(self, error: InitializerError) -> None:
        """The initializer has failed: all that have no outcome get the error."""
        if self._is_broken:
            return
        self._is_broken = True
        self._on_broken(error)
        for alone in self._alone.values():
            alone.fail(again(error))

    def _common_of(self, options: Options) -> Call:
        """The call whose items are packed calls."""
        common = self._common
        if common is None or common.options is not options:
            of_executor = options, self.team, self.slots
            common = call_of(_TASK, packed_calls.run, *of_executor, star=False)
            self._common = common
        return common


def _packed(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Options,
    named: Callable[[], Any],
) -> bytes | None:
    """The call as an item, if it may be one. If it cannot be pickled, its own session says why."""
    try:
        with losses.collected() as lost:
            item = pack(name, function, args, kwargs, shared_from(options))
        if lost and item is not None:
            missing.warn(name, lost, named)
    except Warning:
        raise
    except Exception:  # noqa: BLE001  pickling runs user code
        return None
    return item


class _Alone(Submission):
    """A call in a session of its own; its errors name no item."""

    def __init__(
        self, calls: FunctionCalls, backend: Backend, call: Call, options: Options
    ) -> None:
        self._calls = calls
        callsite = callsite_of(options)
        super().__init__(backend, call, (), options, _count_nothing, callsite)

    def _resolve(self, value: Any, error: BaseException | None) -> None:
        if error is not None:
            told_of(error, self._task, 0, self._task)
        super()._resolve(value, error)
        if isinstance(error, InitializerError):
            self._calls.break_off(error)

    def fail(self, error: InitializerError) -> None:
        """Give it the error as its outcome, unless it has one."""
        self._finish(None, error)


def _count_nothing(shares: Any) -> None:
    """These values belong to no task's statistics."""
