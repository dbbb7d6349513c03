"""Small pieces of text that several modules need."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "duration", "human", "listed", "one_of", "see"]

DOCUMENTATION = "https://sharedtask.example.org"  # as in pyproject.toml


def see(anchor: str) -> str:
    """Refer to a message on the page of messages: "See https://.../messages/#anchor"."""
    return f"See {DOCUMENTATION}/messages/#{anchor}"


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


def human(size: float) -> str:
    """Bytes in a readable unit: 12.0 GB, 3.1 MB."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds in a readable unit: 2 h 5 min, 12.3 s, 340 ms, 12 us."""
    if seconds >= 99.95:
        minutes, rest = divmod(round(seconds), 60)
        long = f"{minutes // 60} h {minutes % 60} min"
        return long if minutes >= 60 else f"{minutes} min {rest} s"
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{max(seconds, 0.0) * 1e6:.3g} us"
