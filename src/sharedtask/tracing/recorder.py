"""Collects what calls tell, in bounded memory, and makes records of it.

    engine -> put() -> inbox              recorded() -> drain() -> accounts, rings of records

``put`` appends to a queue and waits for nothing: it may run in any thread, also in a signal
handler.
"""

from __future__ import annotations

import itertools
import os
import platform
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedtask import context
from sharedtask.backends.worker import chunk_clock
from sharedtask.backends.worker.limits import private_bytes
from sharedtask.system.callers import caller_since
from sharedtask.system.cpus import available_cpus
from sharedtask.version import VERSION

from . import reading
from .accounts import Account, Openings
from .call_trace import CallTrace
from .guard import guarded
from .option_texts import OptionTexts
from .records import Chunk, Event, Recorded, Sample, Span
from .sessions import TracedBackend

if TYPE_CHECKING:
    from sharedtask.backends.base import Backend, Call
    from sharedtask.backends.worker.chunk_clock import Told

    from .call_trace import Sent

__all__ = ["Recorder"]

# Bounds of what is kept, about 100 MB in all; counts and totals go on.
_MOST = {
    "calls": 10_000,
    "chunks": 100_000,
    "decodings": 10_000,
    "items": 100_000,
    "events": 10_000,
    "samples": 4_000,
}
_MOST_WAITING, _MOST_WAITING_BYTES = 20_000, 32_000_000
_AT_ONCE = 4  # of those that are too many: more than come in meanwhile
_MOST_PROBLEMS = 20
_SAMPLE_SECONDS = 0.02
_DRAIN_SECONDS = 1.0


