"""The trace-event format of Chrome, which Perfetto reads too.

Source:
    "Trace Event Format" of the Chromium project: complete events "X" with ``ts`` and ``dur`` in
    microseconds, instant events "i", counters "C", and metadata "M" that names processes and
    threads.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from .files import replaced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .records import Recorded

__all__ = ["events_of", "write"]

_CALLER, _WORKERS = 1, 2  # as processes of the timeline


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
    yield _named("process_name", _CALLER, 0, "calls")
    yield _named("process_name", _WORKERS, 0, "workers")
    for worker in recorded.workers:
        yield _named("thread_name", _WORKERS, worker.number, worker.name)
    for call in recorded.calls:
        args = {"items": call.items, "backend": call.backend, "place": call.place}
        yield _span(f"{call.task} ({call.method})", _CALLER, call.number, call, args)
    for chunk in recorded.chunks:
        if chunk.worker < 0:
            continue
        args = {"call": chunk.call, "first": chunk.first, "count": chunk.count}
        for span in chunk.spans:
            yield _span(span.phase, _WORKERS, chunk.worker, span, args)
    for event in recorded.events:
        where = _CALLER if event.worker is None else _WORKERS
        thread = event.worker if event.worker is not None else event.call or 0
        yield {
            "name": event.kind,
            "ph": "i",
            "s": "t",
            "ts": event.time * 1e6,
            "pid": where,
            "tid": thread,
            "args": {"text": event.text},
        }
    for sample in recorded.samples:
        name = "caller" if sample.worker is None else f"worker {sample.worker}"
        yield {
            "name": f"memory of {name}",
            "ph": "C",
            "ts": sample.time * 1e6,
            "pid": _CALLER if sample.worker is None else _WORKERS,
            "args": {"bytes": sample.private},
        }


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _span(name: str, process: int, thread: int, span: Any, args: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "cat": "sharedtask",
        "ph": "X",
        "ts": span.start * 1e6,
        "dur": span.seconds * 1e6,
        "pid": process,
        "tid": thread,
        "args": args,
    }
