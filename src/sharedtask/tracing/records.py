"""The records of a trace, all frozen.

Times are seconds since the start of the trace, durations are seconds, sizes are bytes. Calls,
workers and chunks are numbered within the trace, each from 0 up. Lists of chunks, decodings,
items, events and samples are bounded: ``Recorded.dropped`` says how many were left out. Counts and
totals, in ``Call`` and ``Worker``, include what was left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from sharedtask.system.records import dataclass, field

CallerPhase: TypeAlias = Literal[
    "check",  # check of the arguments, and the plan of the call
    "compare",  # shared values compared with what is published
    "encode",  # values, the function, arguments and items pickled
    "store",  # bytes written to shared memory
    "start",  # workers started
    "items",  # the caller's iterator of items
    "dispatch",  # chunks given to workers
    "wait",  # nothing to do until a worker reports
    "results",  # results decoded and put in place
    "caller",  # the caller's own code between two results
    "other",  # the rest: keeping books, closing
]
WorkerPhase: TypeAlias = Literal[
    "start",  # from the start of the process until it is ready
    "decode",  # function, arguments and shared values attached and decoded
    "unpack",  # items of a chunk decoded
    "set up",  # what the worker makes for itself before its first item
    "compute",  # the items' own code, without the waits for locks
    "lock",  # waits for locks of shared arrays
    "check",  # shared values checked for changes
    "report",  # results encoded and sent
    "starved",  # no chunk there, since the caller was busy with items, encoding or its own code
    "wait",  # no chunk there for another reason: none was left, or others were slower
    "idle",  # no call was open
]
Outcome: TypeAlias = Literal["done", "died", "timeout", "given up", "running"]
EventKind: TypeAlias = Literal[
    "start",  # a worker is ready
    "end",  # a worker was ended in the ordinary way
    "death",  # a worker died
    "recycled",  # a worker was replaced on purpose: ``text`` says why
    "timeout",  # an item took longer than its limit
    "retry",  # an item is run again
    "error",  # an item raised
    "evicted",  # a published value was released for want of room
]
Miss: TypeAlias = Literal["", "new", "changed", "evicted", "dead", "uncached"]
"""Why a call stored a shared value; "" if it did not.

