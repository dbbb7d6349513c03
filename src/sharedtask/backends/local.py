"""The serial and the thread backend: tasks in this process, under the same rules.

Shared values are encoded and decoded over *the same* memory, read-only: nothing large is copied,
and a task that writes into a shared array fails here as it fails in a worker: see
``local_views.py``. Nothing is published, so nothing is cached: each call makes its own view, which
costs as much as pickling everything but the arrays. Unmarked values are copied for each chunk: see
``private_copies.py``.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import sys
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sharedtask import context
from sharedtask.annotations import Role
from sharedtask.backends.base import (
    REPORT_SOON_SECONDS,
    Backend,
    Call,
    Chunk,
    Concurrency,
    Session,
    SharedValue,
    Sink,
    Team,
)
from sharedtask.backends.worker.refusals import readonly_advice
from sharedtask.errors import (
    ChangedValueError,
    IncompleteValueWarning,
    TaskTimeoutError,
)
from sharedtask.outcomes import Batch, Known, Report, contained
from sharedtask.serialization import losses, missing
from sharedtask.system import forks, interrupts
from sharedtask.system.cpus import available_cpus
from sharedtask.system.loading import undisturbed
from sharedtask.system.records import dataclass
from sharedtask.writing import roles
from sharedtask.writing.handler import COUNT, Entered, Reach, Stage

from .local_threads import Threads, set_up_of
from .local_views import LocalView
from .local_watch import StrictViews, WatchedViews
from .private_copies import Unmarked, copied, with_copies

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sharedtask.backends.worker.call_header import Constants
    from sharedtask.observing import Clock
    from sharedtask.outcomes import Change
    from sharedtask.writing.handler import Part

    from .local_set_up import SetUp


class SerialBackend(Backend):
    """Runs every chunk at once, in the thread that submits it."""

    name: ClassVar[str] = "serial"
    in_caller: ClassVar[bool] = True

    def session(self, call: Call, sink: Sink) -> Session:
        return _LocalSession(call, sink)

    def close(self) -> None:
        module = sys.modules.get("sharedtask.backends.local_set_up")
        if module is not None:
            module.close_callers()


class ThreadBackend(Backend):
    """Runs chunks in threads of this process."""

    name: ClassVar[str] = "thread"

    def __init__(self) -> None:
        self._threads = Threads()
        forks.abandon_in_child(self)
        _alive.add(self)

    def abandon(self) -> None:
        """In a forked child no threads exist: reset the counts."""
        self._threads = Threads()

    def session(self, call: Call, sink: Sink) -> Session:
        return _ThreadSession(call, sink, self._threads)

    def close(self) -> None:
        threads, self._threads = self._threads, Threads()
        threads.close()

    def close_made(self) -> None:
        """At exit: have the threads close what they have made."""
        self._threads.close_made()


class _LocalSession(Session):
    @property
    def running(self) -> int:
        """The number of chunks that run at a time."""
        return 1

    def __init__(self, call: Call, sink: Sink) -> None:
        self._call = call
        self._sink = sink
        self.handlers = call.handlers
        self._unmarked = Unmarked(call)
        self._strict: StrictViews | None = None
        self._watched: WatchedViews | None = None
        self._set_up: SetUp | None = None
        self._closed = False

    def open(self) -> None:
        call, strict = self._call, self._call.options.strict
        self._views = [
            LocalView.of(call, name, value)
            for name, value in call.shared.items()
            if not (value.role.writes or value.role is Role.PER_WORKER)
        ]
        if any(value.role is Role.PER_WORKER for value in call.shared.values()):
            self._set_up = self._set_up_of()
        common = [view for view in self._views if not view.private]
        self._readonly = [view.name for view in common]
        self._small = [view for view in common if view.memory is not None]
        if strict is True:
            self._strict = StrictViews(common)
        elif strict and common:
            self._watched = WatchedViews(common)
        self._values = {} if strict else {view.name: view.value() for view in common}
        for handler in self.handlers:
            handler.open(Stage(call.task, Reach.HERE, self.concurrency.workers))
        self._unmarked.open()
        self._context = _Context()

    def _set_up_of(self) -> SetUp:
        """What the call sets up, opened."""
        return set_up_of(self._call, None)

    def submit(self, chunk: Chunk) -> None:
        if self._sink.begun(chunk.number):
            with context.recorded() if self._call.report_soon else contextlib.nullcontext():
                self._run_placed(with_copies(self._call, chunk), _ALONE)

    def _run_placed(self, chunk: Chunk, place: context.Place) -> None:
        with context.placed(place):
            self._run(chunk, None if self._call.trace is None else self._call.trace.clock())

    def fail(self, chunk: Chunk, error: BaseException) -> None:
        """Report that no item of the chunk was run."""
        count = len(chunk.items)
        batch = Batch(chunk.first, [None] * count, dict.fromkeys(range(count), error))
        self._sink.report(Report(chunk.number, Known(batch), count, finished=True))

    def _run(self, chunk: Chunk, clock: Clock | None) -> None:
        try:
            constants = self._unmarked.constants()
        except Exception as error:  # noqa: BLE001  unpickling runs user code, and may find no room
            self.fail(chunk, error)
            return
        if self._set_up is None or self._closed:
            self._run_with(constants, chunk, self._values, self._call.function, clock)
        else:
            self._run_set_up(self._set_up, constants, chunk, clock)

    def _run_set_up(
        self, set_up: SetUp, constants: Constants, chunk: Chunk, clock: Clock | None
    ) -> None:
        if clock is not None:
            clock.enter("set up")
        try:
            made = set_up.values()
        except BaseException as error:
            if interrupts.is_real(error):
                raise
            self.fail(chunk, contained(error, self._call.task, chunk.first))
        else:
            function = set_up.around(self._call.function)
            self._run_with(constants, chunk, {**self._values, **made}, function, clock)

    def _run_with(
        self,
        constants: Constants,
        chunk: Chunk,
        values: Mapping[str, Any],
        function: Callable[..., Any],
        clock: Clock | None,
    ) -> None:
        began = time.monotonic()
        batch = Batch(chunk.first, [])
        run = self._run_watched if self._strict is None else self._run_guarded
        words = [0] * (COUNT + 1)
        parts = self._entered(chunk, words) if self.handlers else ()
        values = {**values, **{k: v for part in parts for k, v in part.common.items()}}
        turn = _Turn(function, constants, values, parts, words, clock)
        left_out, change = run(chunk, batch, turn)
        if parts:
            batch.partial = roles.leave(parts, len(batch.values))
        seconds, count = time.monotonic() - began - left_out, len(batch.values)
        report = Report(chunk.number, Known(batch), count, True, seconds, change)
        if clock is not None:
            report.trace = clock.told()
        self._sink.report(report)

    def _entered(self, chunk: Chunk, words: list[int]) -> Sequence[Part]:
        """The parts of the roles that tasks write, in this chunk."""
        values: dict[Role, dict[str, Any]] = {}
        for name, shared in self._call.shared.items():
            if shared.role.writes:
                values.setdefault(shared.role, {})[name] = self.lend(name)
        call = self._call
        entered = Entered(call.task, chunk.number, chunk.first, 0, call.star, words)
        return roles.enter(values, entered)

    def _run_guarded(self, chunk: Chunk, batch: Batch, turn: _Turn) -> tuple[float, None]:
        """Run the items of a strict call; returns the time of checking the values."""
        assert self._strict is not None  # noqa: S101  chosen above
        with self._strict.guarding(self._call, chunk, batch) as guard:
            turn = replace(
                turn,
                function=guard.after(turn.function),
                values={**turn.values, **guard.values},
                left_out=lambda: guard.seconds,
            )
            run_one = guard.around(self._run_one)
            interrupts.exposed(self._run_items, chunk, batch, turn, run_one)
        return guard.seconds, None

    def _run_watched(self, chunk: Chunk, batch: Batch, turn: _Turn) -> tuple[float, Change | None]:
        """Run the items; returns the time of checking the values, and the change found, if any."""
        if self._watched is None:
            interrupts.exposed(self._run_items, chunk, batch, turn, self._run_one)
            return 0.0, None
        began = time.monotonic()
        with self._watched.entered():
            turn = replace(turn, values={**turn.values, **self._watched.values})
            interrupts.exposed(self._run_items, chunk, batch, turn, self._run_one)
            ended = time.monotonic()
            if turn.clock is not None:
                turn.clock.enter("check")
            change = self._watched.check(chunk.first, len(batch.values), ended - began)
        return time.monotonic() - ended, change

    def _run_items(
        self, chunk: Chunk, batch: Batch, turn: _Turn, run_one: Callable[[Any, int, _Turn], Any]
    ) -> None:
        call, began = self._call, time.monotonic()
        if turn.clock is not None:
            turn.clock.compute()
            run_one = turn.clock.around(run_one)
        for part in turn.parts:
            turn = replace(turn, function=part.guarded(turn.function))
        for offset, item in enumerate(chunk.items):
            turn.words[COUNT] = offset
            if self._closed or (call.report_soon and offset and _is_late(began)):
                break
            try:
                value, error = self._context.run(run_one, item, chunk.first + offset, turn), None
            except BaseException as raised:
                if interrupts.is_real(raised):
                    raise
                advised = readonly_advice(
                    raised, call.task, self._readonly, call.function, turn.constants.named
                )
                value, error = None, contained(advised, call.task, chunk.first + offset)
            if self._small:
                error = self._restored(chunk.first + offset) or error
            if self._unmarked.changes and offset + 1 < len(chunk.items):
                value, error = self._kept(value, chunk.first + offset, error)
            batch.values.append(value)
            if error is not None:
                batch.errors[offset] = error
                if call.fail_fast:
                    break

    def _kept(
        self, value: Any, index: int, error: BaseException | None
    ) -> tuple[Any, BaseException | None]:
        """A copy of a result, for later items may change a part of it; and the item's error."""
        with losses.collected() as lost:
            made = copied(value)
        try:
            missing.warn_of_result(self._call.task, index, value, lost)
        except IncompleteValueWarning as warning:  # warnings are errors
            return None, contained(warning, self._call.task, index)
        return made, error

    def _restored(self, index: int) -> BaseException | None:
        """Undo writes of native code into small arrays; returns the error that reports them."""
        changed = [view.name for view in self._small if view.restore()]
        if not changed:
            return None
        task, items = self._call.task, range(index, index + 1)
        error = ChangedValueError(task, changed[0], changed[0], items, self.running > 1)
        return contained(error, task, index)

    def _run_one(self, item: Any, index: int, turn: _Turn) -> Any:
        call, began = self._call, time.monotonic()
        shared = self._shared(index, turn.values)
        lent = {name: value for part in turn.parts for name, value in part.before(item).items()}
        shared.update(lent)
        constants = turn.constants
        bound, args, kwargs = constants.bound, constants.args, constants.kwargs
        if call.bound_name in shared:
            bound = (shared.pop(call.bound_name),)
        items = item if call.star else (item,)
        value = turn.function(*bound, *items, *args, **kwargs, **shared)
        # A task in this process cannot be ended from outside: report its timeout afterwards.
        timeout = call.options.timeout
        if timeout is not None and time.monotonic() - began - turn.left_out() > timeout:
            raise TaskTimeoutError(call.task, index, item, timeout)
        if any(value is each for each in lent.values()):
            value = value.copy()  # it is a view of an array that later items change
        return roles.after(turn.parts, value) if turn.parts else value

    def _shared(self, index: int, values: Mapping[str, Any]) -> dict[str, Any]:
        own = {view.name: view.private_value() for view in self._views if view.private}
        made = self._call.randomness
        generators = {} if made is None else made.generators(index)
        return {**values, **own, **generators}

    def fingerprints(self, shared: Mapping[str, SharedValue]) -> dict[str, bytes]:
        with undisturbed("sharedtask.backends.fingerprints"):  # needed by a journal only
            from . import fingerprints

        return {name: fingerprints.of_value(value.value) for name, value in shared.items()}

    def conclude(self) -> Change | None:
        return None if self._watched is None else self._watched.last_check()

    def close(self) -> None:
        self._closed = True
        for handler in self.handlers:
            handler.close(entered=True, gave_up=False)
        self._unmarked.close()
        for closing in (self._strict, self._watched, self._set_up):
            if closing is not None:
                closing.close()


