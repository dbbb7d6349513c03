"""Advice as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from .advice import Advice

WIDTH = 100


def lines(advice: Iterable[Advice], width: int = WIDTH) -> Iterator[str]:
    """Each as its figure and sentence, wrapped, and its code below."""
    for each in advice:
        told = f"* {each.figure}: {each.sentence}"
        yield from textwrap.wrap(told, width, subsequent_indent="  ")
        yield from (f"      {line}" for line in each.code.splitlines())
