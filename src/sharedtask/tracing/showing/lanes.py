"""What a timeline shows in each line: bars of chunks, and marks of events.

There are never more than some ten thousand bars, however long the run was: chunks that follow each
other are joined where there are more. A joined bar has the sums of its phases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from sharedtask.system.records import dataclass, field
from sharedtask.text import listed
from sharedtask.tracing.records import Call, Chunk, Event, Recorded, Worker

_T = TypeVar("_T")

BARS, CALL_BARS = 8_000, 2_000  # in all lanes of workers, and of calls
LANES = 96
MARKS = 100  # in a lane


@dataclass(frozen=True, slots=True)
class Bar:
    """A chunk, or several that follow each other, or a call.

    Attributes:
        start: When it begins.
        stop: When it ends.
        phases: Its phases and their seconds: in order if ``parts`` is 1.
        task: The name of its task.
        call: The number of its call.
        first: The index of its first item, -1 for a call.
        count: How many items.
        parts: How many chunks; 0 for a call, whose phases are spread over it.
        outcome: How it ended: the worst of its chunks.
    """

    start: float
    stop: float
    phases: tuple[tuple[str, float], ...]
    task: str = ""
    call: int = -1
    first: int = -1
    count: int = 0
    parts: int = 1
    outcome: str = "done"


@dataclass(frozen=True, slots=True)
class Mark:
    """An event, or several at about the same time."""

    time: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of a timeline."""

    name: str
    bars: Sequence[Bar]
    marks: Sequence[Mark] = ()
    spells: Sequence[tuple[float, float]] = field(default_factory=list)
    """When there was a worker."""


def lanes(recorded: Recorded) -> list[Lane]:
    """The critical path, a lane for each thread that calls, and one for each worker.

    A worker that replaces another one has the same lane.
    """
    return [_critical(recorded), *_of_callers(recorded), *_of_workers(recorded)]


def _critical(recorded: Recorded) -> Lane:
    spans = recorded.critical_path()[-CALL_BARS:]
    bars = [Bar(s.start, s.stop, ((s.phase, s.seconds),), parts=0) for s in spans]
    return Lane("critical path", bars)


# ------------------------------------------------------------------------------------- callers


