"""The process backend: shared memory, warm workers, one pool for all tasks of this process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from sharedtask.backends import encoding
from sharedtask.backends.base import Backend, Call, Chunk, Concurrency, Limits, Session, Sink
from sharedtask.backends.leased_session import LeasedSession
from sharedtask.backends.leasing import header_of, lease_all, still_sends
from sharedtask.backends.worker import envelope, process_settings
from sharedtask.backends.worker.envelope import Envelope
from sharedtask.backends.worker.limits import require_measurable
from sharedtask.errors import BackendUnavailableError, StoreFullError
from sharedtask.outcomes import Report
from sharedtask.store.cache import ShareCache
from sharedtask.store.handles import handle_cache, wake_callbacks
from sharedtask.system import critical_sections, forks
from sharedtask.system.cpus import available_cpus
from sharedtask.writing.handler import Reach, Stage

from . import work_items
from .connections import working_directory
from .pool import Pool
from .work_items import OpenCall

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from queue import SimpleQueue

    from sharedtask.backends.leasing import Leases
    from sharedtask.memory.payload import Payload


# The function of a session that stays open without work has at most so many bytes.
_LIGHT_BYTES = 1 << 16


class ProcessBackend(Backend):
    """Runs chunks in worker processes on this machine."""

    name: ClassVar[str] = "process"
    joins: ClassVar[bool] = True

    def __init__(self) -> None:
        if not hasattr(socket, "SCM_RIGHTS") or not hasattr(os, "fork"):
            msg = "backend='process' needs Unix sockets and fork. Use backend='thread' here."
            raise BackendUnavailableError(msg)
        self._cache = ShareCache(wake=self._wake)
        self._pool: Pool | None = None
        self._lock = critical_sections.table_lock()
        wake_callbacks.append(self._wake)
        _alive.add(self)
        forks.abandon_in_child(self)

    @property
    def pool(self) -> Pool:
        """The pool; started on demand, also after a loss of the last one."""
        with self._lock:
            if self._pool is None or not self._pool.is_whole():
                critical_sections.reserve_stack()
                self._pool = Pool(self._sweep)
            return self._pool

    def session(self, call: Call, sink: Sink) -> Session:
        return _ProcessSession(self, self._cache, call, sink)

    @property
    def publications(self) -> ShareCache:
        return self._cache

    def close(self, *, silent: bool = False) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(silent=silent)
        # Publications that an interrupted call left pinned are freed with the old cache.
        self._cache.clear()
        self._cache = ShareCache(wake=self._wake)
        handle_cache.sweep()  # of what was forgotten while the pool's thread ended

    def abandon(self) -> None:
        """In a forked child: drop the pool, whose workers belong to the parent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.abandon()
        self._cache = ShareCache(wake=self._wake)

    def _wake(self) -> bool:
        """Wake the pool's thread, which sweeps; False without a pool."""
        pool = self._pool
        if pool is None:
            return False
        pool.wake()
        return True

    def _sweep(self) -> bool:
        self._cache.sweep()
        handle_cache.sweep()
        return self._cache.needs_sweeping()


