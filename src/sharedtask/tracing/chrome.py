"""The trace-event format of Chrome, which Perfetto reads too.

Complete events of a row must nest. Perfetto reads times as whole nanoseconds, cuts off what is
below, and names a thread by its number alone, whatever its process. So rows of both processes have
numbers of their own, calls that overlap are in different rows, and a span ends a moment before the
next one begins.

Source:
    "Trace Event Format" of the Chromium project: complete events "X" with ``ts`` and ``dur`` in
    microseconds, instant events "i", counters "C", and metadata "M" that names processes and
    threads; Perfetto's guide to other formats, and its ``json_trace_parser_impl.cc``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from .files import replaced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .records import Event, Recorded, Sample

__all__ = ["events_of", "write"]

_CALLER, _WORKERS = 1, 2  # as processes of the timeline
_FIRST = 10  # the number of the first row; 0 is that of an idle core, and 1 and 2 are processes
_ROUNDING = 2  # nanoseconds


def write(recorded: Recorded, path: str | os.PathLike[str]) -> None:
    """Write the file, as a whole or not at all."""
    document = {
        "traceEvents": list(events_of(recorded)),
        "displayTimeUnit": "ms",
        "otherData": {"program": recorded.program, "version": f"sharedtask {recorded.version}"},
    }
    replaced(path, json.dumps(document))


def events_of(recorded: Recorded) -> Iterator[dict[str, Any]]:
    """The events: names first, then calls, phases of chunks, events and counters."""
    yield _named("process_name", _CALLER, _CALLER, "calls")
    yield _named("process_name", _WORKERS, _WORKERS, "workers")
    for worker in recorded.workers:
        yield _named("thread_name", _WORKERS, _FIRST + worker.number, worker.name)
    rows = _rows_of(recorded)
    for row in sorted(set(rows.values())):
        yield _named("thread_name", _CALLER, row, "calls")
    for call in recorded.calls:
        args = {"items": call.items, "backend": call.backend, "place": call.place}
        yield _span(f"{call.task} ({call.method})", _CALLER, rows[call.number], call, args)
    for chunk in recorded.chunks:
        if chunk.worker < 0:
            continue
        args = {"call": chunk.call, "first": chunk.first, "count": chunk.count}
        for span in chunk.spans:
            yield _span(span.phase, _WORKERS, _FIRST + chunk.worker, span, args)
    yield from (_instant(event, rows) for event in recorded.events)
    yield from map(_counter, recorded.samples)


def _instant(event: Event, rows: Mapping[int, int]) -> dict[str, Any]:
    if event.worker is not None:
        thread = _FIRST + event.worker
    else:
        thread = rows.get(-1 if event.call is None else event.call, _CALLER)
    return {
        "name": event.kind,
        "ph": "i",
        "s": "t",
        "ts": event.time * 1e6,
        "pid": _CALLER if event.worker is None else _WORKERS,
        "tid": thread,
        "args": {"text": event.text},
    }


def _counter(sample: Sample) -> dict[str, Any]:
    name = "caller" if sample.worker is None else f"worker {sample.worker}"
    return {
        "name": f"memory of {name}",
        "ph": "C",
        "ts": sample.time * 1e6,
        "pid": _CALLER if sample.worker is None else _WORKERS,
        "args": {"bytes": sample.private},
    }


def _rows_of(recorded: Recorded) -> dict[int, int]:
    """The row of each call by its number: the first one that is free again when it begins."""
    first = _FIRST + 1 + max((worker.number for worker in recorded.workers), default=0)
    ends: list[float] = []
    rows: dict[int, int] = {}
    for call in sorted(recorded.calls, key=lambda call: call.start):
        free = next((k for k, end in enumerate(ends) if end <= call.start), len(ends))
        ends[free : free + 1] = [call.stop]
        rows[call.number] = first + free
    return rows


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _span(name: str, process: int, thread: int, span: Any, args: dict[str, Any]) -> dict[str, Any]:
    start, stop = round(span.start * 1e9), round(span.stop * 1e9)
    return {
        "name": name,
        "cat": "sharedtask",
        "ph": "X",
        "ts": start / 1e3,
        "dur": max(stop - start - _ROUNDING, 0) / 1e3,
        "pid": process,
        "tid": thread,
        "args": args,
    }