class Recorder:
    """Records the calls of this process; see ``observing.Observer``."""

    def __init__(self) -> None:
        self.zero, self.began = time.monotonic(), time.time()
        self.cpus = available_cpus()
        self.pid = os.getpid()
        self.call_numbers = itertools.count()
        self._chunk_numbers = itertools.count()
        self.history: set[tuple[str, str]] = set()  # names of values of tasks
        self.open_calls: list[CallTrace] = []
        self._inbox: deque[tuple[Any, ...]] = deque()
        self._inbox_bytes = 0
        self._lock = threading.Lock()
        self._rings: dict[str, deque[Any]] = {name: deque(maxlen=n) for name, n in _MOST.items()}
        self._counts = dict.fromkeys(_MOST, 0)
        self._openings = Openings()
        self._accounts: dict[Any, Account] = {}
        self._evicted: deque[int] = deque(maxlen=1024)
        self._backends: dict[int, Any] = {}
        self._starts = threading.local()
        self._problems: list[str] = []
        self._sample_at = 0.0
        self._sample_after: dict[int, float] = {}  # by worker
        self._moved = 0
        self.texts = OptionTexts()

    # ------------------------------------------------------------------------- the observer

    def call_begins(self) -> None:
        """See ``Observer``."""
        self._starts.at = time.monotonic()

    @property
    def is_here(self) -> bool:
        """False in a forked child, whose calls are not recorded."""
        return self.pid == os.getpid()

    def traced(self, backend: Backend) -> Any:
        """See ``Observer``."""
        if not self.is_here:
            return backend
        found = self._backends.get(id(backend))
        if found is None:
            found = self._backends[id(backend)] = TracedBackend(backend, self)
        return found

    def evicted(self, key: int, nbytes: int) -> None:
        """See ``Observer``."""
        self._evicted.append(key)
        self.put("event", Event(self.at(time.monotonic()), "evicted", f"{nbytes} bytes"))

    def worker_started(self, backend: str, pid: int) -> None:
        """See ``Observer``."""
        self.put("started", backend, pid, time.monotonic())

    def worker_ended(self, pid: int, how: str, *, expected: bool) -> None:
        """See ``Observer``."""
        self.put("ended", pid, how, expected, time.monotonic())

    # ------------------------------------------------------------------------ of the calls

    def new_call(self, call: Call, backend: str) -> CallTrace | None:
        """The trace of a call, which this thread makes."""
        try:
            now = time.monotonic()
            began = getattr(self._starts, "at", None) or now
            self._starts.at = None
            caller = caller_since(began)
            place = context.place()
            parent = None if place is None else self._here(place).number
            return CallTrace(self, call, backend, caller, parent)
        except Exception as error:  # noqa: BLE001  the run goes on
            self.note_problem(f"new_call: {type(error).__name__}: {error}")
            return None

    def _here(self, place: context.Place) -> Account:
        """The account of the worker that this thread is."""
        return self._account(place.backend, self.pid, f"{place.backend} {place.number}", "")

    def was_evicted(self, key: int) -> bool:
        """Whether a value with this identity was evicted."""
        return key in self._evicted

    def begin_call(self, at: float) -> None:
        """A call is open: workers without a chunk wait for it."""
        self.put("open", at)

    def end_call(self, at: float) -> None:
        """A call is not open any more, or rests."""
        self.put("close", at)

    @guarded
    def close_call(self, call: CallTrace) -> None:
        """A call has ended."""
        self.put("call", call)
        if call in self.open_calls:  # it may not have been opened
            self.open_calls.remove(call)

    def note_problem(self, text: str) -> None:
        """Something went wrong in recording."""
        if len(self._problems) < _MOST_PROBLEMS and text not in self._problems:
            self._problems.append(text)

    def put_event(self, at: float, kind: Any, text: str, call: CallTrace, index: int) -> None:
        """An event of a call."""
        self.put("event", Event(self.at(at), kind, text, call.number, None, index))

    def put(self, kind: str, *what: Any) -> None:
        """Note what has happened; records are made of it when the trace is read.

        If very much is noted, the oldest of it is worked up at once, little by little.
        """
        self._inbox.append((kind, *what))
        if len(self._inbox) > _MOST_WAITING:
            self.drain(most=_AT_ONCE)

    def put_chunk(self, call: CallTrace, sent: Sent, told: bytes, now: float) -> None:
        """Note what a worker told of a chunk, as ``put``."""
        inbox = self._inbox
        inbox.append(("chunk", call, sent, told, now))
        self._inbox_bytes += len(told)
        if len(inbox) > _MOST_WAITING or self._inbox_bytes > _MOST_WAITING_BYTES:
            self.drain(most=_AT_ONCE)
        if now >= self._sample_at:
            self._sample(now)

    def at(self, monotonic: float) -> float:
        """A time as seconds since the start of the trace."""
        return max(monotonic - self.zero, 0.0)

    # --------------------------------------------------------------------------- the records

    def drain(self, *, seconds: float = 0.0, most: int | None = None) -> None:
        """Work up what was noted, unless another thread does, or this one that was interrupted."""
        taken = self._lock.acquire(timeout=seconds) if seconds else self._lock.acquire(False)
        if not taken:
            return
        try:
            for _ in itertools.count() if most is None else range(most):
                if not self._inbox:
                    self._inbox_bytes = 0
                    break
                self._work_up(*self._inbox.popleft())
        finally:
            self._lock.release()

    def _work_up(self, kind: str, *what: Any) -> None:
        if kind == "chunk":
            self._inbox_bytes -= len(what[2])
        try:
            getattr(self, f"_on_{kind}")(*what)
        except Exception as error:  # noqa: BLE001  the run goes on
            self.note_problem(f"{type(error).__name__}: {error}")

    def _keep(self, ring: str, record: Any) -> None:
        self._counts[ring] += 1
        self._rings[ring].append(record)

    def _on_event(self, event: Event) -> None:
        self._keep("events", event)

    def _on_open(self, at: float) -> None:
        self._openings.begin(self.at(at))

    def _on_close(self, at: float) -> None:
        self._openings.end(self.at(at))

    def _on_call(self, call: CallTrace) -> None:
        self._keep("calls", call.record(call.stop or 0.0))

    def _on_started(self, backend: str, pid: int, at: float) -> None:
        account = self._account(backend, pid, "", "")
        account.start = account.until = self.at(at)
        account.is_new = True
        self._keep("events", Event(self.at(at), "start", "", worker=account.number))

    def _on_ended(self, pid: int, how: str, expected: bool, at: float) -> None:
        if not expected:  # it may have died in its first chunk of the trace, and told nothing
            self._account("process", pid, "", "")
        account = self._accounts.pop(("process", pid, ""), None)
        if account is None:
            return
        self._accounts[object()] = account  # the number may come again
        account.ended = max(self.at(at), account.until)
        account.end = how
        kind: Any = "end" if expected else "death"
        if expected and how.startswith("replaced"):
            kind = "recycled"
        self._keep("events", Event(self.at(at), kind, how, worker=account.number))

    def _account(self, backend: str, pid: int, name: str, node: str) -> Account:
        key = backend, pid, name
        account = self._accounts.get(key)
        if account is None:
            number = len(self._accounts)
            shown = name or f"{backend} {pid}"
            account = self._accounts[key] = Account(number, backend, pid, shown, node)
        return account

    def _on_chunk(self, call: CallTrace, sent: Sent, data: bytes, received: float) -> None:
        told, is_ray = chunk_clock.read(data), call.backend == "ray"
        account = self._account(call.backend, told.pid, told.name, told.node if is_ray else "")
        shift = reading.shift_of(told, sent.at, received) if is_ray else 0.0
        zero, number = self.zero - shift, account.number
        chunk = self._chunk(call, sent, told, number, reading.spans(told, zero), received)
        if call.parent is None:
            self._take_time(call, account, chunk)
        account.memory_peak = max(account.memory_peak, told.private)
        call.add(told, sent)
        self._keep("chunks", chunk)
        for item in reading.items(told, call.number, sent.first, number, zero):
            self._rings["items"].append(item)
            call.slowest.offer(item)
        self._counts["items"] += told.ran
        for decoding in reading.decodings(told, call.number, call.names, number, zero):
            account.decodings += 1
            self._keep("decodings", decoding)
        for inner in reading.inner_calls(told, number, zero, self.cpus):
            self._keep("calls", replace(inner, number=next(self.call_numbers)))
        self._counts["calls"] += told.more_inner
        self._moved += chunk.bytes_out + chunk.bytes_back
        self._sample_worker(number, told.private, self.at(received))

    def _take_time(self, call: CallTrace, account: Account, chunk: Chunk) -> None:
        """The time of a worker belongs to this chunk, and to the gap before it."""
        is_new = account.is_new
        account.pass_to(chunk.start, chunk.sent, self._openings)
        account.take(chunk.spans)
        account.chunks += 1
        account.items += chunk.count
        if call.first_start is None or chunk.start + self.zero < call.first_start:
            call.first_start, call.began_on_new = chunk.start + self.zero, is_new

    def _chunk(
        self,
        call: CallTrace,
        sent: Sent,
        told: Told,
        worker: int,
        spans: tuple[Span, ...],
        received: float,
    ) -> Chunk:
        return Chunk(
            next(self._chunk_numbers),
            call.number,
            worker,
            sent.first,
            told.ran,
            self.at(sent.at),
            spans[0].start,
            spans[-1].stop,
            max(self.at(received), spans[-1].stop),
            spans,
            reading.times(told),
            sent.in_message + sent.beside,
            told.by_message + told.beside,
            sent.in_message,
            told.by_message,
            cpu=told.cpu / 1e9,
        )

    @guarded
    def _sample(self, now: float) -> None:
        """Note the memory of this process."""
        self._sample_at = now + _SAMPLE_SECONDS
        stored = sum(call.by_memory for call in self.open_calls)
        self.put("sample", now, private_bytes() or 0, stored)

    def _on_sample(self, now: float, private: int, stored: int) -> None:
        self._keep("samples", Sample(self.at(now), None, private, stored, self._moved))

    def _sample_worker(self, worker: int, private: int, at: float) -> None:
        if private and at >= self._sample_after.get(worker, 0.0):
            self._sample_after[worker] = at + _SAMPLE_SECONDS
            self._keep("samples", Sample(at, worker, private))

    def _account_of(self, call: CallTrace, pid: int) -> Account:
        """The account of a worker that did not tell its thread and node."""
        known = self._accounts.get((call.backend, pid, ""))
        if known is None:
            known = next((each for each in self._accounts.values() if each.pid == pid), None)
        return self._account(call.backend, pid, "", "") if known is None else known

    def _on_lost(
        self,
        call: CallTrace,
        sent: Sent,
        outcome: Any,
        pid: int,
        count: int,
        received: float,
    ) -> None:
        """A chunk of which no worker has told: its worker died, or it was given up."""
        account = self._account_of(call, pid) if pid else None
        start, stop = self.at(sent.at), self.at(received)
        if account is not None and call.parent is None:
            account.is_new = False
            if account.ended is not None:
                account.ended = max(account.ended, stop)
            start = min(max(start, account.until), stop)
            account.pass_to(start, self.at(sent.at), self._openings)
            account.take((Span("compute", start, stop),))
            account.chunks += 1
        number = -1 if account is None else account.number
        call.chunks += 1
        self._keep(
            "chunks",
            Chunk(
                next(self._chunk_numbers),
                call.number,
                number,
                sent.first,
                count,
                self.at(sent.at),
                start,
                stop,
                stop,
                (Span("compute", start, stop),) if account is not None else (),
                bytes_out=sent.in_message + sent.beside,
                by_message_out=sent.in_message,
                outcome=outcome,
            ),
        )

    # ------------------------------------------------------------------------- the whole

    def recorded(self, stopped: float | None = None) -> Recorded:
        """All that was recorded until now, or until the trace ended."""
        opened = list(self.open_calls)  # which may end meanwhile
        self.drain(seconds=_DRAIN_SECONDS)
        end = time.monotonic() if stopped is None else stopped
        now = self.at(end)
        calls = {call.number: call.record(end) for call in opened}
        calls.update((call.number, call) for call in self._rings["calls"])
        rings = {name: tuple(ring) for name, ring in self._rings.items() if name != "calls"}
        workers = [account.record(now, self._openings) for account in self._accounts.values()]
        dropped = {name: self._counts[name] - len(ring) for name, ring in self._rings.items()}
        return Recorded(
            program=_program(),
            began=self.began,
            seconds=now,
            cpus=self.cpus,
            python=platform.python_version(),
            version=VERSION,
            calls=tuple(sorted(calls.values(), key=lambda call: call.number)),
            workers=tuple(sorted(workers, key=lambda worker: worker.number)),
            dropped={name: count for name, count in dropped.items() if count},
            problems=tuple(self._problems),
            **rings,
        )


def _program() -> str:
    return os.path.basename(sys.argv[0]) if sys.argv else ""