class _ProcessSession(LeasedSession["OpenCall"]):
    """One call: its shared values are leased until the last chunk is out of the workers."""

    _pool: Pool

    def __init__(self, backend: ProcessBackend, cache: ShareCache, call: Call, sink: Sink) -> None:
        self._wanted = backend, cache, call, sink
        self.handlers = call.handlers
        self._is_open = self._is_closed = False

    def open(self) -> None:
        backend, cache, call, sink = self._wanted
        del self._wanted  # the caller's values may be freed while tasks run
        self._owner, self._cache, self._pool = backend, cache, backend.pool
        cpus, options = available_cpus(), call.options
        if options.memory_limit is not None:
            require_measurable()
        workers = options.workers or cpus
        self.concurrency = _concurrency(workers, cpus, options.tasks_per_worker)
        slot_table = None
        for handler in self.handlers:
            handler.open(Stage(call.task, Reach.MACHINE, workers))
            slot_table = slot_table or handler.slot_table
        here = self._settings = process_settings.current()
        self._place = working_directory(), cpus
        self._pool.renew(here.generation)
        leases = lease_all(cache, call, here, self.lend)
        constants = encoding.pack_first(call, _pack_frozen, leases)
        self.shares = leases.shares
        # BLAS threads for each worker: its share of the cores, unless the user has decided.
        blas = call.inner_threads or (max(cpus // workers, 1) if here.limits_blas else 0)
        self._call = OpenCall(
            task=call.task,
            header=header_of(call, leases, workers, blas, self._place[0]),
            constants=constants,
            leases=leases,
            needs=leases.needs,
            limit=workers,
            timeout=options.timeout,
            limits=Limits.of(options),
            splits=call.splits,
            function=call.function,
            sink=sink,
            slot_table=slot_table,
            users={} if call.team is None else call.team.chunks,
            pack_items=encoding.packer_of(call),
            trace=call.trace,
        )
        if call.trace is not None:
            call.trace.opened(leases, constants, workers)
        self._is_open = True

    def serves(self, call: Call) -> bool:
        known = self._call
        return (
            process_settings.current() is self._settings
            and still_sends(self._cache, call, known.leases)
            and (working_directory(), available_cpus()) == self._place
            and _packed(call, known.leases) == known.constants.data
            and self._owner.pool is self._pool
        )

    @property
    def is_light(self) -> bool:
        leases = self._call.leases
        if leases.shared or leases.captures.leases or self._call.constants.file is not None:
            return False
        return leases.function.publication.nbytes < _LIGHT_BYTES

    def withdraw(self, chunk: int) -> int:
        return self._pool.withdraw(self._call, chunk)

    def kill_chunk(self, chunk: int) -> None:
        self._pool.kill_chunk(self._call, chunk)

    def submit(self, chunk: Chunk) -> None:
        try:
            work_item = work_items.encode(self._call, chunk)
        except StoreFullError as full:
            small = self._without_large(chunk, full)
            if small is None:
                return
            work_item = small
        except Exception:  # noqa: BLE001  pickling runs user code
            work_item = work_items.encode_each(self._call, chunk)
        self._pool.dispatch(work_item)

    def _without_large(self, chunk: Chunk, full: StoreFullError) -> work_items.WorkItem | None:
        """The chunk without its large items; None if the rest does not fit either."""
        try:
            return work_items.encode_small(self._call, chunk, full)
        except StoreFullError as error:
            still = error
        nothing = work_items.WorkItem(self._call, chunk, 0, Envelope(b""))
        self._report(nothing.all_failed(lambda _: still))
        return None

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        return self._pool.wait(reports, until, leaves=leaves)

    def soon(self, call: Callable[[], object]) -> None:
        self._pool.soon(call)

    def leave(self, *, at_once: bool = False) -> None:
        self._pool.attend(at_once=at_once)

    def wake(self) -> None:
        if self._is_open:
            self._pool.wake()

    def _report(self, report: Report) -> None:
        self._call.sink.report(report)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        gave_up = self._is_open and self._give_up()
        logs = self._call.logs if self._is_open else None
        if logs is not None and logs.is_open:
            self._pool.left_logs.append(logs)
            self._pool.wake()
        for handler in self.handlers:
            handler.close(entered=self._is_open and self._call.entered, gave_up=gave_up)

    def kill(self) -> None:
        if self._is_open and not self._is_closed:
            self._pool.kill(self._call)
        self.close()

    def _give_up(self) -> bool:
        """Give up the chunks; returns whether any were in flight."""
        call = self._call
        call.closed = True
        if self._pool.is_busy():
            self._pool.attend()
        if not call.pending:
            call.release()
            return False
        self._pool.give_up(call)
        return True


@functools.lru_cache(maxsize=32)
def _concurrency(workers: int, cpus: int, items: int | None) -> Concurrency:
    """The concurrency of a call; no chunk has more than the ``items`` that a worker may run."""
    concurrency = Concurrency(workers, cpus)
    return (
        concurrency
        if items is None
        else Concurrency(workers, cpus, largest=min(items, concurrency.largest))
    )


def _packed(call: Call, leases: Leases) -> bytes:
    """What the arguments of a call are sent as, if they are small."""
    return encoding.pack_constants(call, envelope.pack_inline, leases.captures).data


def _pack_frozen(payload: Payload) -> Envelope:
    return envelope.pack(payload, frozen=True)


# ------------------------------------------------------------------------------------- end

_alive: weakref.WeakSet[ProcessBackend] = weakref.WeakSet()


def _close_all() -> None:
    """At exit. Threads that still wait are daemons, which the interpreter stops silently."""
    with _interrupt_ignored():
        for backend in list(_alive):
            backend.close(silent=True)


@contextlib.contextmanager
def _interrupt_ignored() -> Generator[None]:
    """Ignore Ctrl-C at exit: the program is ending already, and this takes some milliseconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


atexit.register(_close_all)
