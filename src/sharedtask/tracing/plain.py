"""A trace as plain text: one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.text import duration, human

from .advising import advise
from .advising.text import lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .records import Call, Recorded, Worker

__all__ = ["screen"]

_MOST_CALLS, _MOST_WORKERS, _MOST_TEXT, _MOST_ADVICE = 8, 8, 34, 4
_CALLS = ("CALL", "BACKEND", "TIME", "ITEMS", "ITEM", "SPEED-UP", "SENT", "BACK", "MOST OF IT")
_WORKERS = ("WORKER", "BUSY", "STARVED", "WAIT", "IDLE", "CHUNKS", "ITEMS", "MEMORY", "END")


def screen(recorded: Recorded) -> str:
    """What happened, in at most some 40 lines."""
    return "\n".join(_lines(recorded))


def _lines(recorded: Recorded) -> Iterator[str]:
    yield _summary(recorded)
    if not recorded.calls:
        return
    yield ""
    longest = sorted(recorded.calls, key=lambda call: -call.seconds)[:_MOST_CALLS]
    shown = [call for call in recorded.calls if call in longest]
    yield from _table([_CALLS, *map(_call_row, shown)])
    yield from _more(len(recorded.calls) - len(shown), "calls")
    yield ""
    yield from _table([_WORKERS, *map(_worker_row, recorded.workers[:_MOST_WORKERS])])
    yield from _more(len(recorded.workers) - _MOST_WORKERS, "workers")
    yield from _events(recorded)
    yield from _slowest(recorded)
    advice = advise(recorded)
    if advice:
        yield ""
        yield from lines(advice[:_MOST_ADVICE])
        yield from _more(len(advice) - _MOST_ADVICE, "advice")
    for problem in recorded.problems[:1]:
        yield f"not all could be recorded: {problem}"


def _summary(recorded: Recorded) -> str:
    calls, items = len(recorded.outer), sum(call.items for call in recorded.calls)
    name = f"{recorded.program}: " if recorded.program else ""
    if not calls:
        return f"{name}no call of a task in {duration(recorded.seconds)}"
    return (
        f"{name}{_count(calls, 'call')} of {_count(items, 'item')} in {duration(recorded.seconds)},"
        f" {duration(recorded.in_calls)} of it in calls; speed-up {recorded.speedup:.1f},"
        f" efficiency {recorded.efficiency:.0%} of {_count(recorded.cpus, 'CPU')}"
    )


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _call_row(call: Call) -> tuple[str, ...]:
    return (
        _short(f"{call.task} ({call.method}) {call.place}"),
        call.backend,
        duration(call.seconds),
        f"{call.items:,}",
        duration(call.times.median) if call.items else "-",
        f"{call.speedup:.1f}",
        human(call.bytes_out),
        human(call.bytes_back),
        _largest(call.phases, call.seconds),
    )


def _largest(phases: Mapping[str, float], whole: float) -> str:
    """The two phases that took most."""
    found = sorted(phases.items(), key=lambda pair: -pair[1])[:2]
    return ", ".join(f"{phase} {spent / whole:.0%}" for phase, spent in found if whole and spent)


def _worker_row(worker: Worker) -> tuple[str, ...]:
    whole = worker.seconds or 1.0
    parts = (worker.busy, *(worker.phases.get(name, 0.0) for name in ("starved", "wait", "idle")))
    return (
        _short(f"{worker.name} {worker.node}".rstrip()),
        *(f"{part / whole:.0%}" for part in parts),
        f"{worker.chunks:,}",
        f"{worker.items:,}",
        human(worker.memory_peak) if worker.memory_peak else "-",
        worker.end or "-",
    )


def _events(recorded: Recorded) -> Iterator[str]:
    told = [e for e in recorded.events if e.kind not in ("start", "end")]
    counts: dict[str, int] = {}
    for event in told:
        counts[event.kind] = counts.get(event.kind, 0) + 1
    if counts:
        yield ""
        yield "events: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _slowest(recorded: Recorded) -> Iterator[str]:
    found = [(item, call) for call in recorded.calls for item in call.slowest]
    found.sort(key=lambda pair: -pair[0].seconds)
    if found:
        yield ""
        yield "slowest items: " + "; ".join(
            f"{call.task}[{item.index}] {duration(item.seconds)} {item.text}".rstrip()
            for item, call in found[:3]
        )


def _more(count: int, what: str) -> Iterator[str]:
    if count > 0:
        yield f"and {count:,} more {what}"


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 3]}..."


def _table(rows: list[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
