"""An explanation: rows and totals, as plain text, in a terminal, in a notebook."""

from __future__ import annotations

import html
import sys
import textwrap
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypeAlias

from sharedtask.memory import capacity
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator

Transfer: TypeAlias = Literal["zero-copy", "once per worker", "copied", "in place", "cannot"]

_MEANINGS: dict[Transfer, str] = {
    "zero-copy": "in shared memory, mapped by each worker",
    "once per worker": "in the pickle: decoded once in each worker, then kept",
    "copied": "pickled or copied again in each call",
    "in place": "in shared memory already: nothing is copied",
    "cannot": "cannot be pickled: a call raises UnshareableError or SerializationError",
}
_COLOURS: dict[Transfer, str] = {
    "zero-copy": "green",
    "in place": "green",
    "once per worker": "cyan",
    "copied": "yellow",
    "cannot": "bold red",
}
_WIDTH, _PATH, _KIND = 100, 38, 30
_HEADING = ("PATH", "KIND", "BYTES", "TRAVELS")


@dataclass(frozen=True, slots=True)
class Row:
    """One part of a value.

    Attributes:
        path: The Python expression for it, as in errors of a call.
        kind: Its description.
        nbytes: Bytes that are sent, or in shared memory; 0 for a part that an earlier row includes.
        travels: "zero-copy", "once per worker", "copied", "in place" or "cannot".
        why: The reason, if ``travels`` does not explain it.
        advice: A better way, "" if there is none.
        section: In the explanation of a task: its role, or that the function captures it.
    """

    path: str
    kind: str
    nbytes: int
    travels: Transfer
    why: str = ""
    advice: str = ""
    section: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes by the way they are sent."""

    zero_copy: int = 0
    once_per_worker: int = 0
    copied: int = 0
    in_place: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.zero_copy + other.zero_copy,
            self.once_per_worker + other.once_per_worker,
            self.copied + other.copied,
            self.in_place + other.in_place,
        )

    def transfers(self) -> Iterator[tuple[Transfer, int]]:
        """The transfers that are used, with their bytes."""
        yield "zero-copy", self.zero_copy
        yield "once per worker", self.once_per_worker
        yield "copied", self.copied
        yield "in place", self.in_place


@dataclass(frozen=True, slots=True, repr=False)
class Explanation:
    """The parts of a value, and how each is sent to the workers.

    ``print`` and the interactive prompt show a plain table, ``show()`` a table in colours if the
    terminal has them, a notebook an HTML table.

    Attributes:
        title: The description of the explained value.
        rows: The parts; small parts share one row.
        totals: Bytes by the way they are sent.
        put_seconds: About how long the first call takes to put it into shared memory; None where
            that is impossible.
        attach_seconds: About how long each worker takes to unpickle it, once.
        notes: How the figures were obtained.
    """

    title: str
    rows: tuple[Row, ...]
    totals: Totals
    put_seconds: float | None = None
    attach_seconds: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        title = textwrap.wrap(self.title, _WIDTH, subsequent_indent="    ")
        return "\n".join((*title, *_table(self.rows), "", *self._summary()))

    __repr__ = __str__

    def show(self) -> None:
        """Print it; in colours on a terminal if the package rich is installed."""
        if sys.stdout.isatty() and find_spec("rich") is not None:
            _show_rich(self)
        else:
            sys.stdout.write(f"{self}\n")

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        heading = "".join(f"<th>{word.title()}</th>" for word in (*_HEADING, "WHY", "ADVICE"))
        rows = "".join(_html_row(row) for row in self.rows)
        below = "<br>".join(html.escape(line) for line in self._summary())
        title = html.escape(self.title)
        return f"<table><caption>{title}</caption><tr>{heading}</tr>{rows}</table><p>{below}</p>"

    def _summary(self) -> Iterator[str]:
        for way, nbytes in self.totals.transfers():
            if nbytes:
                yield f"{way:15}  {capacity.human(nbytes):>9}  {_MEANINGS[way]}"
        if any(row.travels == "cannot" for row in self.rows):
            yield f"{'cannot':15}  {'':9}  {_MEANINGS['cannot']}"
        if self.put_seconds is not None:
            yield f"{'first put':15}  {_seconds(self.put_seconds):>9}  once, in the caller"
        if self.attach_seconds is not None:
            yield f"{'attaching':15}  {_seconds(self.attach_seconds):>9}  once, in each worker"
        for note in self.notes:
            yield from textwrap.wrap(note, _WIDTH)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


# ------------------------------------------------------------------------------- plain text


def _table(rows: tuple[Row, ...]) -> Iterator[str]:
    fields = [_fields(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(_HEADING, *fields, strict=True)]
    yield _aligned(_HEADING, widths)
    section = ""
    for row, each in zip(rows, fields, strict=True):
        if row.section != section:
            section = row.section
            yield f"-- {section}"
        yield _aligned(each, widths)
        if row.advice or row.travels == "cannot":
            yield from _indented(row)


def _fields(row: Row) -> tuple[str, str, str, str]:
    nbytes = capacity.human(row.nbytes) if row.nbytes else "-"
    return _short(row.path, _PATH), _short(row.kind, _KIND), nbytes, row.travels


def _aligned(fields: tuple[str, ...], widths: list[int]) -> str:
    path, kind, nbytes, travels = fields
    line = f"{path:{widths[0]}}  {kind:{widths[1]}}  {nbytes:>{widths[2]}}  {travels}"
    return line.rstrip()


def _indented(row: Row) -> list[str]:
    said = " -> ".join(text for text in (row.why, row.advice) if text)
    return textwrap.wrap(said, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _short(text: str, limit: int) -> str:
    """The beginning and the end, the most informative parts of a path."""
    if len(text) <= limit:
        return text
    tail = (limit - 3) // 2
    return f"{text[: limit - 3 - tail]}...{text[-tail:]}"


# ------------------------------------------------------------------------------- elsewhere


def _html_row(row: Row) -> str:
    path = f"{row.section}: {row.path}" if row.section else row.path
    nbytes = capacity.human(row.nbytes) if row.nbytes else ""
    fields = (path, row.kind, nbytes, row.travels, row.why, row.advice)
    return f"<tr>{''.join(f'<td>{html.escape(field)}</td>' for field in fields)}</tr>"


def _show_rich(told: Explanation) -> None:
    """Print the same text, with the same lines, in colours."""
    from rich.console import Console
    from rich.text import Text

    text = Text(str(told))
    for way, colour in _COLOURS.items():
        text.highlight_regex(rf"(?m)(?<=  ){way}$|^{way}(?=  )", colour)
    text.highlight_regex(r"(?m)^    .*$", "dim")
    text.highlight_regex(r"(?m)^(PATH .*|-- .*)$", "bold")
    Console().print(text, soft_wrap=True)