_ALONE = context.Place(0, 1, "serial")


class _Context:
    """The context of the caller: its context variables, with decimal's settings and numpy's.

    Each item is run in a copy of it, so that settings of one item are not visible to another.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._errors: Any = None if _ERRORS_IN_CONTEXT else np.geterr()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function in a copy of the context."""
        if self._errors is None:
            return self._context.copy().run(function, *args)
        with np.errstate(**self._errors):
            return self._context.copy().run(function, *args)


# Before numpy 2 each thread has an error state of its own.
_ERRORS_IN_CONTEXT = int(np.__version__.partition(".")[0]) >= 2


def _is_late(began: float) -> bool:
    return time.monotonic() - began > REPORT_SOON_SECONDS


@dataclass(frozen=True, slots=True)
class _Turn:
    """The values for the items of a chunk; ``left_out`` seconds do not count as theirs.

    ``words`` say which item is the current one: see ``Entered``.
    """

    function: Callable[..., Any]
    constants: Constants
    values: Mapping[str, Any]
    parts: Sequence[Part]
    words: list[int]
    clock: Clock | None
    left_out: Callable[[], float] = float


# --------------------------------------------------------------------------------- threads


class _ThreadSession(_LocalSession):
    def __init__(self, call: Call, sink: Sink, threads: Threads) -> None:
        super().__init__(call, sink)
        self._threads = threads
        cpus = available_cpus()
        self.concurrency = Concurrency(call.options.workers or cpus, cpus)
        self._team = Team() if call.team is None else call.team

    @property
    def running(self) -> int:
        """The number of running chunks, of this call and those that share its limit."""
        return self._team.chunks[0]

    def note(self, change: int) -> None:
        """Count a chunk that begins, or ends."""
        self._team.chunks[0] += change

    def submit(self, chunk: Chunk) -> None:
        self._threads.put(self, with_copies(self._call, chunk))

    def run(self, chunk: Chunk, number: int) -> None:
        """Run a chunk; called by the thread with this number, which no error ends."""
        if self._closed or not self._sink.begun(chunk.number):
            return
        try:
            self._run_placed(chunk, context.Place(number, self.concurrency.workers, "thread"))
        except Exception as error:  # noqa: BLE001
            if not self._closed:  # else its values may have been gone as it began
                self.fail(chunk, error)

    def _set_up_of(self) -> SetUp:
        return set_up_of(self._call, self._threads.own_table)


_alive: weakref.WeakSet[ThreadBackend] = weakref.WeakSet()


def _close_made() -> None:
    for backend in list(_alive):
        backend.close_made()


atexit.register(_close_made)
