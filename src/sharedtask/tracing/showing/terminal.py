"""A run in the terminal: its text, with colours where there are any."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec

from sharedtask.tracing.advising import Advice


def show(text: str, advice: Iterable[Advice]) -> None:
    """Print the text of a run, and the advice in it: in colours on a terminal with rich."""
    if sys.stdout.isatty() and find_spec("rich") is not None:
        _show_rich(text, advice)
    else:
        sys.stdout.write(f"{text}\n")


def _show_rich(text: str, advice: Iterable[Advice]) -> None:
    from rich.console import Console
    from rich.text import Text

    shown = Text(text)
    shown.highlight_regex(r"(?m)^(CALL|WORKER) .*$|^[a-z ]+(?=: )", "bold")
    shown.highlight_regex(r"\b\d+ (death|timeout|error)\b|died: \w+", "bold red")
    shown.highlight_regex(r"\b\d+ (retry|recycled)\b|recycled: \w+", "yellow")
    for each in advice:
        shown.highlight_words([each.figure], "bold cyan")
        shown.highlight_words(each.code.splitlines(), "green")
    Console().print(shown, soft_wrap=True)