"dead": in an earlier call of the task the same parameter had another object, which is gone or was
replaced. "uncached": its role or backend publishes each time.
"""
Travel: TypeAlias = Literal["shared", "message", "beside", "in place", "none"]


@dataclass(frozen=True, slots=True)
class Value:
    """A value that was sent with a call.

    Attributes:
        name: The parameter, "argument 1", "self", "function", or what the function captures.
        kind: The name of its type.
        nbytes: Its bytes as sent, pickle and buffers.
        marked: Whether it is shared; other values are sent with the call or with each chunk.
        hit: Whether workers had it from an earlier call.
        miss: Why it was stored; "" for a hit and for an unmarked value.
        travel: How it reached workers: through shared memory; inside messages; beside
            messages, in memory that each chunk opens; in place, without a copy; or not at all
            ("none"), since tasks run in this process. Large arrays in unmarked values are stored
            separately, in shared memory.
        sent: How many chunks it was sent with; each decodes it.
        compare: Seconds of comparing it with the published value.
        encode: Seconds of pickling it.
        store: Seconds of writing it to shared memory.
        same_object: Whether the previous call of the task had the same object here; None in its
            first.
    """

    name: str
    kind: str
    nbytes: int
    marked: bool
    hit: bool = False
    miss: Miss = ""
    travel: Travel = "message"
    sent: int = 0
    compare: float = 0.0
    encode: float = 0.0
    store: float = 0.0
    same_object: bool | None = None

    @property
    def store_rate(self) -> float:
        """Bytes per second of storing it, 0 if it was not stored."""
        return self.nbytes / self.store if self.store else 0.0


@dataclass(frozen=True, slots=True)
class Decoding:
    """A worker decoded a function or a value.

    Attributes:
        call: The number of the call.
        worker: The number of the worker.
        name: As ``Value.name``.
        start: When it began.
        stop: When it ended.
        nbytes: Bytes of the pickle, which are decoded; arrays outside of it are mapped.
        mapped: Bytes that were mapped without a copy.
        objects: About how many Python objects decoding created; 0 if not counted.
    """

    call: int
    worker: int
    name: str
    start: float
    stop: float
    nbytes: int = 0
    mapped: int = 0
    objects: int = 0

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Times:
    """The distribution of durations. Median and p95 are those of a sample if there are many."""

    count: int = 0
    total: float = 0.0
    min: float = 0.0
    median: float = 0.0
    p95: float = 0.0
    max: float = 0.0

    @property
    def mean(self) -> float:
        """The mean, 0 without any."""
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Item:
    """One item as it was run.

    Attributes:
        call: The number of the call.
        index: Its index in the call.
        worker: The number of the worker, -1 if not known.
        start: When it began.
        stop: When it ended.
        text: A short repr of the slowest items of a call; "" for the others.
    """

    call: int
    index: int
    worker: int
    start: float
    stop: float
    text: str = ""

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of a chunk or of a call."""

    phase: str
    start: float
    stop: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive items that were sent to a worker together.

    Attributes:
        number: Its number.
        call: The number of the call.
        worker: The number of the worker; -1 if no worker got it.
        first: The index of its first item.
        count: How many items were run.
        sent: When the caller sent it to the worker.
        start: When the worker took it.
        stop: When the worker had reported it.
        received: When the caller had its results.
        spans: The phases between ``start`` and ``stop``, in order, without gaps.
        times: The items' own times.
        bytes_out: Bytes of the items as they were sent.
        bytes_back: Bytes of the results.
        by_message_out: The part of ``bytes_out`` that was sent inside messages.
        by_message_back: The part of ``bytes_back`` that came inside messages.
        outcome: How it ended. "running" if the trace ended first.
        cpu: CPU seconds of its items, in all threads of the worker.
    """

    number: int
    call: int
    worker: int
    first: int
    count: int
    sent: float
    start: float
    stop: float
    received: float
    spans: tuple[Span, ...] = ()
    times: Times = field(default_factory=Times)
    bytes_out: int = 0
    bytes_back: int = 0
    by_message_out: int = 0
    by_message_back: int = 0
    outcome: Outcome = "done"
    cpu: float = 0.0

    @property
    def seconds(self) -> float:
        """How long the worker had it."""
        return self.stop - self.start

    def phases(self) -> dict[str, float]:
        """Seconds by phase."""
        return summed(self.spans)


@dataclass(frozen=True, slots=True)
class Call:
    """A map, a submit, or a batch of another library.

    Attributes:
        number: Its number.
        task: The name of the task.
        method: "map", "imap", "map_into", "submit", "executor", "joblib" and so on.
        backend: The name of the backend.
        place: "file:line" of the caller, "" if not known.
        parent: The number of the worker whose task made the call; None in the traced process.
        thread: The name of the caller's thread.
        start: When it began.
        stop: When it ended; the end of the trace if it was still open.
        workers: The maximum number of workers that it may use.
        cpus: The CPUs that this process may use.
        chunksize: The option, "auto" or a number.
        phases: Seconds of the caller's thread by ``CallerPhase``; their sum is ``stop - start``.
        values: The values that were sent with it.
        chunks: How many chunks were run.
        items: How many items were run, retries included.
        times: The items' own times.
        slowest: Up to five items, the slowest first.
        bytes_out: Bytes of the items as they were sent.
        bytes_back: Bytes of the results.
        by_message: Bytes that were sent inside messages, in both directions.
        by_memory: Bytes that were sent through shared memory, in both directions.
        uncopied: Bytes that workers used without a copy: hits, and values in place.
        order_wait: Seconds that finished results waited for an earlier one.
        lock_wait: Seconds that items waited for locks.
        retries: How many items were run again.
        deaths: How many workers died while they had its chunks.
        timeouts: How many items took too long.
        errors: How many items raised.
        finished: Whether it had ended when the trace did.
        options: Options that were set for it, by name, as text.
        cpu: The sum of ``Chunk.cpu``.
        cpu_beside: The part of ``cpu`` in other threads of the workers, such as those of
            BLAS; 0 on threads, where it is not known.
        threads: The highest number of threads of a worker, if threads of libraries computed; else
            1.
        core_wait: About how many seconds items waited for a core, because workers outnumber cores.
    """

    number: int
    task: str
    method: str
    backend: str
    place: str = ""
    parent: int | None = None
    thread: str = "MainThread"
    start: float = 0.0
    stop: float = 0.0
    workers: int = 1
    cpus: int = 1
    chunksize: str = "auto"
    phases: Mapping[str, float] = field(default_factory=dict)
    values: tuple[Value, ...] = ()
    chunks: int = 0
    items: int = 0
    times: Times = field(default_factory=Times)
    slowest: tuple[Item, ...] = ()
    bytes_out: int = 0
    bytes_back: int = 0
    by_message: int = 0
    by_memory: int = 0
    uncopied: int = 0
    order_wait: float = 0.0
    lock_wait: float = 0.0
    retries: int = 0
    deaths: int = 0
    timeouts: int = 0
    errors: int = 0
    finished: bool = True
    options: Mapping[str, str] = field(default_factory=dict)
    cpu: float = 0.0
    cpu_beside: float = 0.0
    threads: int = 1
    core_wait: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start

    @property
    def speedup(self) -> float:
        """The sum of the items' own times, divided by the time of the call."""
        return self.times.total / self.seconds if self.seconds else 0.0

    @property
    def busy_threads(self) -> float:
        """About how many threads of a worker computed at once; 1 without threads of libraries."""
        own = self.cpu - self.cpu_beside
        return min(self.cpu / own, self.threads) if own > 0 else 1.0

    @property
    def efficiency(self) -> float:
        """The speed-up, divided by the number of workers that can run at once; 1 is the maximum."""
        return self.speedup / max(min(self.workers, self.cpus), 1)


