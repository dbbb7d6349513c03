"""The table in plain text, as Markdown between two markers of a page, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.faults.catalogue import FAULTS
from benchmarks.faults.judge import Marks, Observed, errors, kept, marks
from benchmarks.faults.pools import CONTESTANTS
from benchmarks.report import aligned

LEGEND = "A answered in time, N named what was at fault, U usable at once, C clean: nothing left"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
WHOLE = Marks(answered=True, named=True, usable=True, clean=True)
LINE = 110  # characters of an explanation
TAIL = 2000  # characters of what stands on standard error

Results = Mapping[str, Mapping[str, Observed | str]]  # fault -> contestant -> seen, or why not


def cells(results: Results, names: Sequence[str]) -> Iterator[list[str]]:
    """The lines of the table: a head, the faults, how often each mark was earned, all four."""
    yield [f"{len(results)} faults", *(CONTESTANTS[name].head for name in names)]
    for key, row in results.items():
        yield [FAULTS[key].title, *(shown(key, row[name]) for name in names)]
    yield ["all four marks", *(str(whole(results, name)) for name in names)]
    for at, letter in enumerate("ANUC"):
        each = (sum(each.each[at] for each in earned(results, name)) for name in names)
        yield [f"  {letter}", *map(str, each)]
    yield ["others' results kept", *(str(keeps(results, name)) for name in names)]


def shown(key: str, seen: Observed | str) -> str:
    return seen if isinstance(seen, str) else str(marks(FAULTS[key], seen))


def earned(results: Results, name: str) -> list[Marks]:
    """The marks of one contestant, fault by fault."""
    rows = ((key, row[name]) for key, row in results.items())
    return [marks(FAULTS[key], seen) for key, seen in rows if isinstance(seen, Observed)]


def whole(results: Results, name: str) -> int:
    """In how many faults it has all four."""
    return earned(results, name).count(WHOLE)


def keeps(results: Results, name: str) -> int:
    """In how many faults of an item the others' results arrive."""
    rows = ((FAULTS[key], row[name]) for key, row in results.items())
    return sum(
        not fault.words and isinstance(seen, Observed) and kept(seen.at("answer"))
        for fault, seen in rows
    )


def table(results: Results, names: Sequence[str]) -> Iterator[str]:
    """What the terminal shows."""
    yield from aligned(list(cells(results, names)))
    yield LEGEND


def reasons(results: Results, names: Sequence[str]) -> Iterator[str]:
    """For each cell without all four marks, what was seen."""
    for key, row in results.items():
        for name in names:
            seen = row[name]
            if isinstance(seen, Observed) and marks(FAULTS[key], seen) != WHOLE:
                yield f"{key}, {CONTESTANTS[name].head}: {'; '.join(lacking(key, seen))}"


def lacking(key: str, seen: Observed) -> Iterator[str]:
    """One clause for each mark that was not earned."""
    earned = marks(FAULTS[key], seen)
    answer, again = seen.at("answer"), seen.at("again")
    if not (earned.answered and earned.named):
        yield f"answered {outcome(answer)}"
    if not earned.usable:
        yield f"then {outcome(again)}"
    if not earned.clean:
        yield f"left {', '.join(left(seen))}"


def outcome(said: Mapping[str, Any]) -> str:
    """What a map came to, in a few words."""
    if not said["answered"]:
        return "nothing"
    if "raised" in said:
        return f"{said['raised']['class']}: {said['raised']['text']}"[:LINE].splitlines()[0]
    words = [
        place["class"] if isinstance(place, dict) else WORDS[place] for place in said["places"]
    ]
    return ", ".join(words)


WORDS = {True: "right", False: "WRONG"}


def left(seen: Observed) -> Iterator[str]:
    """How the end went, and what there was after it."""
    closed, remains = seen.at("closed"), seen.remains
    if not closed["answered"]:
        yield "a pool that does not close"
    elif "raised" in closed:
        yield f"a close() that raises {closed['raised']['class']}"
    if remains.status is None:
        yield "a program that does not end"
    elif remains.status:
        yield f"exit status {remains.status}"
    yield from remains.noise
    yield from (f"process {command}" for command in remains.processes)
    yield from (f"/dev/shm/{name}" for name in remains.memory)


def markdown(results: Results, names: Sequence[str]) -> Iterator[str]:
    """The same as a table of a page; a bold cell has all four marks."""
    head, *rows = cells(results, names)
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for title, *each in rows:
        yield "| " + " | ".join([title.strip(), *map(emphasised, each)]) + " |"


def emphasised(cell: str) -> str:
    return f"**{cell}**" if cell == str(WHOLE) else cell


def written(page: str, measured: str) -> str:
    """The page with what was measured between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no place for the table: a line {BEGIN}, a line {END}")
    return f"{before}{begin}\n{measured}\n{end}{after}"


def write(path: Path, measured: str) -> None:
    path.write_text(written(path.read_text(), measured))


def as_json(results: Results) -> dict[str, Any]:
    """Everything that was seen, with its marks."""
    return {
        key: {
            name: seen if isinstance(seen, str) else as_figures(key, seen)
            for name, seen in row.items()
        }
        for key, row in results.items()
    }


def as_figures(key: str, seen: Observed) -> dict[str, Any]:
    answer = seen.at("answer")
    return {
        "marks": asdict(marks(FAULTS[key], seen)),
        "others_kept": kept(answer),
        "errors": len(list(errors(answer))),
        **seen.said,
        "remains": {**asdict(seen.remains), "stderr": seen.remains.stderr[-TAIL:]},
        "noise": seen.remains.noise,
    }
