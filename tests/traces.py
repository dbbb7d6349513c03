"""Recorded runs made by hand, for tests of what tells of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sharedtask.tracing.advising import advise
from sharedtask.tracing.records import Call, Chunk, Event, Recorded, Sample, Span, Times, Worker


def topics(run: Recorded, **changes: Any) -> list[str]:
    """The advice that there is of a run, with other fields."""
    return [advice.topic for advice in advise(replace(run, **changes))]


def times(count: int, each: float) -> Times:
    """So many items of the same length."""
    return Times(count, count * each, each, each, each, each)


def recorded(
    *, workers: int = 2, chunks: int = 4, count: int = 10, item: float = 0.01, **changes: Any
) -> Recorded:
    """One map: ``chunks`` of ``count`` items each, dealt to the workers in turn, without gaps.

    ``changes`` are fields of the result that are to be others.
    """
    made = [_chunk(k, k % workers, k // workers, count, item) for k in range(chunks)]
    stop = max((c.stop for c in made), default=0.0) + 0.001
    call = Call(
        0,
        "score",
        "map",
        "process",
        "job.py:12",
        start=0.0,
        stop=stop,
        workers=workers,
        cpus=workers,
        phases={"check": 0.0005, "dispatch": 0.0005, "wait": stop - 0.002, "results": 0.001},
        chunks=chunks,
        items=chunks * count,
        times=times(chunks * count, item),
        bytes_out=100 * chunks,
        bytes_back=200 * chunks,
        by_message=300 * chunks,
    )
    fields: dict[str, Any] = {
        "program": "job.py",
        "began": 1.8e9,
        "seconds": stop,
        "cpus": workers,
        "python": "3.11",
        "version": "0.1.0",
        "calls": (call,),
        "workers": tuple(_worker(n, made, stop) for n in range(workers)),
        "chunks": tuple(made),
        "events": tuple(Event(0.0, "start", worker=n) for n in range(workers)),
        "samples": tuple(Sample(t * stop / 4, None, 50 << 20, 1 << 20, t * 100) for t in range(5)),
    }
    return Recorded(**{**fields, **changes})


def _chunk(number: int, worker: int, turn: int, count: int, item: float) -> Chunk:
    length = count * item + 0.001
    start = 0.001 + turn * length
    spans = (
        Span("unpack", start, start + 0.0005),
        Span("compute", start + 0.0005, start + 0.0005 + count * item),
        Span("report", start + 0.0005 + count * item, start + length),
    )
    stop = start + length
    own = times(count, item)
    return Chunk(
        number, 0, worker, number * count, count, start, start, stop, stop, spans, own, 100, 200
    )


def _worker(number: int, chunks: list[Chunk], stop: float) -> Worker:
    own = [chunk for chunk in chunks if chunk.worker == number]
    phases: dict[str, float] = {}
    for chunk in own:
        for phase, seconds in chunk.phases().items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    phases["wait"] = stop - sum(phases.values())
    items = sum(chunk.count for chunk in own)
    name = f"process {number}"
    return Worker(
        number,
        "process",
        1000 + number,
        name,
        stop=stop,
        phases=phases,
        chunks=len(own),
        items=items,
    )
