"""What a trace consists of: frozen records.

Times are seconds since the start of the trace, durations are seconds, sizes are bytes. Numbers of
calls, workers and chunks are those of this trace, each from 0 on. Lists of chunks, decodings,
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
"""Why a shared value had to be stored; "" if it was not.

"dead": an equal place in an earlier call of the task had another object, which is gone or was
replaced. "uncached": its role or backend publishes each time.
"""
Travel: TypeAlias = Literal["shared", "message", "beside", "in place", "none"]


@dataclass(frozen=True, slots=True)
class Value:
    """A value that came along with a call.

    Attributes:
        name: The parameter, "argument 1", "self", "function", or what the function captures.
        kind: The name of its type.
        nbytes: Its bytes as sent, pickle and buffers.
        marked: Whether it is shared; the others go along with the call or with each chunk.
        hit: Whether workers have it from an earlier call.
        miss: Why it was stored; "" for a hit and for what is not marked.
        travel: How it reached workers: through shared memory, inside messages, beside messages in
            memory that each chunk opens, not copied at all, or not at all, since tasks run in this
            process. Large arrays of what is not marked are stored by themselves, and go through
            shared memory.
        sent: How many chunks it went along with, which each decode it.
        compare: Seconds of comparing it with what is published.
        encode: Seconds of pickling it.
        store: Seconds of writing it to shared memory.
        same_object: Whether the last call of the task had this very object here; None in its first.
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
    """A worker made a function or a value from what was sent.

    Attributes:
        call: The number of the call.
        worker: The number of the worker.
        name: As ``Value.name``.
        start: When it began.
        stop: When it ended.
        nbytes: Bytes of the pickle, which are decoded; arrays beside it are mapped.
        mapped: Bytes that were mapped without a copy.
        objects: How many Python objects the pickle made, about; 0 if not counted.
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
        text: A short repr; "" but for the slowest of a call.
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
    """Consecutive items, given to a worker in one piece.

    Attributes:
        number: Its number.
        call: The number of the call.
        worker: The number of the worker; -1 if it was given to none.
        first: The index of its first item.
        count: How many items were run.
        sent: When the caller gave it to the worker.
        start: When the worker took it.
        stop: When the worker had reported it.
        received: When the caller had its results.
        spans: The phases between ``start`` and ``stop``, in order, without gaps.
        times: The items' own times.
        bytes_out: Bytes of the items as they were sent.
        bytes_back: Bytes of the results.
        by_message_out: Those of ``bytes_out`` that went inside messages.
        by_message_back: Those of ``bytes_back`` that came inside messages.
        outcome: How it ended. "running" if the trace ended first.
        cpu: Seconds that cores worked for its items, in all threads of the worker.
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
        parent: The number of the worker in whose task it was made; None in the traced process.
        thread: The name of the caller's thread.
        start: When it began.
        stop: When it ended; the end of the trace if it was still open.
        workers: How many workers it might use.
        cpus: The CPUs that this process may use.
        chunksize: The option, "auto" or a number.
        phases: Seconds of the caller's thread by ``CallerPhase``; their sum is ``stop - start``.
        values: What came along with it.
        chunks: How many chunks were run.
        items: How many items were run, retries included.
        times: The items' own times.
        slowest: Up to five items, the slowest first.
        bytes_out: Bytes of the items as they were sent.
        bytes_back: Bytes of the results.
        by_message: Bytes of everything that went inside messages, both ways.
        by_memory: Bytes that went through shared memory, both ways.
        uncopied: Bytes that workers used where they were: hits, and values in place.
        order_wait: Seconds that finished results lay ready, for an earlier one was not.
        lock_wait: Seconds that items waited for locks.
        retries: How many items were run again.
        deaths: How many workers died with chunks of it.
        timeouts: How many items took too long.
        errors: How many items raised.
        finished: Whether it had ended when the trace did.
        options: Options that were set for it, by name, as text.
        cpu: The sum of ``Chunk.cpu``.
        cpu_beside: Those of ``cpu`` that other threads of the workers took, as those of BLAS; 0 on
            threads, where it is not known.
        threads: How many threads a worker had, at most, where others than its own computed; else 1.
        core_wait: Seconds that items waited for a core, about: more workers than cores share them.
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
        """The sum of the items' own times by the time of the call."""
        return self.times.total / self.seconds if self.seconds else 0.0

    @property
    def busy_threads(self) -> float:
        """About how many threads of a worker computed at once: 1 without those of libraries."""
        own = self.cpu - self.cpu_beside
        return min(self.cpu / own, self.threads) if own > 0 else 1.0

    @property
    def efficiency(self) -> float:
        """The speed-up by the number of workers that can run at once: 1 is all that is possible."""
        return self.speedup / max(min(self.workers, self.cpus), 1)


