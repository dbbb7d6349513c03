"""The interface that every backend implements, and the messages that pass through it.

A backend makes a session of a call, which is then *opened*; chunks of items are *submitted* to it,
and reports of them arrive at the sink in any order, from any thread. ``task/run.py`` knows
nothing else of a backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from queue import Empty
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sharedtask.annotations import Role
from sharedtask.recipes import INITIALIZER, Slots
from sharedtask.serialization.traversal import captured
from sharedtask.system import interrupts
from sharedtask.system.records import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from queue import SimpleQueue

    import numpy.typing as npt

    from sharedtask.backends.worker.randomness import Randomness
    from sharedtask.options import Options
    from sharedtask.outcomes import Batch, Change, Report
    from sharedtask.store.cache import ShareCache
    from sharedtask.writing.handler import Handler


@dataclass(frozen=True, slots=True)
class SharedValue:
    """A value to share with the workers, and the role of its parameter."""

    value: Any
    role: Role


def with_initializer(shared: Mapping[str, SharedValue], options: Options) -> Mapping[str, Any]:
    """What a call shares, with what each worker calls before its first item."""
    if options.initializer is None:
        return shared
    return {INITIALIZER: SharedValue(options.initializer, Role.PER_WORKER), **shared}


# See ``Call.report_soon``.
REPORT_SOON_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use before it is replaced; None for no limit.

    ``memory`` is its private memory in bytes, ``items`` how many it runs.
    """

    memory: int | None
    items: int | None

    @classmethod
    def of(cls, options: Options) -> Limits | None:
        """The limits, or None if there are none."""
        memory, items = options.memory_limit, options.tasks_per_worker
        return None if memory is None and items is None else cls(memory, items)


@dataclass(eq=False, slots=True)
class Team:
    """Calls that share their limit: ``workers`` of a call is the limit for all of them together.

    ``chunks`` counts those that each worker has. The backend's own lock guards it.
    """

    chunks: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a task: ``function(*bound, item, *args, **kwargs, **shared)`` for every item.

    ``options`` are what the user decided. ``bound_name`` is the name in ``shared`` under which the
    bound object itself is shared, and ``star`` says that every item is unpacked into positional
    arguments. Captured arrays of at least ``capture_from`` bytes are shared.

    ``handlers`` are those of the arrays that tasks write. If the order of the items counts,
    ``block`` of them are sent and combined together. ``randomness`` makes generators for each item,
    if a parameter asks for one. If ``uncopied``, tasks that run in the caller get the caller's own
    unmarked objects.

    Calls of one ``team`` share their limit of workers. If ``of_submits``, each item is a submit of
    its own, and ``Session.withdraw`` may be asked for the rest of a chunk.
    ``inner_threads`` is the number of numerical libraries' threads in a worker; None: its share
    of the CPUs. ``slots`` are those of the task: what its workers have made belongs to them.
    If ``apart``, no two items have an object in common that one of them may change.
    ``trace`` records what becomes of it: see ``tracing/call_trace.py``.
    """

    task: str
    function: Callable[..., Any]
    bound: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shared: Mapping[str, SharedValue]
    options: Options
    bound_name: str | None
    handlers: Sequence[Handler]
    randomness: Randomness | None
    block: int | None
    star: bool
    capture_from: int | None
    uncopied: bool
    slots: Slots = field(default_factory=Slots)
    team: Team | None = None
    inner_threads: int | None = None
    of_submits: bool = False
    apart: bool = False
    trace: Any = None

    @property
    def fail_fast(self) -> bool:
        """Whether no further item of a chunk is begun after one that raised."""
        return not (self.options.return_exceptions or self.options.retries or self.of_submits)

    @property
    def splits(self) -> bool:
        """Whether a chunk may be ended early to give its rest to idle workers.

        If tasks are watched, the last item of a chunk must be known when it runs.
        """
        is_auto = self.options.chunksize == "auto" or self.of_submits
        return is_auto and self.options.strict is not True

    @property
    def report_soon(self) -> bool:
        """Whether results are reported within ``REPORT_SOON_SECONDS``: they survive the caller."""
        return self.options.journal is not None

    def unmarked(self) -> Iterator[tuple[str, Any]]:
        """What every item gets that is not marked, by the words for it in messages."""
        yield from self.kwargs.items()
        yield from ((f"argument {k + 1}", value) for k, value in enumerate(self.args))
        yield from (("self", value) for value in self.bound)

    def named(self) -> Iterator[tuple[str, Any]]:
        """All that a call brings along: what is marked, what is not, what the function captures."""
        yield from ((name, value.value) for name, value in self.shared.items())
        yield from self.unmarked()
        if isinstance(self.function, FunctionType):
            yield from ((f"{how} {name}", v) for how, name, v in captured(self.function))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive items; ``number`` is unique within the session."""

    number: int
    first: int
    items: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Concurrency:
    """The concurrency of a call: workers, CPUs, and seconds to a worker and back.

    ``largest`` is the maximum of items in a chunk.
    """

    workers: int
    cpus: int
    overhead: float = 0.0001
    largest: int = 1 << 14


