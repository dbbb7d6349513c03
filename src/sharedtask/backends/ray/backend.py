"""The Ray backend: the same tasks on a Ray cluster, or on a local Ray."""

from __future__ import annotations

import atexit
import functools
import os
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

import ray

from sharedtask.annotations import Role
from sharedtask.backends import encoding
from sharedtask.backends.base import Backend, Call, Concurrency, Session, Sink, Team
from sharedtask.backends.carried.handles import HandleLeases
from sharedtask.backends.carried.session import CarriedSession
from sharedtask.backends.leasing import header_of, lease_all
from sharedtask.backends.worker import envelope, process_settings
from sharedtask.serialization import codec, functions
from sharedtask.store.cache import ShareCache
from sharedtask.store.handles import Handle, handle_cache
from sharedtask.system import critical_sections, forks
from sharedtask.writing.handler import Reach, Stage

from . import runtime, status_file, store, worker
from .dispatcher import Dispatcher
from .runtime import Capacity, Runtime
from .work_items import OpenCall, WorkItem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from queue import SimpleQueue

    from sharedtask.backends.leasing import Leases
    from sharedtask.memory.payload import Payload

# Round trip of a task.
_OVERHEAD_SECONDS = 0.004
# Ray returns less than 100 kB inside the answer, and more through the object store: results of this
# many numbers are below that.
_LARGEST_CHUNK = 12_000
# Chunks given to Ray per worker, if Ray itself limits how many run at a time.
_AHEAD = 3
_LOOK_SECONDS = 0.05


class Connection:
    """The state of one connection to Ray."""

    def __init__(self, runtime_: Runtime) -> None:
        self.runtime = runtime_
        self._origin = os.urandom(worker.ORIGIN_BYTES)
        self.capacity = Capacity()
        # Values that are only kept for reuse may take half of the object store.
        limit = runtime.store_memory() // 2
        self.cache = ShareCache(limit, self._wake, store.keep)
        self.dispatcher = Dispatcher(self._sweep)
        self.handles = HandleLeases(self.cache, self.encode, self.dispatcher.note_release)
        self._plain: Any = ray.remote(max_retries=0)(worker.run_chunk)
        self._remotes: dict[Any, Any] = {}
        environment: Any = ray.get_runtime_context().runtime_env
        self.moves = not environment.get("working_dir")

    def _wake(self) -> None:
        self.dispatcher.wake()

    def _sweep(self) -> bool:
        self.cache.sweep()
        handle_cache.sweep()
        return self.cache.needs_sweeping()

    def origin(self, generation: int) -> bytes:
        """The identity of the caller and the generation of its modules."""
        return self._origin + generation.to_bytes(2, "little")

    def remote(self, task: str, options: Mapping[str, Any]) -> Any:
        """The Ray task for chunks of this call. Ray's own retries are off."""
        key = task, tuple(sorted((name, repr(value)) for name, value in options.items()))
        if key not in self._remotes:
            self._remotes[key] = self._plain.options(**{"name": task, **options})
        return self._remotes[key]

    def directory_for(self, options: Mapping[str, Any]) -> str:
        """The directory in which tasks with these options run; "" for that of the Ray worker."""
        environment = options.get("runtime_env") or {}
        moves = self.moves and not environment.get("working_dir")
        return _working_directory() if moves else ""

    def encode(self, value: Any) -> Payload:
        """Encode a value; a mapped file is reopened in workers only if it is the same file."""
        return codec.encode(value, by_path=len(self.capacity.nodes()) == 1)

    def watch_releases(self, leases: Leases) -> None:
        """Have workers drop each value of a call when its last use has ended."""
        for lease in leases.all:
            lease.publication.call_on_release(self.dispatcher.note_release)
        for parameter, lease in zip(leases.parameters, leases.shared, strict=True):
            if parameter.role is Role.PER_WORKER:
                lease.publication.call_on_release(self.note_recipe_release)

    def note_recipe_release(self, token: int) -> None:
        """A recipe is over: workers of this node learn it soon, others with their next chunk."""
        status_file.note_release(self._origin, token)

    def close(self, reason: str) -> None:
        """Fail calls in flight and drop every reference."""
        self.dispatcher.end(reason)
        self.cache.clear()


class RayBackend(Backend):
    """Runs chunks as Ray tasks."""

    name: ClassVar[str] = "ray"

    def __init__(self) -> None:
        self._lock = critical_sections.table_lock()
        self._connection: Connection | None = None
        _alive.add(self)
        forks.abandon_in_child(self)

    def connect(self) -> Connection:
        """The connection; a new one if Ray was shut down or restarted since."""
        with self._lock:
            known = self._connection
            if known is not None and known.runtime.is_alive:
                return known
            if known is not None:
                known.close(_RECONNECTED)
            self._connection = Connection(runtime.connect())
            return self._connection

    @property
    def started_its_runtime(self) -> bool:
        """See ``Backend``."""
        known = self._connection
        return known is not None and known.runtime.is_ours and known.runtime.is_alive

    def session(self, call: Call, sink: Sink) -> Session:
        return _RaySession(self, call, sink)

    @property
    def publications(self) -> ShareCache | None:
        known = self._connection
        return None if known is None else known.cache

    def close(self) -> None:
        with self._lock:
            known, self._connection = self._connection, None
        if known is not None:
            known.close("sharedtask was shut down while this call was running. Call again.")
            runtime.stop(known.runtime)

    def abandon(self) -> None:
        """In a forked child: the connection belongs to the parent."""
        self._connection = None


