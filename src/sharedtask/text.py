"""Small pieces of error text that several modules need."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "listed", "one_of"]


def did_you_mean(word: str, known: Iterable[str], form: str = "{!r}") -> str:
    """Return " Did you mean 'x'?" for the nearest known word, "" if none is near."""
    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean {form.format(near[0])}?" if near else ""


def one_of(words: Iterable[str]) -> str:
    """Join words as in "a, b or c"."""
    *head, last = words
    return f"{', '.join(head)} or {last}" if head else last


def listed(words: Iterable[str]) -> str:
    """Join words as in "a, b and c"."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
