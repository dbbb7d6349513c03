"""A page has everything of a run in one file of bounded size, and its lanes show what happened."""

from __future__ import annotations

import dataclasses
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from traces import recorded

from sharedtask import parallel, trace
from sharedtask.tracing.advising import Advice
from sharedtask.tracing.records import Event, Recorded, Sample, Span, Worker
from sharedtask.tracing.showing import columns, curves, lanes, terminal
from sharedtask.tracing.showing.lanes import Bar
from sharedtask.tracing.showing.page import inline, page
from sharedtask.tracing.showing.picture import timeline


def data_of(text: str) -> dict[str, Any]:
    """What the script of a page draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


def test_a_page_refers_to_nothing_outside_itself() -> None:
    """No address of the network and no file is in it, and its policy refuses both."""
    text = page(recorded())
    assert not re.search(r"(src|href)\s*=|url\(|@import|fetch\(|import\(", text)
    assert {"http://www.w3.org/2000/svg"} == set(re.findall(r"https?://[^\s\"'<]+", text))
    assert "default-src 'none'" in text


@pytest.mark.parametrize("run", [Recorded(), recorded(chunks=0), recorded(chunks=1, item=0.0)])
def test_runs_with_little_in_them_have_a_page(run: Recorded) -> None:
    """Nothing was recorded, no chunk was run, or no time passed."""
    assert page(run).startswith("<!doctype html>")
    assert "</svg>" in timeline(run, "light")


def test_names_of_the_program_are_text_in_a_page() -> None:
    """A task, a place or a repr that looks like markup is shown as it is."""
    evil = "</script><script>alert(1)</script><b>'\""
    run = recorded()
    call = dataclasses.replace(run.calls[0], task=evil, place=evil, options={evil: evil})
    text = page(dataclasses.replace(run, program=evil, calls=(call,), problems=(evil,)))
    assert "alert(1)</script>" not in text
    assert evil in data_of(text)["tasks"]
    assert evil in unescape(text)


def test_a_page_of_ten_thousand_chunks_is_below_two_megabytes() -> None:
    """Each item is a chunk of its own, on sixty-four workers."""
    assert len(page(recorded(chunks=10_000, count=1, workers=64))) < 2_000_000


def test_a_page_of_a_hundred_thousand_chunks_has_some_thousand_bars() -> None:
    """Neighbours are joined, and no item is lost."""
    text = page(recorded(chunks=100_000, count=2))
    bars = [bar for lane in data_of(text)["lanes"] for bar in lane["bars"] if bar[6] >= 1]
    assert 4_000 < len(bars) <= lanes.BARS
    assert 200_000 == sum(bar[5] for bar in bars)
    assert 100_000 == sum(bar[6] for bar in bars)
    assert len(text) < 2_000_000


def test_a_notebook_shows_the_page_in_a_frame_of_its_own() -> None:
    """Styles and script of the page do not meet those of the notebook."""
    told = re.fullmatch(r'<iframe srcdoc="([^"]*)"[^>]*></iframe>', inline(recorded()))
    assert told
    assert page(recorded()) == unescape(told[1])


# --------------------------------------------------------------------------------------- lanes


def test_a_lane_has_the_chunks_of_its_worker() -> None:
    """The critical path and the caller come first."""
    shown = lanes.lanes(recorded(workers=2, chunks=5))
    assert ["critical path", "calls", "process 0", "process 1"] == [lane.name for lane in shown]
    assert [3, 2] == [len(lane.bars) for lane in shown[2:]]


def test_a_worker_that_replaces_another_has_its_lane() -> None:
    """One that began before the other ended has its own."""
    first = Worker(0, "process", 1, "process 0", start=0.0, stop=1.0, end="died: SIGKILL")
    second = Worker(1, "process", 2, "process 1", start=0.5, stop=2.0)
    third = Worker(2, "process", 3, "process 0", start=1.1, stop=2.0)
    shown = lanes.lanes(Recorded(seconds=2.0, workers=(first, second, third)))
    assert [[(0.0, 1.0), (1.1, 2.0)], [(0.5, 2.0)]] == [lane.spells for lane in shown[1:]]


def test_deaths_and_retries_are_marked_in_the_lane_of_their_worker() -> None:
    """The start of a worker is no mark."""
    events = (
        Event(0.0, "start", worker=1),
        Event(0.2, "death", "killed by SIGKILL", 0, 1, 7),
        Event(0.3, "retry", call=0, index=7),
    )
    shown = {lane.name: lane.marks for lane in lanes.lanes(recorded(events=events))}
    assert ["death at item 7: killed by SIGKILL"] == [mark.text for mark in shown["process 1"]]
    assert ["retry at item 7"] == [mark.text for mark in shown["calls"]]
    assert [] == shown["process 0"]


def test_many_marks_at_one_place_are_one() -> None:
    """Its text counts them."""
    events = tuple(Event(k / 1e6, "error", "", 0, 0, k) for k in range(1000))
    (lane,) = (lane for lane in lanes.lanes(recorded(events=events)) if lane.name == "process 0")
    assert ["1000 x error"] == [mark.text for mark in lane.marks]


def test_bars_are_joined_only_where_there_are_too_many() -> None:
    """A joined bar has the sums of its parts, and the worst of their outcomes."""
    bars = [Bar(k, k + 0.5, (("compute", 0.5),), "score", 0, k, 1) for k in range(10)]
    bars[9] = dataclasses.replace(bars[9], outcome="died")
    assert bars == lanes.joined(bars, 10)
    half = lanes.joined(bars, 5)
    assert [2] * 5 == [bar.parts for bar in half]
    assert [1.0] * 5 == [dict(bar.phases)["compute"] for bar in half]
    assert ["done"] * 4 + ["died"] == [bar.outcome for bar in half]


# ------------------------------------------------------------------------------------- columns


def test_a_wide_bar_is_a_block_of_its_phases() -> None:
    """Half of four columns decodes, the other half computes."""
    bar = Bar(0.0, 4.0, (("decode", 2.0), ("compute", 2.0)))
    drawn = columns.paths([bar], 4.0, 4)
    assert {"compute": "M2 0h2v100h-2z", "decode": "M0 0h2v100h-2z"} == drawn


def test_many_bars_in_a_column_are_stacked_by_their_shares() -> None:
    """Of each second a quarter was decoding, a half computing, a quarter nothing."""
    bars = [Bar(k / 4, k / 4 + 0.1875, (("decode", 0.0625), ("compute", 0.125))) for k in range(8)]
    drawn = columns.paths(bars, 2.0, 2)
    assert {"compute": "M0 50h2v50h-2z", "decode": "M0 25h2v25h-2z"} == drawn


def test_phases_of_a_call_are_spread_over_it() -> None:
    """Of a call only sums are known."""
    drawn = columns.paths([Bar(0.0, 1.0, (("wait", 0.9), ("store", 0.1)), parts=0)], 1.0, 1)
    assert {"store": "M0 90h1v10h-1z", "wait": "M0 0h1v90h-1z"} == drawn


# -------------------------------------------------------------------------------------- curves


def test_memory_of_workers_is_summed_until_each_ends() -> None:
    """A worker counts with its last sample."""
    samples = (Sample(0.0, 0, 10), Sample(1.0, 1, 20), Sample(3.0, 1, 30))
    gone = Worker(0, "process", 1, "", stop=2.0, end="ended")
    (curve,) = curves.memory(Recorded(samples=samples, workers=(gone,)))
    assert [(0.0, 10), (1.0, 30), (2.0, 20), (3.0, 30)] == list(curve.points)


def test_peaks_stay_where_points_are_thinned_out() -> None:
    """One high sample among ten thousand is drawn."""
    samples = tuple(Sample(float(k), None, 900 if k == 4321 else 1) for k in range(10_000))
    (curve,) = curves.memory(Recorded(samples=samples, seconds=1e4))
    assert 900 == curve.most
    assert len(curve.points) <= curves.POINTS


# ------------------------------------------------------------------------------------ terminal


def test_text_is_plain_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """No colours are written where no terminal is."""
    terminal.show("1 death", [Advice("topic", "1 x 2", "Less.", "less()")])
    assert "1 death\n" == capsys.readouterr().out


def test_text_has_colours_in_a_terminal_with_rich(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words are the same."""
    pytest.importorskip("rich", reason="comes with sharedtask[demo]")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal.show("events: 1 death", [Advice("topic", "1 x 2", "Less.", "less()")])
    written = capsys.readouterr().out
    assert "\x1b[" in written
    assert "events: 1 death\n" == re.sub(r"\x1b\[[\d;]*m", "", written)


def test_pictures_are_the_same_each_time() -> None:
    """The docs' pictures do not change by themselves."""
    assert timeline(recorded(), "dark") == timeline(recorded(), "dark")
    assert Span("outside", 0.0, 1.0).phase not in timeline(recorded(), "light")


def test_a_real_run_is_shown_with_its_advice(tmp_path: Path) -> None:
    """The page, the text and the notebook have the advice of the trace."""
    task = parallel(lambda x, table: x).with_options(backend="process", workers=2)
    table = {number: str(number) for number in range(50_000)}
    with trace() as run:
        task.with_options(chunksize=1).map(range(60), table=table)
    (found,) = (advice for advice in run.advice if advice.topic == "unmarked")
    assert "table: Shared[dict]" == found.code
    run.to_html(tmp_path / "run.html")
    assert "table: Shared[dict]" in (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "table: Shared[dict]" in str(run)
    assert run._repr_html_().startswith("<iframe")
