"""What ``to_chrome`` writes, checked by the rules of the format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from traces import recorded

from sharedtask import trace
from sharedtask.tracing.chrome import events_of
from sharedtask.tracing.records import Event, Span

NUMBER, TEXT, WHOLE, OBJECT = (int, float), str, int, dict

# Source: "Trace Event Format" of the Chromium project: the object format, and of each kind of event
# the fields that it must have and may have, with their types. Times are microseconds, as fractions.
DOCUMENT: Mapping[str, Any] = {
    "traceEvents": list,
    "displayTimeUnit": TEXT,
    "otherData": OBJECT,
}
COMMON: Mapping[str, Any] = {"name": TEXT, "ph": TEXT, "pid": WHOLE}
OPTIONAL: Mapping[str, Any] = {"cat": TEXT, "args": OBJECT, "tts": NUMBER, "cname": TEXT}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "X": {"ts": NUMBER, "dur": NUMBER, "tid": WHOLE},  # complete event
    "i": {"ts": NUMBER, "tid": WHOLE, "s": TEXT},  # instant event
    "C": {"ts": NUMBER, "args": OBJECT},  # counter event
    "M": {"tid": WHOLE, "args": OBJECT},  # metadata event
}
SCOPES = {"g", "p", "t"}  # of instant events: global, process, thread
METADATA = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index"}


def check(event: Mapping[str, Any]) -> None:
    """Raise AssertionError for an event that breaks a rule."""
    required = {**COMMON, **KINDS[event["ph"]]}
    assert required.keys() <= event.keys(), event
    for name, value in event.items():
        kind = {**OPTIONAL, **required}[name]
        assert isinstance(value, kind), (name, event)
        assert not isinstance(value, bool), (name, event)
    assert event.get("ts", 0) >= 0, event
    assert event.get("dur", 0) >= 0, event
    assert event.get("s", "t") in SCOPES, event
    if event["ph"] == "C":
        assert all(isinstance(value, NUMBER) for value in event["args"].values()), event
    if event["ph"] == "M":
        assert METADATA[event["name"]] in event["args"], event


def nested(events: list[Mapping[str, Any]]) -> bool:
    """Whether complete events of a row are apart, or one within the other.

    Source: Perfetto reads times as whole nanoseconds, and moves what does not nest elsewhere.
    """
    ends: list[int] = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        start, length = int(event["ts"] * 1000), int(event["dur"] * 1000)
        while ends and ends[-1] <= start:
            ends.pop()
        if ends and start + length > ends[-1]:
            return False
        ends.append(start + length)
    return True


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The file of a run with events of workers and of calls."""
    events = (Event(0.01, "death", "killed", 0, 1, 3), Event(0.02, "retry", "", 0, None, 3))
    run, path = trace(), tmp_path_factory.mktemp("chrome") / "run.json"
    run.recorded = lambda: recorded(events=events)  # type: ignore[method-assign]
    run.to_chrome(path)
    assert [path] == list(path.parent.iterdir())
    return json.loads(path.read_text())


def test_document_has_the_fields_of_the_object_format(document: Any) -> None:
    """The list of events is there, and times are to be shown in a unit that the format knows."""
    assert document.keys() == DOCUMENT.keys()
    assert all(isinstance(document[name], kind) for name, kind in DOCUMENT.items())
    assert document["displayTimeUnit"] in ("ms", "ns")


def test_events_have_the_fields_of_their_kind(document: Any) -> None:
    """Each kind is there, and no field is missing, of another type, or unknown."""
    for event in document["traceEvents"]:
        check(event)
    assert set(KINDS) == {event["ph"] for event in document["traceEvents"]}


def test_events_of_a_row_do_not_overlap(document: Any) -> None:
    """Viewers draw complete events of a thread within each other, or drop them."""
    rows: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            rows.setdefault((event["pid"], event["tid"]), []).append(event)
    assert 3 == len(rows)
    assert all(map(nested, rows.values()))


def test_times_are_microseconds(document: Any) -> None:
    """A chunk of the run begins and lasts as recorded."""
    first: Span = recorded().chunks[0].spans[0]
    spans = [e for e in document["traceEvents"] if e["ph"] == "X" and e["name"] == first.phase]
    assert pytest.approx(first.start * 1e6) == spans[0]["ts"]
    assert pytest.approx(first.seconds * 1e6, abs=0.003) == spans[0]["dur"]


def test_rows_are_named(document: Any) -> None:
    """Both processes and each worker's row have a name."""
    named = [e for e in document["traceEvents"] if e["ph"] == "M"]
    assert [(1, 1), (2, 2), (2, 10), (2, 11), (1, 12)] == [(e["pid"], e["tid"]) for e in named]
    workers = [e["args"]["name"] for e in named if e["name"] == "thread_name" and e["pid"] == 2]
    assert [worker.name for worker in recorded().workers] == workers


def test_rows_of_both_processes_have_other_numbers(document: Any) -> None:
    """Perfetto finds the thread that is named by its number alone."""
    rows = {(e["pid"], e["tid"]) for e in document["traceEvents"] if "tid" in e}
    assert len(rows) == len({thread for _, thread in rows})
    assert 0 not in {thread for _, thread in rows}


def test_calls_that_overlap_are_in_rows_of_their_own() -> None:
    """A call takes the first row that is free, so that there are few."""
    (call,) = recorded().calls
    times = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (3.5, 5.0)]
    calls = [replace(call, number=n, start=a, stop=b) for n, (a, b) in enumerate(times)]
    events = [e for e in events_of(recorded(calls=tuple(calls))) if e["ph"] == "X"]
    rows = [e["tid"] for e in events if e["pid"] == 1]
    assert [12, 13, 12, 13] == rows
    for row in rows:
        assert nested([e for e in events if e["tid"] == row])


def test_spans_that_touch_do_not_overlap_when_they_are_cut() -> None:
    """Whatever the fractions of their times are, each begins after the end of the one before."""
    (call,) = recorded().calls
    ends = [0.0]
    for number in range(1, 2000):
        ends.append(ends[-1] + number * 1.000_000_7e-6 / 3)
    calls = [replace(call, number=n, start=a, stop=b) for n, (a, b) in enumerate(pairwise(ends))]
    events = [e for e in events_of(recorded(calls=tuple(calls))) if e["pid"] == 1]
    spans: list[Mapping[str, Any]] = [e for e in events if e["ph"] == "X"]
    assert {12} == {e["tid"] for e in spans}
    assert nested(spans)
    cut = [(int(e["ts"] * 1000), int(e["dur"] * 1000)) for e in spans]
    assert all(start + length < later for (start, length), (later, _) in pairwise(cut))


def test_span_of_no_time_has_no_negative_one() -> None:
    """One nanosecond is the least that is seen."""
    (call,) = recorded().calls
    events = list(events_of(recorded(calls=(replace(call, stop=call.start),))))
    assert [0] == [e["dur"] for e in events if e["ph"] == "X" and e["pid"] == 1]


def test_chunk_whose_worker_is_not_known_has_no_row() -> None:
    """Its worker died before it said who it is."""
    run = recorded()
    lost = replace(run, chunks=tuple(replace(chunk, worker=-1) for chunk in run.chunks))
    assert not [e for e in events_of(lost) if e["ph"] == "X" and e["pid"] == 2]
