"""Runs the items of a chunk and records their results: the same in every kind of worker.

    load the call's values -> unpack the items -> for each: run, write down -> send

Only the task itself may end the process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedtask.annotations import Role
from sharedtask.context import Place, set_place
from sharedtask.errors import SerializationError
from sharedtask.outcomes import RaisedError
from sharedtask.store import captured
from sharedtask.system import blas
from sharedtask.system.loading import undisturbed
from sharedtask.writing import roles
from sharedtask.writing.handler import Entered

from . import call_header, calling, log_levels, status_page
from .calling import LoadedCall
from .context_variables import ChunkContext
from .mutation_guard import Guard, GuardedValue
from .status_page import Phase, Word
from .watching import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from sharedtask.outcomes import Partial
    from sharedtask.store.decoded import Values
    from sharedtask.writing.handler import Part

    from .chunk_clock import ChunkClock
    from .job import Job
    from .log_hooks import LogHooks
    from .making import Table
    from .process_settings import SettingsFollower
    from .result_writer import Outbox

_SLOW_BLOCK_NS, _LARGEST_BLOCK = 100_000, 64


class Identity(NamedTuple):
    """The backend of a worker, and its number there."""

    backend: str
    number: int


class Runner:
    """Runs chunks one after the other."""

    def __init__(
        self,
        words: memoryview,
        outbox: Outbox,
        values: Values,
        follower: SettingsFollower,
        hooks: LogHooks,
        identity: Identity,
    ) -> None:
        self._identity = identity
        self._made: Table | None = None
        self._follower = follower
        self._hooks = hooks
        self._call: int | None = None
        self._words = words
        self._outbox = outbox
        self._values = values
        self.header = call_header.Headers().get
        self._blas_threads = 1
        self._parts: Sequence[Part] = ()
        self._watcher = Watcher(values)

    def run(self, job: Job) -> bool:
        """Run a chunk; False if its items cannot be unpickled together, and none was run."""
        words = self._words
        self._parts = ()
        self._outbox.on_refusal = _nothing
        self._outbox.begin(job.number)
        header = self.header(job.header)
        clock = self._outbox.clock = self._values.clock = begun_clock() if header.traced else None
        self._outbox.task, self._outbox.index = header.task, job.first
        set_place(Place(self._identity.number, header.workers, self._identity.backend))
        try:
            words[Word.PHASE] = Phase.LOADING
            self._hooks.active = header.logs
            begins = self._apply_settings(header, job)
            loaded = self._loaded(header, job)
            if begins:
                log_levels.settle()
        except BaseException as error:  # noqa: BLE001  user code: imports, __setstate__, ...
            self._fail_all(error, job.items)
            done = True
        else:
            # Overwrite the time of an earlier chunk, whose last item may have begun long ago.
            words[Word.STARTED] = time.monotonic_ns() if header.timed else 0
            words[Word.PHASE] = Phase.UNPACKING
            if clock is not None:
                clock.enter("unpack")
            done = self._run_items(job, loaded)
        # Not if an exception leaves this, which ends the worker: the current item must not be taken
        # for one that was not begun.
        words[Word.PHASE] = Phase.IDLE
        if clock is not None:
            clock.leave()
        return done

    def take_partial(self) -> Partial | None:
        """The partial result of the last chunk."""
        parts, self._parts = self._parts, ()
        return roles.leave(parts, self._words[Word.BASE]) if parts else None

    def drop(self, token: Hashable) -> None:
        """Forget a published value, and close what was made by it, if it is a recipe."""
        self._follower.forget_look()
        self._values.drop(token)
        if self._made is not None:
            self._made.drop(token)
            self._made.close_due()

    def drop_those(self, is_over: Callable[[Hashable], bool]) -> None:
        """Between chunks, in another thread: close what was made by recipes that are over."""
        if self._made is not None:
            self._made.drop_those(is_over)

    def close(self) -> None:
        """The worker ends: close what it has made."""
        self._follower.forget_look()
        if self._made is not None:
            self._made.close_all()

    def check_earlier(self, header: call_header.CallHeader, call: int | None) -> None:
        """Check the values of a call that were not checked since another call used them."""
        self._watcher.check_earlier(header, call)

    def _apply_settings(self, header: call_header.CallHeader, job: Job) -> bool:
        """Apply the caller's directory and settings, and the BLAS threads of this call.

        Returns:
            Whether this is the first chunk of the call here.
        """
        begins = job.call is None or job.call != self._call or header.of_submits
        if begins:
            self._follower.apply(self._values.value(header.settings))
            self._call = job.call
            self._hooks.begin_call()
        else:
            self._follower.forget_look()
        _enter(header.cwd)
        limits = header.blas_threads not in (0, self._blas_threads)
        if limits:
            self._blas_threads = header.blas_threads
            blas.limit(header.blas_threads)
            self._follower.accept_changes()  # it has set variables
        if self._made is not None:
            self._made.restore_settings(header.recipes, threads=limits)
        return begins

    def _loaded(self, header: call_header.CallHeader, job: Job) -> LoadedCall:
        captured.use(self._values)
        function = self._values.function(header.function)
        self.check_earlier(header, job.call)
        guard = self._guard(header, job) if header.strict is True else None
        if guard is not None:
            function, shared = guard.after(function), guard.values
        elif header.strict:
            watched = self._values.value_to_watch
            shared = {s.name: self._shared(header, s, watched) for s in header.watched}
        else:
            shared = self._all_shared(header, Role.SHARED)
        given, items = calling.constants(header, job.body, job.attachments)
        bound, args, kwargs = given.parts()
        self._values.renew_classes(header.by_age)
        kwargs.update(shared)
        private = [s for s in header.shared if s.private]
        called, lends = function, False
        for part in self._entered(header, job):
            kwargs.update(part.common)
            called, lends = part.guarded(called), lends or part.lends
        if header.bound_name in kwargs:
            bound = (kwargs.pop(header.bound_name),)
        own = private or lends or header.randomness
        renew = functools.partial(self._own, header, job.first, private) if own else None
        constants = call_header.Constants(bound, args, kwargs, given.variables)
        return LoadedCall(header, function, called, constants, renew, self._parts, items, guard)

    def _entered(self, header: call_header.CallHeader, job: Job) -> Sequence[Part]:
        """The parts of the roles that tasks write, in this chunk."""
        values: dict[Role, dict[str, Any]] = {}
        for shared in header.shared:
            if shared.role.writes:
                values.setdefault(shared.role, {})[shared.name] = self._shared(header, shared)
        if values:
            chunk = Entered(header.task, job.number, job.first, job.slot, header.star, self._words)
            self._parts = roles.enter(values, chunk)
            self._outbox.on_refusal = functools.partial(roles.take_back, self._parts)
        return self._parts

    def _all_shared(self, header: call_header.CallHeader, role: Role) -> dict[str, Any]:
        return {s.name: self._shared(header, s) for s in header.shared if s.role is role}

    def _guard(self, header: call_header.CallHeader, job: Job) -> Guard:
        """Watch the values that all items see; a value of two parameters is watched once."""
        outbox, shared = self._outbox, [s for s in header.shared if s.is_readonly]
        guarded = {
            token: self._guarded(header, s) for token, s in {s.token: s for s in shared}.items()
        }
        found = [replace(guarded[s.token], name=s.name) for s in shared]
        items = range(job.first, job.first + job.items)
        begins = functools.partial(self._start_anew, job) if header.timed else bool
        return Guard(
            header.task,
            items,
            header.fail_fast,
            found,
            position=lambda: outbox.position,
            begins=begins,
            ended=outbox.exclude,
        )

    def _start_anew(self, job: Job) -> None:
        """Restart the time limit after work that does not count as the item's."""
        job.poll_cancel()
        self._words[Word.STARTED] = time.monotonic_ns()

    def _guarded(
        self, header: call_header.CallHeader, parameter: call_header.SharedParameter
    ) -> GuardedValue:
        values, token = self._values, parameter.token
        value, original = self._shared(header, parameter, values.take)
        keep = functools.partial(values.give_back, token, original)
        return GuardedValue(
            parameter.name, value, original, keep, functools.partial(values.renew, token)
        )

    def _shared(
        self,
        header: call_header.CallHeader,
        parameter: call_header.SharedParameter,
        get: Callable[[Any], Any] | None = None,
    ) -> Any:
        try:
            return (get or self._values.value)(parameter.token)
        except BaseException as error:
            msg = f"{header.task}(): {parameter.name!r} cannot be rebuilt in a worker: {error!r}"
            raise SerializationError(msg) from error

    def _own(
        self,
        header: call_header.CallHeader,
        first: int,
        private: list[call_header.SharedParameter],
        item: Any,
    ) -> dict[str, Any]:
        """The values that this item alone gets."""
        own = {p.name: self._values.private_value(p.token) for p in private}
        for part in self._parts:
            own.update(part.before(item))
        if header.randomness is not None:
            own.update(header.randomness.generators(first + self._outbox.position))
        return own

    def _fail_all(self, error: BaseException, count: int) -> None:
        raised = RaisedError.of(error)
        for _ in range(count):
            self._outbox.add_raised(raised)
        self._outbox.flush(finished=True)

    def _run_items(self, job: Job, loaded: LoadedCall) -> bool:
        try:
            items = calling.unpacked(job.mode, loaded.items, job.attachments)
        except BaseException as error:  # noqa: BLE001  unpickling runs user code
            if job.items > 1:  # sending each on its own shows the bad one
                return False
            self._outbox.add_error(calling.unreadable(loaded.header, job.first, error))
        else:
            if loaded.header.recipes and not self._is_set_up(job, loaded):
                return True
            began = time.monotonic()
            self._loop(job, items, loaded)
            if loaded.header.watched:
                self._check(job, loaded.header, began)
        self._outbox.flush(finished=True)
        return True

    def _is_set_up(self, job: Job, loaded: LoadedCall) -> bool:
        """Make what the items need of this worker; False if that fails, which they report.

        Nothing is made for a chunk that was given up. Where items have a time limit, a look at that
        would start it.
        """
        header, words = loaded.header, self._words
        if not header.timed and job.poll_cancel():
            self._outbox.flush(finished=True)
            return False
        words[Word.PHASE] = Phase.LOADING
        if self._outbox.clock is not None:
            self._outbox.clock.enter("set up")
        try:
            loaded.constants.kwargs.update(self._made_for(header, job))
        except BaseException as error:  # noqa: BLE001  user code
            self._fail_all(error, job.items)
            return False
        if header.timed:
            self._start_anew(job)
        words[Word.PHASE] = Phase.UNPACKING
        return True

    def _made_for(self, header: call_header.CallHeader, job: Job) -> dict[str, Any]:
        if self._made is None:
            with undisturbed("sharedtask.backends.worker.making"):  # needed by few calls
                from .making import Table

            self._made = Table()
        self._made.close_due()
        values = self._values.value
        wanted = [(p.name, p.token, functools.partial(values, p.token)) for p in header.recipes]
        return self._made.values(header.task, wanted, None if header.retries else job.within)

    def _loop(self, job: Job, items: Sequence[Any], loaded: LoadedCall) -> None:
        """Run the items, in blocks that take some 0.1 ms or one item each."""
        words, call, header = self._words, loaded.call, loaded.header
        singly = header.timed or header.of_submits or job.singly
        if job.mode == call_header.EACH:
            call = functools.partial(calling.call_unpacked, call, words, header)
            items = [(job.first + k, item) for k, item in enumerate(items)]
        if loaded.guard is not None:
            call = loaded.guard.around(call)
        clock = self._outbox.clock
        if clock is not None:
            call = clock.around(call)
            clock.compute()
        context = ChunkContext(loaded.constants.variables, loaded.function)
        words[Word.PHASE] = Phase.RUNNING
        self._outbox.start_clock()
        # begin() has stored this chunk as the current one: see WorkerLink.take_back
        status_page.fence()
        at, size = 0, 1
        while at < len(items):
            if singly:
                words[Word.BEGUN] = at + 1
                status_page.fence()  # before the check of what the caller wants: see Pool.withdraw
            if job.poll_cancel():
                self._end_early(loaded.guard)
                return
            if header.of_submits and at:
                self._apply_settings(header, job)
            began = time.monotonic_ns()
            if singly:
                words[Word.STARTED] = began
            if not context.run(self._run_block, items[at : at + size], call, loaded):
                return
            at += size
            if not singly:
                size = _next_size(size, time.monotonic_ns() - began)

    def _check(self, job: Job, header: call_header.CallHeader, began: float) -> None:
        """Check the values that the items of a chunk shared; report a change to the caller."""
        if not (done := self._outbox.position):
            return
        if header.timed:
            self._start_anew(job)
        ended = time.monotonic()
        if self._outbox.clock is not None:
            self._outbox.clock.enter("check")
        items = job.first, job.first + done - 1
        change = self._watcher.check(header, job.call, items, ended - began)
        if change is not None:
            self._outbox.report_change(change)
        self._outbox.exclude(time.monotonic() - ended)

    def _end_early(self, guard: Guard | None) -> None:
        """Report a changed value as the outcome of the next item, which is not run."""
        error = None if guard is None else guard.end_early()
        if error is not None:
            self._outbox.add_error(error)

    def _run_block(
        self, block: Sequence[Any], call: Callable[[Any], Any], loaded: LoadedCall
    ) -> bool:
        """Run items without polling; False if the chunk ends here.

        Each line in this loop costs every item: 0.15 us in total besides the call. Each result is
        recorded before the next item is begun.
        """
        words, outbox = self._words, self._outbox
        kind, column, count = outbox.kind, outbox.column, words[Word.COUNT]
        for item in block:
            try:
                value = call(item)
            except BaseException as error:  # noqa: BLE001  a task may raise anything
                outbox.add_error(loaded.advised(error))
                if loaded.header.fail_fast:
                    return False
            else:
                if type(value) is kind:
                    try:
                        column[count] = value
                        count += 1
                        words[2] = count  # Word.COUNT
                        continue
                    except (ValueError, IndexError):  # too large for 64 bits, or the outbox is full
                        pass
                outbox.add(value)
            kind, column, count = outbox.kind, outbox.column, words[Word.COUNT]
        return True


def _enter(directory: str) -> None:
    """Change to the caller's directory, if it or an earlier task has changed to another."""
    try:
        present = os.getcwd()
    except OSError:  # it was removed, and another may bear its name now
        present = ""
    if present != directory:
        with contextlib.suppress(OSError):
            os.chdir(directory)


def begun_clock() -> ChunkClock:
    """The clock of a chunk that is traced: this process runs one at a time."""
    clock = _clock()
    clock.begin()
    return clock


@functools.cache
def _clock() -> ChunkClock:
    """A clock that notes the maps that the items make as well."""
    with undisturbed("sharedtask.backends.worker.chunk_clock"):  # needed by calls that are traced
        from .chunk_clock import ChunkClock
    with undisturbed("sharedtask.backends.worker.inner_calls"):
        from .inner_calls import InnerCalls

    return ChunkClock(inner=InnerCalls())


def _nothing() -> None:
    """No item has added anything."""


def _next_size(size: int, elapsed_ns: int) -> int:
    """Larger blocks while they are fast; one by one as soon as they are not."""
    if elapsed_ns > _SLOW_BLOCK_NS:
        return 1
    return min(2 * size, _LARGEST_BLOCK)