@dataclass(frozen=True, slots=True)
class Worker:
    """A process or thread that ran items.

    Attributes:
        number: Its number; 0 is not the caller.
        backend: The name of the backend.
        pid: Its process.
        name: How it is named in a timeline, as "process 3".
        node: The machine, on Ray; else "".
        start: When it was started, or 0.0 if it was there before the trace.
        stop: When it ended, or the end of the trace.
        end: How it ended: "" if it did not, "ended", "recycled: memory_limit", "died: SIGKILL".
        phases: Seconds by ``WorkerPhase``; their sum is ``stop - start``.
        chunks: How many chunks it ran.
        items: How many items it ran.
        decodings: How many functions and values it decoded.
        memory_peak: The highest private memory that was seen, 0 if not known.
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
        """How long it was there."""
        return self.stop - self.start

    @property
    def busy(self) -> float:
        """Seconds that it had a chunk."""
        return sum(s for phase, s in self.phases.items() if phase not in _WITHOUT_CHUNK)


_WITHOUT_CHUNK = frozenset(("start", "starved", "wait", "idle"))


@dataclass(frozen=True, slots=True)
class Event:
    """A moment that a timeline marks.

    Attributes:
        time: When.
        kind: What happened.
        text: In words, as "killed by SIGKILL" or "memory_limit".
        call: The number of the call, None if it belongs to none.
        worker: The number of the worker, None if it belongs to none.
        index: The index of the item, None if it belongs to none.
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
        moved: Bytes that had travelled until then, both ways; only for the traced process.
    """

    time: float
    worker: int | None
    private: int = 0
    stored: int = 0
    moved: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """All that a trace holds at a moment.

    Attributes:
        program: The program's name, "" in a notebook.
        began: When the trace began, in seconds since 1970.
        seconds: How long it has run.
        cpus: The CPUs that this process may use.
        python: The version of Python.
        version: The version of sharedtask.
        calls: By number.
        workers: By number.
        chunks: By the time of their reports, the last ones if there were too many.
        decodings: As ``chunks``.
        items: As ``chunks``.
        events: As ``chunks``.
        samples: As ``chunks``; thinned out, so that they cover the whole time.
        dropped: How many of "calls", "chunks", "decodings", "items", "events" and "samples" are
            not here any more.
        problems: What went wrong in recording, in words.
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
        """The calls that were not made inside a task: their times contain those of the others."""
        return tuple(call for call in self.calls if call.parent is None)

    @property
    def in_calls(self) -> float:
        """Seconds during which at least one call was open."""
        return sum(stop - start for start, stop in merged((c.start, c.stop) for c in self.calls))

    @property
    def speedup(self) -> float:
        """The sum of the items' own times by the time with a call open."""
        return self.compute / self.in_calls if self.in_calls else 0.0

    @property
    def efficiency(self) -> float:
        """The speed-up by the workers that the calls could use at once: 1 is all that is possible.

        Calls count by their time.
        """
        possible = sum(c.seconds * max(min(c.workers, c.cpus), 1) for c in self.outer)
        return self.compute / possible if possible else 0.0

    def chunks_of(self, worker: int) -> Iterator[Chunk]:
        """The chunks of a worker, by time."""
        return (chunk for chunk in self.chunks if chunk.worker == worker)

    def critical_path(self) -> tuple[Span, ...]:
        """What the run waited for, from its start to its end, without gaps.

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