class _RaySession(CarriedSession["OpenCall"]):
    made = WorkItem

    def __init__(self, backend: RayBackend, call: Call, sink: Sink) -> None:
        self._wanted = backend, call, sink
        self.handlers = call.handlers

    def open(self) -> None:
        backend, call, sink = self._wanted
        del self._wanted  # the caller's values may be freed while tasks run
        connection, options = backend.connect(), call.options.ray_options or {}
        self._prepare(connection, call, options)
        remote, there = connection.remote(call.task, options), process_settings.current(here=False)
        leases = lease_all(
            connection.cache, call, there, self.lend, connection.handles.lease, connection.encode
        )
        constants = encoding.pack_first(call, envelope.pack_attached, leases)
        connection.watch_releases(leases)
        self.shares = leases.shares
        self._call = OpenCall(
            task=call.task,
            runtime=connection.runtime,
            origin=connection.origin(there.generation),
            remote=remote,
            # Ray gives each worker its share of BLAS threads.
            header=header_of(
                call, leases, self.concurrency.workers, 0, connection.directory_for(options)
            ),
            constants=constants,
            leases=leases,
            again=_encoders(call, leases, connection, self.lend),
            limit=functools.partial(_limit, connection.capacity, options, call.options.workers),
            alive_nodes=connection.capacity.alive,
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
            call.trace.opened(leases, constants, self.concurrency.workers)
        self._is_open = True

    def _prepare(self, connection: Connection, call: Call, options: Mapping[str, Any]) -> None:
        capacity = connection.capacity
        capacity.require(call.task, options, connection.runtime)
        self.concurrency = _concurrency(capacity, options, call.options.workers)
        self._dispatcher = dispatcher = connection.dispatcher
        self._in_flight, self._runtime = dispatcher.in_flight, connection.runtime
        for handler in self.handlers:
            handler.open(Stage(call.task, Reach.CLUSTER, self.concurrency.workers))

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        """See ``Session.wait``. Inside a user's Ray task, Ray gets the CPU back meanwhile."""
        if not self._runtime.in_worker:
            return super().wait(reports, until, leaves=leaves)
        while reports.empty() and (until is None or monotonic() < until):
            refs = self._in_flight()
            if refs:
                ray.wait(refs, timeout=_LOOK_SECONDS, fetch_local=False)
            found = super().wait(reports, monotonic() + _LOOK_SECONDS, leaves=leaves)
            if found is not None:
                return found
        return super().wait(reports, monotonic(), leaves=leaves)


def _concurrency(
    capacity: Capacity, options: Mapping[str, Any], workers: int | None
) -> Concurrency:
    cpus = max(capacity.slots(options), 1)
    return Concurrency(workers or cpus, cpus, _OVERHEAD_SECONDS, _LARGEST_CHUNK)


def _limit(capacity: Capacity, options: Mapping[str, Any], workers: int | None) -> int:
    """The number of chunks of a call that Ray may have at a time."""
    slots = capacity.slots(options)
    if workers is None:  # as many as the cluster can run, which may grow
        return max(slots, 1) * _AHEAD
    return workers if slots > workers else workers * _AHEAD


def _encoders(
    call: Call, leases: Any, connection: Connection, lend: Callable[[str], Any]
) -> dict[int, Callable[[], Payload]]:
    """Functions that encode each payload again, if Ray loses it."""

    def encoder(name: str) -> Callable[[], Payload]:
        value = call.shared[name].value
        if call.shared[name].role.writes:  # without blocks that were returned since
            return lambda: codec.encode(lend(name))
        if isinstance(value, Handle):
            publication = value.publication
            return lambda: connection.handles.payload_of(publication)
        return lambda: connection.encode(value)

    of_shared = {p.token: encoder(p.name) for p in leases.parameters}
    of_captured = {
        lease.publication.token: functools.partial(_encoded_again, connection, reference)
        for lease, reference in leases.captures.arrays()
    }
    function = leases.function.publication
    sent = functions.portable(call.function)
    encode = leases.captures.encoder(by_value=sent.by_value)
    return {function.token: lambda: encode(sent.value), **of_shared, **of_captured}


def _encoded_again(connection: Connection, reference: Callable[[], Any]) -> Payload:
    """Encode a captured array again; an empty one if it was freed, as no task can use it."""
    return connection.encode(reference())


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


_RECONNECTED = "Ray was shut down and restarted while this call was running."

_alive: weakref.WeakSet[RayBackend] = weakref.WeakSet()


def _close_all() -> None:
    for backend in list(_alive):
        backend.close()


atexit.register(_close_all)
