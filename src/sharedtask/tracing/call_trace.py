"""One call while it is recorded. The engine tells it what happens; ``record`` is what it says.

Methods that the engine calls run no user code, wait for nothing, and never raise. Those that it
calls for each chunk do nothing that can fail, and leave what is rare to ones that are guarded: the
caller comes to them with cold caches, where each further function costs a microsecond or more.
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from sharedtask import context
from sharedtask.backends.worker.chunk_clock import ChunkClock
from sharedtask.errors import TaskTimeoutError, WorkerDiedError
from sharedtask.system.records import dataclass

from . import reading
from .guard import guarded
from .leases import TimedCache, local_values, values_of
from .records import Call, Times
from .slowest import Slowest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sharedtask.backends import base
    from sharedtask.backends.leasing import Leases
    from sharedtask.backends.worker.chunk_clock import Told
    from sharedtask.backends.worker.envelope import Envelope
    from sharedtask.outcomes import Batch, Report
    from sharedtask.store.cache import ShareCache
    from sharedtask.system.callers import Caller

    from .records import Value

__all__ = ["CallTrace", "Sent"]

_MOST_SAMPLES = 4096  # of durations, for the quantiles of a call
_STREAMS = frozenset(("imap", "imap_unordered", "aimap"))
_FUTURES = frozenset(("submit", "executor", "joblib"))


@dataclass(slots=True)
class Sent:
    """A chunk in flight: its items, until their times are told.

    It was handed to the session ``at``, and was ``encoded`` then. The session was ``done`` with it
    at a third time, 0 before that.
    """

    first: int
    items: Sequence[Any]
    at: float
    encoded: float
    done: float = 0.0
    in_message: int = 0
    beside: int = 0


class CallTrace:
    """Records one call; see the module."""

    def __init__(
        self, recorder: Any, call: base.Call, backend: str, caller: Caller, parent: int | None
    ) -> None:
        self.recorder = recorder
        self.number = next(recorder.call_numbers)
        self.task, self.backend, self.parent = call.task, backend, parent
        self._call: base.Call | None = call
        self._caller, self._options = caller, recorder.texts.of(call.options)
        self.method = caller.method
        self._is_stream = caller.method in _STREAMS
        self._rests = caller.method in _FUTURES
        self.phases: dict[str, float] = {}
        self.waited = self.decoded = 0.0  # seconds for results, and of making them
        self.start = caller.began
        self.stop: float | None = None
        self._opened_at = 0.0
        self._chunksize = str(call.options.chunksize)
        self.workers = call.options.workers or 0
        self.values: list[Value] = []
        self.names: dict[int, str] = {}
        self._constants = 0  # bytes of what is not marked, inside each chunk's message
        self._notes: dict[int, Any] = {}
        self.sent: dict[int, Sent] = {}
        self._is_active = False
        self.first_sent = self.first_start = None
        self.began_on_new = False
        self.chunks = self.items = self.total_ns = 0
        self.min_ns, self.max_ns = 1 << 62, 0
        self.samples: list[int] = []
        self.slowest = Slowest()
        self.cpu_ns = self.own_cpu_ns = self.core_wait_ns = self.locked_ns = 0
        self.threads = 1
        self.bytes_out = self.bytes_back = self.by_message = self.by_memory = 0
        self.order_wait = 0.0
        self._ready: dict[int, tuple[int, float]] = {}  # results that wait for earlier ones
        self._turn = 0
        self._failed: set[int] = set()
        self.retries = self.deaths = self.timeouts = self.errors = 0

    first_sent: float | None
    first_start: float | None

    def note_problem(self, text: str) -> None:
        """See ``guarded``."""
        self.recorder.note_problem(text)

    @property
    def in_process(self) -> bool:
        """Whether its tasks run in this process."""
        return self.backend in ("serial", "thread")

    # ------------------------------------------------------------------ called by the engine

    def timed(self, cache: ShareCache) -> Any:
        """The cache, with its leases timed."""
        made = TimedCache(cache, self.recorder.was_evicted)
        self._notes = made.notes
        return made

    @guarded
    def opened(self, leases: Leases, constants: Envelope, workers: int) -> None:
        """The values are published."""
        call = self._call
        if call is None:
            return
        self.workers = workers
        self._constants = len(constants.data)
        found = values_of(call, leases, constants, self._notes, self._had)
        for value, token in list(found):
            self.values.append(value)
            if token is not None:
                self.names[token] = value.name
                self.recorder.history.add((self.task, value.name))
        for value in self.values:
            if (value.marked and not value.hit) or value.travel == "beside":
                self.by_memory += value.nbytes
        for phase in ("compare", "encode", "store"):
            self.spend(phase, sum(getattr(value, phase) for value in self.values))

    def _had(self, name: str) -> bool:
        return (self.task, name) in self.recorder.history

    def encoded(self, number: int, envelope: Envelope) -> None:
        """A chunk is encoded; it is sent next."""
        sent = self.sent.get(number)
        if sent is not None:
            sent.encoded, sent.in_message = monotonic(), len(envelope.data)
            if envelope.file is not None or envelope.payload is not None:
                self._weigh(sent, envelope)

    @guarded
    def _weigh(self, sent: Sent, envelope: Envelope) -> None:
        sent.beside = envelope.nbytes_beside

    @guarded
    def clock(self) -> ChunkClock:
        """The clock of a chunk that runs in this process."""
        place = context.place()
        return ChunkClock("" if place is None else f"{self.backend} {place.number}")

    # --------------------------------------------------------------- called by the session

    def spend(self, phase: str, seconds: float) -> None:
        """Count time of the caller to a phase."""
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    @guarded
    def begin(self) -> None:
        """The session is about to be opened."""
        self._opened_at = monotonic()
        self.spend("check", self._opened_at - self.start)
        self.recorder.open_calls.append(self)
        self.recorder.begin_call(self.start)
        self._is_active = True

    @guarded
    def is_open(self, concurrency: base.Concurrency) -> None:
        """The session is open."""
        call, self._call = self._call, None  # the caller's values may be freed while tasks run
        if call is not None and self.in_process:
            self.values = list(local_values(call))
            self.workers = concurrency.workers
            self.spend("encode", monotonic() - self._opened_at)
        if self._rests:
            self._rest()

    def submitting(self, chunk: base.Chunk) -> Sent:
        """A chunk is about to be encoded and sent."""
        now = monotonic()
        sent = self.sent[chunk.number] = Sent(chunk.first, chunk.items, now, now)
        if self._failed or not self._is_active:
            self._begin_again(chunk, now)
        return sent

    @guarded
    def _begin_again(self, chunk: base.Chunk, now: float) -> None:
        """After an item failed, or after the session was without work."""
        if chunk.first in self._failed and len(chunk.items) == 1:
            self.retries += 1
            self.recorder.put_event(now, "retry", "", self, chunk.first)
        if not self._is_active:
            self._is_active = True
            self.recorder.begin_call(now)

    @guarded
    def taken_back(self, number: int) -> None:
        """A chunk is not run."""
        self.sent.pop(number, None)
        self._rest_if_done()

    def reported(self, report: Report) -> Sent | None:
        """A report has come; returns the chunk if it is over, and no worker has told its times."""
        now = monotonic()
        if self._is_stream and report.count:
            self._note_order(report, now)
        sent = self.sent.pop(report.chunk, None) if report.finished else None
        if sent is None:
            return None
        told = report.trace
        if told:
            items, sent.items = sent.items, ()
            if told > self.slowest.floor:
                self.slowest.see(sent.first, items, told)
            self.recorder.put_chunk(self, sent, told, now)
        if self._rests:
            self._rest_if_done()
        return None if told else sent

    @guarded
    def _note_order(self, report: Report, now: float) -> None:
        """Results that have come wait until those before them have."""
        sent = self.sent.get(report.chunk)
        if sent is None:
            return
        self._ready[sent.first + report.first] = report.count, now
        while self._turn in self._ready:
            count, since = self._ready.pop(self._turn)
            self._turn += count
            self.order_wait += now - since

    def _rest_if_done(self) -> None:
        if self._rests and not self.sent:
            self._rest()

    def _rest(self) -> None:
        """The session stays open for further submits, and workers do not wait for them."""
        if self._is_active:
            self._is_active = False
            self.recorder.end_call(monotonic())

    @guarded
    def taken(self, batch: Batch, sent: Sent | None) -> None:
        """Errors were decoded, or the outcomes of a lost chunk; ``sent``: see ``reported``."""
        outcome, pid = "done", 0
        for offset, error in batch.errors.items():
            outcome, pid = self._note_error(batch.first + offset, error)
        if sent is not None:
            self.recorder.put("lost", self, sent, outcome, pid, len(batch.values), monotonic())

    def _note_error(self, index: int, error: BaseException) -> tuple[str, int]:
        """Count an error; returns how its chunk ended, and in which process."""
        now, kind = monotonic(), type(error).__name__
        self._failed.add(index)
        if isinstance(error, TaskTimeoutError):
            self.timeouts += 1
            self.recorder.put_event(now, "timeout", kind, self, index)
            return "timeout", getattr(error, "pid", None) or 0
        if isinstance(error, WorkerDiedError):
            self.deaths += 1
            return "died", error.pid or 0
        self.errors += 1
        self.recorder.put_event(now, "error", kind, self, index)
        return "done", 0

    @guarded
    def dropped(self, sent: Sent | None) -> None:
        """Outcomes were not needed; ``sent``: see ``reported``."""
        if sent is not None:
            self.recorder.put("lost", self, sent, "given up", 0, 0, monotonic())

    @guarded
    def close(self) -> None:
        """The session is closed."""
        if self.stop is not None:
            return
        self.stop = monotonic()
        self._call = None
        self._rest()
        for sent in list(self.sent.values()):
            self.recorder.put("lost", self, sent, "given up", 0, 0, self.stop)
        self.sent.clear()
        self.slowest.release()
        self.recorder.close_call(self)

    # ------------------------------------------------------------- called by the recorder

    def add_sent(self, sent: Sent) -> None:
        """What the caller spent on a chunk, which is over."""
        self.chunks += 1
        self.spend("encode", sent.encoded - sent.at)
        if sent.done:
            phase = "wait" if self.backend == "serial" else "dispatch"
            self.spend(phase, sent.done - sent.encoded)
        if self.first_sent is None or sent.at < self.first_sent:
            self.first_sent = sent.at

    def add(self, told: Told, sent: Sent) -> None:
        """What a worker told of a chunk."""
        self.add_sent(sent)
        self.items += told.ran
        self.total_ns += told.total
        self.locked_ns += told.locked
        self.cpu_ns += told.cpu
        self.own_cpu_ns += told.own_cpu
        self.threads = max(self.threads, told.threads)
        self.core_wait_ns += reading.core_wait(told)
        self.bytes_out += sent.in_message + sent.beside
        self.bytes_back += told.by_message + told.beside
        self.by_message += sent.in_message + told.by_message
        self.by_memory += sent.beside + told.beside
        if told.ran:
            self.min_ns = min(self.min_ns, told.quantiles[0])
            self.max_ns = max(self.max_ns, told.quantiles[3])
        if len(self.samples) < _MOST_SAMPLES:
            self.samples.extend(b - a for a, b in zip(told.starts, told.stops, strict=True))

    def times(self) -> Times:
        """The distribution of its items' durations."""
        if not self.items:
            return Times()
        ordered = sorted(self.samples)
        last = len(ordered) - 1
        median, p95 = (ordered[last // 2], ordered[round(last * 0.95)]) if ordered else (0, 0)
        numbers = (self.total_ns, self.min_ns, median, p95, self.max_ns)
        return Times(self.items, *(number / 1e9 for number in numbers))

    def record(self, now: float) -> Call:
        """The record of this call, as of now; times are those of the trace."""
        zero, stop = self.recorder.zero, now if self.stop is None else self.stop
        values = self._values_sent()
        return Call(
            self.number,
            self.task,
            self.method,
            self.backend,
            self._caller.place,
            self.parent,
            self._caller.thread,
            max(self.start - zero, 0.0),
            max(stop - zero, 0.0),
            self.workers or self.recorder.cpus,
            self.recorder.cpus,
            self._chunksize,
            self._all_phases(stop - self.start),
            tuple(values),
            self.chunks,
            self.items,
            self.times(),
            self.slowest.records(),
            self.bytes_out,
            self.bytes_back,
            self.by_message + self._constants * self.chunks,
            self.by_memory,
            sum(v.nbytes for v in values if v.hit or v.travel == "in place"),
            self.order_wait,
            self.locked_ns / 1e9,
            self.retries,
            self.deaths,
            self.timeouts,
            self.errors,
            self.stop is not None,
            self._options,
            self.cpu_ns / 1e9,
            (self.cpu_ns - self.own_cpu_ns) / 1e9,
            self.threads,
            self.core_wait_ns / 1e9,
        )

    def _values_sent(self) -> list[Value]:
        chunks = self.chunks + len(self.sent)
        along = ("message", "beside")
        return [
            replace(v, sent=chunks) if not v.marked and v.travel in along else v
            for v in self.values
        ]

    def _all_phases(self, seconds: float) -> dict[str, float]:
        """Phases that sum to the time of the call."""
        phases = {"wait": 0.0, **self.phases, "results": self.decoded}
        phases["wait"] += self.waited
        phases = {phase: spent for phase, spent in phases.items() if spent > 0}
        if self.began_on_new and self.first_start is not None and self.first_sent is not None:
            started = min(max(self.first_start - self.first_sent, 0.0), phases.get("wait", 0.0))
            if started:
                phases["wait"] -= started
                phases["start"] = started
        left = seconds - sum(phases.values())
        if left < 0:  # several threads have waited
            return {phase: spent * seconds / (seconds - left) for phase, spent in phases.items()}
        rest = "caller" if self._is_stream or self._rests else "other"
        phases[rest] = phases.get(rest, 0.0) + left
        return phases
