"""The parts of the page that are text: figures, advice, calls, workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from sharedtask.text import duration, human
from sharedtask.tracing.advising import Advice
from sharedtask.tracing.records import Call, Recorded, Value, Worker

from .palette import css_class, in_order

CALLS, WORKERS = 200, 200  # rows
SHARE = 0.005  # of a bar: what is less is not drawn


def cards(recorded: Recorded) -> str:
    """The figures of the whole run."""
    calls, outer = recorded.calls, recorded.outer
    items = sum(call.items for call in calls)
    known = {
        "time": (duration(recorded.seconds), f"{duration(recorded.in_calls)} with a call open"),
        "calls": (f"{len(outer):,}", f"of {_number(len({c.task for c in outer}), 'task')}"),
        "items": (f"{items:,}", f"{duration(recorded.compute)} in all"),
        "speed-up": (f"{recorded.speedup:.2f}", f"on {_number(recorded.cpus, 'core')}"),
        "efficiency": (f"{recorded.efficiency:.0%}", "of what the cores could do"),
        "sent": (human(_message(calls)), "inside messages"),
        "shared": (human(_memory(calls)), f"and {human(_uncopied(calls))} not copied"),
    }
    return "".join(
        f"<div class=card><dt>{name}</dt><dd>{value}<small>{escape(more)}</small></dd></div>"
        for name, (value, more) in known.items()
    )


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _message(calls: Iterable[Call]) -> int:
    return sum(call.by_message for call in calls)


def _memory(calls: Iterable[Call]) -> int:
    return sum(call.by_memory for call in calls)


def _uncopied(calls: Iterable[Call]) -> int:
    return sum(call.uncopied for call in calls)


def advice(found: Sequence[Advice]) -> str:
    """Each with its figure and its line of code."""
    if not found:
        return "<p class=quiet>Nothing to say: no habit that costs was seen in this run.</p>"
    return "".join(
        f"<li><b>{escape(each.figure)}</b><p>{escape(each.sentence)}</p>"
        f"<pre><code>{escape(each.code)}</code></pre></li>"
        for each in found
    ).join(("<ol class=advice>", "</ol>"))


# --------------------------------------------------------------------------------------- calls


_CALL_COLUMNS = (
    ("call", "l"),
    ("backend", "l"),
    ("time", "r"),
    ("items", "r"),
    ("item: median", "r"),
    ("p95", "r"),
    ("max", "r"),
    ("speed-up", "r"),
    ("sent", "r"),
    ("shared", "r"),
    ("where the caller's time went", "l"),
)


def calls(recorded: Recorded) -> str:
    """A row for each call, the longest if there are many; details on demand."""
    if not recorded.calls:
        return "<p class=quiet>No call was made.</p>"
    longest = sorted(recorded.calls, key=lambda call: -call.seconds)[:CALLS]
    rows = "".join(_call_row(call) for call in sorted(longest, key=lambda call: call.number))
    left = len(recorded.calls) - len(longest)
    more = f"<p class=quiet>{left:,} shorter calls are not in the table.</p>" if left else ""
    return _table(_CALL_COLUMNS, rows) + more


def _call_row(call: Call) -> str:
    inside = "" if call.parent is None else f" <i>in worker {call.parent}</i>"
    name = f"<b>{escape(call.task)}</b>.{escape(call.method)}{inside}"
    cells = (
        f"<details><summary>{name}</summary>{_details(call)}</details>{_trouble(call)}",
        escape(f"{call.backend} x {call.workers}"),
        duration(call.seconds),
        f"{call.items:,}",
        duration(call.times.median),
        duration(call.times.p95),
        duration(call.times.max),
        f"{call.speedup:.2f}",
        human(call.by_message),
        human(call.by_memory),
        phase_bar(call.phases),
    )
    return _row(cells, _CALL_COLUMNS)


def _trouble(call: Call) -> str:
    counts = {
        "death": call.deaths,
        "retry": call.retries,
        "timeout": call.timeouts,
        "error": call.errors,
    }
    told = "".join(
        f"<span class='badge k-{kind}'>{_plural(count, kind)}</span>"
        for kind, count in counts.items()
        if count
    )
    return told + ("" if call.finished else "<span class=badge>not finished</span>")


def _plural(count: int, kind: str) -> str:
    many = "retries" if kind == "retry" else f"{kind}s"
    return f"{count:,} {kind if count == 1 else many}"


def _details(call: Call) -> str:
    lines = [escape(call.place), *_waits(call), *map(_value, call.values)]
    slow = [
        f"item {item.index:,}{f' ({escape(item.text)})' if item.text else ''}: "
        f"{duration(item.seconds)}"
        for item in call.slowest
    ]
    if slow:
        lines.append(f"slowest: {'; '.join(slow)}")
    phases = ", ".join(
        f"{escape(phase)} {duration(call.phases[phase])}"
        for phase in in_order(call.phases)
        if call.phases[phase]
    )
    lines.append(f"caller: {phases}")
    options = ", ".join(f"{name}={value}" for name, value in call.options.items())
    lines.append(escape(options and f"options: {options}"))
    return "".join(f"<div>{line}</div>" for line in lines if line)


def _waits(call: Call) -> Iterator[str]:
    if call.order_wait:
        yield f"results waited {duration(call.order_wait)} for earlier ones"
    if call.lock_wait:
        yield f"items waited {duration(call.lock_wait)} for locks"
    if call.core_wait:
        yield f"items waited about {duration(call.core_wait)} for a core"
    if call.cpu_beside:
        yield (
            f"cores worked {duration(call.cpu)} for the items, {duration(call.cpu_beside)} of it in"
            " other threads"
        )


def _value(value: Value) -> str:
    name = f"<b>{escape(value.name)}</b> {escape(value.kind)}, {human(value.nbytes)}: "
    if not value.marked:
        return name + (f"not marked, sent {value.sent:,} x" if value.sent else "not marked")
    if value.hit:
        return name + f"found again, compared in {duration(value.compare)}"
    rate = f", {human(value.store_rate)}/s" if value.store_rate else ""
    why = f"stored ({escape(value.miss)})" if value.miss else escape(value.travel)
    return name + f"{why} in {duration(value.encode + value.store)}{rate}"


# ------------------------------------------------------------------------------------- workers


_WORKER_COLUMNS = (
    ("worker", "l"),
    ("pid", "r"),
    ("busy", "r"),
    ("no work", "r"),
    ("caller busy", "r"),
    ("chunks", "r"),
    ("items", "r"),
    ("memory peak", "r"),
    ("where its time went", "l"),
)


def workers(recorded: Recorded) -> str:
    """A row for each worker."""
    if not recorded.workers:
        return ""
    rows = "".join(map(_worker_row, recorded.workers[:WORKERS]))
    left = len(recorded.workers) - WORKERS
    more = f"<p class=quiet>{left:,} more workers are not in the table.</p>" if left > 0 else ""
    return _table(_WORKER_COLUMNS, rows) + more


def _worker_row(worker: Worker) -> str:
    node = f" on {escape(worker.node)}" if worker.node else ""
    end = f"<span class='badge k-{_kind(worker.end)}'>{escape(worker.end)}</span>"
    cells = (
        f"{escape(worker.name)}{node}{end if worker.end not in ('', 'ended') else ''}",
        str(worker.pid),
        duration(worker.busy),
        duration(worker.phases.get("wait", 0.0)),
        duration(worker.phases.get("starved", 0.0)),
        f"{worker.chunks:,}",
        f"{worker.items:,}",
        human(worker.memory_peak) if worker.memory_peak else "-",
        phase_bar(worker.phases),
    )
    return _row(cells, _WORKER_COLUMNS)


def _kind(end: str) -> str:
    return "death" if end.startswith("died") else "recycled"


# --------------------------------------------------------------------------------------- parts


def phase_bar(phases: Mapping[str, float]) -> str:
    """Shares of a time, side by side; the tooltip has the figures."""
    whole = sum(phases.values())
    if not whole:
        return ""
    shown = [phase for phase in in_order(phases) if phases[phase] >= SHARE * whole]
    title = ", ".join(f"{phase} {duration(phases[phase])}" for phase in shown)
    parts = "".join(
        f"<i class={css_class(phase)} style='width:{phases[phase] / whole:.1%}'></i>"
        for phase in shown
    )
    return f"<div class=share title='{escape(title)}'>{parts}</div>"


def _table(columns: Sequence[tuple[str, str]], rows: str) -> str:
    head = "".join(f"<th class={side}>{name}</th>" for name, side in columns)
    return f"<div class=scroll><table><tr>{head}</tr>{rows}</table></div>"


def _row(cells: Sequence[str], columns: Sequence[tuple[str, str]]) -> str:
    told = zip(cells, columns, strict=True)
    return f"<tr>{''.join(f'<td class={side}>{cell}</td>' for cell, (_name, side) in told)}</tr>"


def notes(recorded: Recorded) -> str:
    """What is missing, and why."""
    dropped = [
        f"{count:,} {what} are not here any more; counts and totals include them."
        for what, count in recorded.dropped.items()
        if count
    ]
    told = [*dropped, *recorded.problems]
    return "".join(f"<p class=quiet>{escape(note)}</p>" for note in told)
