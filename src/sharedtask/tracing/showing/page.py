"""The whole page: one file, no network."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from sharedtask.text import duration, human
from sharedtask.tracing.advising import advise
from sharedtask.tracing.records import Recorded

from . import columns, curves, tables
from .curves import Curve
from .lanes import Bar, Lane, lanes
from .palette import css_class, in_order, shade, styles

COLUMNS = 8_000  # of all lanes as they are written; the script draws finer ones
MICROSECONDS = 1e6


def page(recorded: Recorded) -> str:
    """The page of a run, as HTML that refers to nothing outside itself."""
    shown = lanes(recorded)
    phases = _phases(recorded, shown)
    title = f"{recorded.program} - run" if recorded.program else "run"
    return Template(_file("page.html")).substitute(
        title=escape(title),
        program=escape(recorded.program or "this session"),
        told=escape(_told(recorded)),
        style=_file("page.css"),
        light=styles(phases, dark=False),
        dark=styles(phases, dark=True),
        cards=tables.cards(recorded),
        advice=tables.advice(advise(recorded)),
        lanes="".join(_lane(lane, recorded.seconds, len(shown)) for lane in shown),
        ticks=_ticks(recorded.seconds),
        legend=_legend(phases),
        charts=_chart("memory", curves.memory(recorded), recorded.seconds)
        + _chart("travelled", curves.moved(recorded), recorded.seconds),
        calls=tables.calls(recorded),
        workers=tables.workers(recorded),
        notes=tables.notes(recorded),
        data=_data(recorded, shown, phases),
        script=_file("page.js"),
    )


def inline(recorded: Recorded) -> str:
    """The page in a frame of its own, for the output of a notebook's cell."""
    height = min(520 + 26 * len(lanes(recorded)), 900)
    return (
        f'<iframe srcdoc="{escape(page(recorded))}" title="run" sandbox="allow-scripts" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )


@cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _told(recorded: Recorded) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(recorded.began))
    return (
        f"{when}, {duration(recorded.seconds)}, {recorded.cpus} cores, "
        f"Python {recorded.python}, sharedtask {recorded.version}"
    )


def _phases(recorded: Recorded, shown: Iterable[Lane]) -> list[str]:
    """Those that the page has."""
    drawn = {phase for lane in shown for bar in lane.bars for phase, _seconds in bar.phases}
    of_calls = {phase for call in recorded.calls for phase in call.phases}
    of_workers = {phase for worker in recorded.workers for phase in worker.phases}
    return in_order(drawn | of_calls | of_workers)


def _legend(phases: Iterable[str]) -> str:
    return "".join(
        f"<span title='{escape(shade(phase).meaning)}'>"
        f"<i class={css_class(phase)}></i>{escape(phase)}</span>"
        for phase in phases
    )


# ------------------------------------------------------------------------------------ timeline


def _lane(lane: Lane, seconds: float, number: int) -> str:
    wide = max(min(600, COLUMNS // number), 50)
    drawn = columns.paths(lane.bars, seconds, wide)
    bars = "".join(f"<path class={css_class(p)} d='{d}'/>" for p, d in drawn.items() if d)
    spells = "".join(
        f"<rect class=spell x={_at(start, seconds, wide)} width={_at(stop - start, seconds, wide)} "
        f"height={columns.HEIGHT} />"
        for start, stop in lane.spells
    )
    marks = "".join(
        f"<b class='mark k-{escape(mark.kind)}' style='left:{_at(mark.time, seconds, 100)}%' "
        f"title='{escape(mark.text)}'></b>"
        for mark in lane.marks
    )
    return (
        f"<div class=lane><span class=name title='{escape(lane.name)}'>{escape(lane.name)}</span>"
        f"<div class=track><svg viewBox='0 0 {wide} {columns.HEIGHT}' preserveAspectRatio=none>"
        f"{spells}{bars}</svg>{marks}</div></div>"
    )


def _at(seconds: float, whole: float, scale: float) -> str:
    return f"{max(min(seconds / whole, 1.0), 0.0) * scale:.2f}" if whole else "0"


def _ticks(seconds: float) -> str:
    return "".join(
        f"<span style='left:{k * 20}%'>{duration(seconds * k / 5) if k else '0'}</span>"
        for k in range(6)
    )


def _chart(name: str, lines: Sequence[Curve], seconds: float) -> str:
    if not lines:
        return ""
    most = max(line.most for line in lines)
    drawn = "".join(
        f"<path class={line.css} d='{curves.path(line, seconds, most)}'/>" for line in lines
    )
    legend = "".join(
        f"<span><i class={line.css}></i>{line.name}, at most {human(line.most)}</span>"
        for line in lines
    )
    return (
        f"<div class=lane><span class=name>{name}<small>{human(most)}</small></span>"
        "<div class='track chart'><svg viewBox='0 0 1000 100' preserveAspectRatio=none>"
        f"{drawn}</svg></div></div><p class=legend>{legend}</p>"
    )


# ---------------------------------------------------------------------------------------- data


def _data(recorded: Recorded, shown: Sequence[Lane], phases: Sequence[str]) -> str:
    """What the script draws and tells: times are whole microseconds, names are numbers."""
    tasks = sorted({bar.task for lane in shown for bar in lane.bars})
    data: dict[str, Any] = {
        "seconds": recorded.seconds,
        "phases": [[phase, css_class(phase)] for phase in phases],
        "tasks": tasks,
        "lanes": [
            {
                "bars": [_numbers(bar, tasks, phases) for bar in lane.bars],
                "marks": [round(mark.time * MICROSECONDS) for mark in lane.marks],
                "spells": [[round(t * MICROSECONDS) for t in spell] for spell in lane.spells],
            }
            for lane in shown
        ],
    }
    written = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return written.replace("<", "\\u003c")


def _numbers(bar: Bar, tasks: Sequence[str], phases: Sequence[str]) -> list[Any]:
    whole = [round(t * MICROSECONDS) for t in (bar.start, bar.stop - bar.start)]
    told: list[Any] = [*whole, tasks.index(bar.task), bar.call, bar.first, bar.count, bar.parts]
    told.append(0 if bar.outcome == "done" else bar.outcome)
    for phase, seconds in bar.phases:
        told += [phases.index(phase), round(seconds * MICROSECONDS)]
    return told