@dataclass(frozen=True, slots=True)
class Worker:
    """A process or thread that ran items.

    Attributes:
        number: Its number; 0 is a worker, not the caller.
        backend: The name of the backend.
        pid: Its process.
        name: Its name in a timeline, such as "process 3".
        node: The machine, on Ray; else "".
        start: When it was started, or 0.0 if it existed before the trace.
        stop: When it ended, or the end of the trace.
        end: How it ended: "" if it still runs, "ended", "recycled: memory_limit", "died: SIGKILL".
        phases: Seconds by ``WorkerPhase``; their sum is ``stop - start``.
        chunks: How many chunks it ran.
        items: How many items it ran.
        decodings: How many functions and values it decoded.
        memory_peak: The highest measured private memory, 0 if not known.
    """

    number: int
    backend: str
    pid: int
    name: str
    node: str = ""
    start: float = 0.0
    stop: float = 0.0
    end: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)
    chunks: int = 0
    items: int = 0
    decodings: int = 0
    memory_peak: int = 0

    @property
    def seconds(self) -> float:
        """How long it existed during the trace."""
        return self.stop - self.start

    @property
    def busy(self) -> float:
        """Seconds during which it had a chunk."""
        return sum(s for phase, s in self.phases.items() if phase not in _WITHOUT_CHUNK)


_WITHOUT_CHUNK = frozenset(("start", "starved", "wait", "idle"))