@dataclass(frozen=True, slots=True)
class Share:
    """How a shared value of a call reached the workers: ``token`` names its publication."""

    name: str
    token: int
    hit: bool


class Sink(Protocol):
    """Receives what a session reports."""

    def begun(self, chunk: int) -> bool:
        """Called just before a chunk is handed to a worker; False takes it back."""
        ...

    def report(self, report: Report) -> None:
        """Called with outcomes, by any thread; runs no user code and does not block."""


FORKED = "this call was begun in the process that was forked, and its workers are there."


class Session(ABC):
    """A call.

    It is made by one step and opened by another, so that an interrupt between any two instructions
    finds either nothing opened, or a session that can be closed. ``concurrency`` says how many
    chunks run at a time, and how large they should be. ``handlers`` are those of the call.
    """

    handlers: Sequence[Handler] = ()
    shares: Sequence[Share] = ()
    concurrency = Concurrency(1, 1)
    trace: Any = None

    @abstractmethod
    def open(self) -> None:
        """Publish the shared values and prepare to run. ``close`` follows, also after an error.

        Raises:
            UnshareableError: A shared value cannot be encoded.
            SerializationError: The function, or a value that every item gets, cannot be encoded.
            StoreFullError: A shared value does not fit.
        """

    def lend(self, name: str) -> Any:
        """What workers get for a parameter that tasks write."""
        return next(handler for handler in self.handlers if name in handler.names).lend(name)

    @abstractmethod
    def submit(self, chunk: Chunk) -> None:
        """Accept a chunk, and report its outcomes later. A bad item raises nothing here.

        The thread that submits calls ``wait`` at once, or else ``leave``.
        """

    def leave(self, *, at_once: bool = False) -> None:
        """Keep submitted chunks running while this thread does other things.

        ``at_once`` if a waiter exists that calls no method of this session.
        """

    def soon(self, call: Callable[[], object]) -> None:
        """Call this in some milliseconds, in a thread that serves the workers.

        Also if the backend ends before that. It may ``submit``, but not run user code.
        """
        del call
        raise NotImplementedError  # asked only of a backend that ``joins``

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        """The next report from the queue that the sink fills; None at the time ``until``.

        A backend may use the waiting thread for its own work. ``leaves`` says that the thread goes
        on to other things than the next ``wait``.
        """
        del leaves
        try:
            return interrupts.next_of(reports, until)
        except Empty:
            return None

    def wake(self) -> None:
        """Wake the thread in ``wait`` to check the queue again."""

    def serves(self, call: Call) -> bool:
        """Whether the items of ``call``, a call of the same task, may run in this open session.

        They may if a session that is opened now would give workers the same.
        """
        del call
        return False

    @property
    def is_light(self) -> bool:
        """Whether it may stay open without work: it keeps no memory that anyone would miss."""
        return False

    def withdraw(self, chunk: int) -> int:
        """End a chunk of submits early; the others of its items are not begun any more.

        Returns:
            How many of its items may have begun. If that is 0, no report of it follows.
        """
        raise NotImplementedError  # asked only of a backend that ``joins``, like the next

    def kill_chunk(self, chunk: int) -> None:
        """Kill the worker of a chunk, unless the chunk is over; its end is reported."""
        raise NotImplementedError

    def accept(self, batch: Batch) -> None:
        """Called with results of a call whose tasks write, by the thread that asked for them.

        On return the caller's arrays contain the blocks of these items.
        """
        for handler in self.handlers:
            handler.accept(batch)

    def conclude(self) -> Change | None:
        """Called after the last report: handles what tasks have logged and no report brought.

        Returns:
            A change of a shared value that none has told.
        """
        return None

    def finish(self) -> None:
        """Called at the end of a call that succeeded: completes the caller's totals."""
        for handler in self.handlers:
            handler.finish()

    @abstractmethod
    def fingerprints(self, shared: Mapping[str, SharedValue]) -> dict[str, bytes]:
        """Digests of these values, which the session shares, by their contents."""

    def fingerprint_of(self, array: npt.NDArray[Any]) -> bytes | None:
        """The digest of an array's bytes, where the session knows it."""
        del array
        return None

    @abstractmethod
    def close(self) -> None:
        """End the call. Unfinished chunks are given up; late reports may still come.

        The caller's arrays belong to the caller from then on. Sessions that were not opened, or
        only in part, can be closed as well; idempotent. May run in a finalizer, at any moment: with
        chunks in flight it takes no lock.
        """

    def kill(self) -> None:
        """End the call and kill its running chunks, if the backend can.

        Waits a moment for their end, so that nothing is written after it returns.
        """
        self.close()


