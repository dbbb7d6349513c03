"""The backend of worker processes that loky starts: on systems without fork, and by name."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from loky import process_executor

from sharedtask.backends import encoding
from sharedtask.backends.base import Backend, Call, Concurrency, Session, Sink, Team
from sharedtask.backends.carried.handles import HandleLeases
from sharedtask.backends.carried.session import CarriedSession
from sharedtask.backends.leasing import header_of, lease_all
from sharedtask.backends.worker import envelope, process_settings
from sharedtask.errors import OptionsError
from sharedtask.serialization import codec
from sharedtask.store.cache import ShareCache
from sharedtask.store.handles import handle_cache
from sharedtask.system import critical_sections, ending, forks
from sharedtask.system.cpus import available_cpus
from sharedtask.system.ending import Step
from sharedtask.writing.handler import Reach, Stage

from . import files
from .dispatcher import Dispatcher
from .folder import Folder
from .work_items import OpenCall, WorkItem

if TYPE_CHECKING:
    from sharedtask.options import Options

# Round trip of a chunk.
_OVERHEAD_SECONDS = 0.001
_LARGEST_CHUNK = 12_000
_ORIGIN_BYTES = 6


class _Workers:
    """What lives as long as the workers do: their folder, the values, the dispatcher."""

    def __init__(self, backend: str) -> None:
        self._origin = os.urandom(_ORIGIN_BYTES)
        self.folder = folder = Folder()
        # Values that are only kept for reuse.
        self.cache = ShareCache(
            folder.limit(), self._wake, lambda payload: files.keep(payload, folder)
        )
        self.dispatcher = Dispatcher(backend, folder, self._sweep)
        self.handles = HandleLeases(self.cache, codec.encode_shared, self.dispatcher.note_release)

    def _wake(self) -> None:
        self.dispatcher.wake()

    def _sweep(self) -> bool:
        self.cache.sweep()
        handle_cache.sweep()
        return self.folder.sweep() or self.cache.needs_sweeping()

    def origin(self, generation: int) -> bytes:
        """The identity of the caller and the generation of its modules."""
        return self._origin + generation.to_bytes(2, "little")

    def close(self, reason: str) -> None:
        """Fail calls in flight, end the workers, remove the files."""
        self.dispatcher.end_and_wait(reason)
        self.cache.clear()
        self.folder.remove()


class LokyBackend(Backend):
    """Runs chunks in worker processes of loky."""

    name: ClassVar[str] = "loky"

    def __init__(self) -> None:
        self._lock = critical_sections.table_lock()
        self._made: _Workers | None = None
        _alive.add(self)
        forks.abandon_in_child(self)

    @property
    def workers(self) -> _Workers:
        """What there is, or else new."""
        with self._lock:
            if self._made is None:
                self._made = _Workers(self.name)
            return self._made

    def session(self, call: Call, sink: Sink) -> Session:
        return _LokySession(self, call, sink)

    @property
    def publications(self) -> ShareCache | None:
        known = self._made
        return None if known is None else known.cache

    def close(self) -> None:
        with self._lock:
            known, self._made = self._made, None
        if known is not None:
            known.close("sharedtask was shut down while this call was running. Call again.")

    def abandon(self) -> None:
        """In a forked child: workers, files and executors belong to the parent."""
        known, self._made = self._made, None
        if known is not None:
            known.folder.leave()
            _left.append(known)


class ProcessBackend(LokyBackend):
    """The same, as the worker processes of a system without fork."""

    name: ClassVar[str] = "process"


class _LokySession(CarriedSession["OpenCall"]):
    made = WorkItem

    def __init__(self, backend: LokyBackend, call: Call, sink: Sink) -> None:
        self._wanted = backend, call, sink
        self.handlers = call.handlers

    def open(self) -> None:
        backend, call, sink = self._wanted
        del self._wanted  # the caller's values may be freed while tasks run
        _refuse_missing(call.task, call.options, backend.name)
        cpus = available_cpus()
        workers = call.options.workers or cpus
        self.concurrency = Concurrency(workers, cpus, _OVERHEAD_SECONDS, _LARGEST_CHUNK)
        for handler in self.handlers:
            handler.open(Stage(call.task, Reach.APART, workers))
        known = backend.workers
        self._dispatcher = known.dispatcher
        here = process_settings.current()
        leases = lease_all(known.cache, call, here, self.lend, known.handles.lease)
        constants = encoding.pack_first(call, envelope.pack_attached, leases)
        for lease in leases.all:
            lease.publication.call_on_release(known.dispatcher.note_release)
        self.shares = leases.shares
        blas = call.inner_threads or (max(cpus // workers, 1) if here.limits_blas else 0)
        self._call = OpenCall(
            task=call.task,
            origin=known.origin(here.generation),
            header=header_of(call, leases, workers, blas, _working_directory()),
            constants=constants,
            leases=leases,
            limit=lambda: workers,
            timeout=call.options.timeout,
            splits=call.splits,
            report_soon=call.report_soon,
            adds=any(handler.comes_at_end for handler in self.handlers),
            fail_fast=call.fail_fast,
            sink=sink,
            team=call.team or Team(),
            pack_items=encoding.packer_of(call),
            trace=call.trace,
        )
        if call.trace is not None:
            call.trace.opened(leases, constants, workers)
        self._is_open = True


def _refuse_missing(task: str, options: Options, backend: str) -> None:
    """Refuse what the workers of loky do not have.

    Raises:
        OptionsError: One of these options was given.
    """
    for name in ("memory_limit", "tasks_per_worker"):
        if getattr(options, name) is not None:
            msg = (
                f"{task}(): {name}={getattr(options, name)!r} cannot be kept by backend={backend!r}"
                " here, whose workers loky starts. Leave it out, or run where there is fork."
            )
            raise OptionsError(msg)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _close_all() -> None:
    for backend in list(_alive):
        backend.close()


def _close_before_loky() -> None:
    """At exit loky waits for what runs. Registered after its own function, ours comes first.

    loky registers its own for each executor, which fails while the program ends and submits that
    are waited for begin. Once is enough.
    """
    if process_executor.process_pool_executor_at_exit is None:
        threading._register_atexit(process_executor._python_exit)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
        process_executor.process_pool_executor_at_exit = _close_before_loky
    ending.before_threads(Step.WORKERS, _close_all)


_alive: weakref.WeakSet[LokyBackend] = weakref.WeakSet()
_close_before_loky()
# Of the parent of this process: their finalizers would reach for its workers.
_left: list[Any] = []