def _of_callers(recorded: Recorded) -> Iterator[Lane]:
    threads = sorted({call.thread for call in recorded.outer}, key=lambda t: (t != "MainThread", t))
    events = [event for event in recorded.events if event.worker is None]
    tasks = {call.number: call for call in recorded.calls}
    for thread in threads[:LANES]:
        calls = [call for call in recorded.outer if call.thread == thread]
        own = [e for e in events if _thread_of(e, tasks) == thread]
        bars = joined([_of_call(call) for call in calls], CALL_BARS // len(threads[:LANES]))
        name = "calls" if thread == "MainThread" else f"calls, {thread}"
        yield Lane(name, bars, _marks(own, recorded.seconds))


def _thread_of(event: Event, calls: dict[int, Call]) -> str:
    call = None if event.call is None else calls.get(event.call)
    return "MainThread" if call is None else call.thread


def _of_call(call: Call) -> Bar:
    phases = tuple((phase, seconds) for phase, seconds in call.phases.items() if seconds > 0)
    return Bar(
        call.start,
        call.stop,
        phases,
        call.task,
        call.number,
        count=call.items,
        parts=0,
        outcome="done" if call.finished else "running",
    )


# ------------------------------------------------------------------------------------- workers


def _of_workers(recorded: Recorded) -> Iterator[Lane]:
    rows = _rows(recorded.workers)
    shown, left = rows[:LANES], rows[LANES:]
    chunks = _grouped(recorded.chunks, lambda chunk: chunk.worker)
    events = _grouped(recorded.events, lambda event: event.worker)
    tasks = {call.number: call.task for call in recorded.calls}
    for row in shown:
        own = [chunk for worker in row for chunk in chunks.get(worker.number, [])]
        bars = joined([_of_chunk(c, tasks) for c in own if c.worker >= 0], BARS // len(shown))
        met = [event for worker in row for event in events.get(worker.number, [])]
        spells = [(worker.start, worker.stop) for worker in row]
        yield Lane(row[0].name, bars, _marks(met, recorded.seconds), spells)
    if left:
        yield Lane(f"{len(left)} more workers", ())


def _grouped(things: Iterable[_T], key: Callable[[_T], int | None]) -> dict[int | None, list[_T]]:
    found: dict[int | None, list[_T]] = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return found


def _rows(workers: Iterable[Worker]) -> list[list[Worker]]:
    """Workers by lane: one follows another of its backend and node that has ended."""
    rows: list[list[Worker]] = []
    for worker in sorted(workers, key=lambda w: (w.start, w.backend, len(w.name), w.name)):
        for row in rows:
            last = row[-1]
            if last.end and last.stop <= worker.start and _place(last) == _place(worker):
                row.append(worker)
                break
        else:
            rows.append([worker])
    return rows


def _place(worker: Worker) -> tuple[str, str]:
    return worker.backend, worker.node


def _of_chunk(chunk: Chunk, tasks: dict[int, str]) -> Bar:
    spans = chunk.spans or ()
    phases = tuple((span.phase, span.seconds) for span in spans) or (("compute", chunk.seconds),)
    task = tasks.get(chunk.call, "")
    return Bar(
        chunk.start,
        chunk.stop,
        phases,
        task,
        chunk.call,
        chunk.first,
        chunk.count,
        outcome=chunk.outcome,
    )


# ---------------------------------------------------------------------------------- fewer of them


def joined(bars: Iterable[Bar], most: int) -> list[Bar]:
    """Bars by time; where there are more than ``most``, those that are close to each other as one.

    Each bar of the result begins in another cell of a grid over the time.
    """
    ordered = sorted(bars, key=lambda bar: bar.start)
    if len(ordered) <= most:
        return ordered
    first, last = ordered[0].start, max(bar.stop for bar in ordered)
    width = (last - first) / most or 1.0
    cells = groupby(ordered, key=lambda bar: min(int((bar.start - first) / width), most - 1))
    return [_one(list(several)) for _cell, several in cells]


def _one(bars: list[Bar]) -> Bar:
    if len(bars) == 1:
        return bars[0]
    phases: dict[str, float] = {}
    for bar in bars:
        for phase, seconds in bar.phases:
            phases[phase] = phases.get(phase, 0.0) + seconds
    tasks = {bar.task for bar in bars}
    outcomes = {bar.outcome for bar in bars} - {"done"}
    return Bar(
        bars[0].start,
        max(bar.stop for bar in bars),
        tuple(phases.items()),
        bars[0].task if len(tasks) == 1 else f"{len(tasks)} tasks",
        bars[0].call,
        bars[0].first,
        sum(bar.count for bar in bars),
        sum(bar.parts for bar in bars) or 0,
        listed(sorted(outcomes)) if outcomes else "done",
    )


def _marks(events: Iterable[Event], seconds: float) -> list[Mark]:
    """Marks by time, several of a kind as one where they would be on top of each other."""
    told = [event for event in events if event.kind not in ("start", "end")]
    width = seconds / MARKS or 1.0
    found: list[Mark] = []
    for kind in sorted({event.kind for event in told}):
        ordered = sorted((e for e in told if e.kind == kind), key=lambda event: event.time)
        if len(ordered) <= MARKS:
            found.extend(Mark(event.time, kind, _words(event)) for event in ordered)
            continue
        for _cell, several in groupby(ordered, key=lambda event: int(event.time / width)):
            group = list(several)
            text = _words(group[0]) if len(group) == 1 else f"{len(group)} x {kind}"
            found.append(Mark(group[0].time, kind, text))
    return sorted(found, key=lambda mark: mark.time)


def _words(event: Event) -> str:
    item = "" if event.index is None else f" at item {event.index:,}"
    return f"{event.kind}{item}{f': {event.text}' if event.text else ''}"