class _ClosedSession(Session):
    """Replaces a session that was closed.

    A session and its run refer to each other. Without the replacement, this cycle would keep the
    arrays of the call until a garbage collection.
    """

    def open(self) -> None:
        """A closed session cannot be opened again."""

    def submit(self, chunk: Chunk) -> None:
        """Ignore the chunk."""

    def soon(self, call: Callable[[], object]) -> None:
        """Nothing is left to do."""

    def fingerprints(self, shared: Mapping[str, SharedValue]) -> dict[str, bytes]:
        """Nothing is shared."""
        del shared
        return {}

    def close(self) -> None:
        """Idempotent."""


CLOSED_SESSION = _ClosedSession()


class Backend(ABC):
    """A place where tasks run."""

    name: ClassVar[str]
    in_caller: ClassVar[bool] = False
    """Whether ``submit`` runs the chunk at once, in the thread that calls it."""

    joins: ClassVar[bool] = False
    """Whether submits may share a session: see ``Session.serves``."""

    @property
    def started_its_runtime(self) -> bool:
        """Whether the backend started its runtime, rather than found it running."""
        return False

    @abstractmethod
    def session(self, call: Call, sink: Sink) -> Session:
        """A session that is not open yet."""

    @property
    def publications(self) -> ShareCache | None:
        """What it keeps for later calls, None if there is nothing. A look starts no workers."""
        return None

    def stored(self, tokens: Iterable[int]) -> list[int]:
        """The sizes in bytes of those publications that a later call could use again."""
        cache, wanted = self.publications, set(tokens)
        known = [] if cache is None else cache.publications()
        return [p.nbytes for p in known if p.token in wanted]

    def forget(self, tokens: Iterable[int]) -> None:
        """Release these publications."""
        cache = self.publications
        if cache is not None:
            cache.forget(tokens)

    def limit(self) -> int:
        """How many bytes the publications of all tasks may take together."""
        cache = self.publications
        return 0 if cache is None else cache.limit

    @abstractmethod
    def close(self) -> None:
        """End the workers and free all memory."""