@dataclass(frozen=True, slots=True)
class Event:
    """A moment that a timeline marks.

    Attributes:
        time: When.
        kind: What happened.
        text: Details, such as "killed by SIGKILL" or "memory_limit".
        call: The number of the call, or None.
        worker: The number of the worker, or None.
        index: The index of the item, or None.
    """

    time: float
    kind: EventKind
    text: str = ""
    call: int | None = None
    worker: int | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory and bytes at a moment.

    Attributes:
        time: When.
        worker: The number of the worker, None for the traced process.
        private: Its private memory.
        stored: Bytes of published values at that moment; only for the traced process.
        moved: Bytes that had been sent until then, in both directions; only for the traced process.
    """

    time: float
    worker: int | None
    private: int = 0
    stored: int = 0
    moved: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """All records of a trace at a moment.

    Attributes:
        program: The program's name, "" in a notebook.
        began: When the trace began, in seconds since 1970.
        seconds: How long it has run.
        cpus: The CPUs that this process may use.
        python: The version of Python.
        version: The version of sharedtask.
        calls: By number.
        workers: By number.
        chunks: Ordered by their reports; only the last ones if there were too many.
        decodings: Like ``chunks``.
        items: Like ``chunks``.
        events: Like ``chunks``.
        samples: Like ``chunks``, but thinned out, so that they cover the whole time.
        dropped: How many of "calls", "chunks", "decodings", "items", "events"
            and "samples" were dropped.
        problems: Errors in recording, as text.
    """

    program: str = ""
    began: float = 0.0
    seconds: float = 0.0
    cpus: int = 1
    python: str = ""
    version: str = ""
    calls: tuple[Call, ...] = ()
    workers: tuple[Worker, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    decodings: tuple[Decoding, ...] = ()
    items: tuple[Item, ...] = ()
    events: tuple[Event, ...] = ()
    samples: tuple[Sample, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def compute(self) -> float:
        """The sum of the items' own times."""
        return sum(call.times.total for call in self.outer)

    @property
    def outer(self) -> tuple[Call, ...]:
        """The calls that were not made inside a task; their times include those of inner calls."""
        return tuple(call for call in self.calls if call.parent is None)

    @property
    def in_calls(self) -> float:
        """Seconds during which at least one call was open."""
        return sum(stop - start for start, stop in merged((c.start, c.stop) for c in self.calls))

    @property
    def speedup(self) -> float:
        """The sum of the items' own times, divided by the time during which a call was open."""
        return self.compute / self.in_calls if self.in_calls else 0.0

    @property
    def efficiency(self) -> float:
        """The speed-up, divided by the workers that the calls could use at once; 1 is the maximum.

        Calls are weighted by their time.
        """
        possible = sum(c.seconds * max(min(c.workers, c.cpus), 1) for c in self.outer)
        return self.compute / possible if possible else 0.0

    def chunks_of(self, worker: int) -> Iterator[Chunk]:
        """The chunks of a worker, by time."""
        return (chunk for chunk in self.chunks if chunk.worker == worker)

    def critical_path(self) -> tuple[Span, ...]:
        """What the program waited for, from start to end of the trace, without gaps.

        Phases of calls, and between them "outside". Where the caller waited for workers, the
        longest item or chunk that bounds the end of the call is named "straggler".
        """
        return critical_path(self)


def summed(spans: Sequence[Span]) -> dict[str, float]:
    """Seconds by phase."""
    found: dict[str, float] = {}
    for span in spans:
        found[span.phase] = found.get(span.phase, 0.0) + span.seconds
    return found


def merged(intervals: Iterator[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of intervals, in order."""
    found: list[tuple[float, float]] = []
    for start, stop in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return found


def critical_path(recorded: Recorded) -> tuple[Span, ...]:
    """See ``Recorded.critical_path``."""
    spans: list[Span] = []
    at = 0.0
    for call in sorted(recorded.outer, key=lambda call: call.start):
        if call.stop <= at:
            continue
        start = max(call.start, at)
        if start > at:
            spans.append(Span("outside", at, start))
        spans.extend(_path_of(recorded, call, start))
        at = call.stop
    if recorded.seconds > at:
        spans.append(Span("outside", at, recorded.seconds))
    return tuple(spans)


def _path_of(recorded: Recorded, call: Call, start: float) -> Iterator[Span]:
    """Before the first chunk began, while chunks ran, the last chunk, and the rest of the call."""
    chunks = [c for c in recorded.chunks if c.call == call.number and c.stop > start]
    first = min((c.start for c in chunks), default=call.stop)
    last = max(chunks, key=lambda c: c.stop, default=None)
    alone = call.stop if last is None else _alone_since(chunks, last)
    end = call.stop if last is None else last.stop
    at = start
    for phase, stop in (
        ("begin", first),
        ("compute", alone),
        ("straggler", end),
        ("results", call.stop),
    ):
        stop = min(max(stop, at), call.stop)  # noqa: PLW2901  clocks of two processes
        if stop > at:
            yield Span(phase, at, stop)
            at = stop


def _alone_since(chunks: Sequence[Chunk], last: Chunk) -> float:
    """When all other chunks had ended, or the last one began."""
    others = max((c.stop for c in chunks if c is not last), default=last.stop)
    return last.stop if others == last.stop else max(others, last.start)
