"""The time of workers: each moment of a worker belongs to one phase.

chunk | gap | chunk        a gap is "idle" without an open call, "starved" until the caller has
                           sent the next chunk, and "wait" after that
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sharedtask.system.records import dataclass, field

from .records import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .records import Span

__all__ = ["Account", "Openings"]

_MOST_OPENINGS = 4096


class Openings:
    """The times during which at least one call was open."""

    def __init__(self) -> None:
        self._closed: deque[tuple[float, float]] = deque(maxlen=_MOST_OPENINGS)
        self._since = 0.0
        self._count = 0

    def begin(self, at: float) -> None:
        """A call begins."""
        if not self._count:  # threads may tell of a begin before an earlier end
            self._since = max(at, self._closed[-1][1]) if self._closed else at
        self._count += 1

    def end(self, at: float) -> None:
        """A call ends."""
        self._count -= 1
        if not self._count:
            self._closed.append((self._since, max(at, self._since)))

    def within(self, start: float, stop: float) -> float:
        """How many seconds between these times a call was open."""
        found = max(stop - max(start, self._since), 0.0) if self._count else 0.0
        for begun, ended in reversed(self._closed):
            if ended <= start:
                break
            found += max(min(stop, ended) - max(start, begun), 0.0)
        return found


@dataclass(slots=True)
class Account:
    """What is known of a worker. All before ``until`` belongs to a phase."""

    number: int
    backend: str
    pid: int
    name: str
    node: str = ""
    start: float = 0.0
    until: float = 0.0
    is_new: bool = False  # it was started during the trace, and has run nothing yet
    end: str = ""
    ended: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    chunks: int = 0
    items: int = 0
    decodings: int = 0
    memory_peak: int = 0

    def spend(self, phase: str, seconds: float) -> None:
        """Count time to a phase."""
        if seconds > 0:
            self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def pass_to(self, start: float, sent: float, openings: Openings) -> None:
        """The gap before a chunk that it takes at ``start`` and that was sent at ``sent``."""
        if self.is_new:
            self.is_new = False
            # A caller that is kept from its core notes the start after the first chunk has begun.
            self.start = self.until = min(self.until, start)
            self.spend("start", start - self.until)
        elif start > self.until:
            opened = openings.within(self.until, start)
            starved = openings.within(self.until, min(max(sent, self.until), start))
            self.spend("idle", start - self.until - opened)
            self.spend("starved", starved)
            self.spend("wait", opened - starved)
        self.until = max(start, self.until)

    def take(self, spans: Iterable[Span]) -> None:
        """The phases of a chunk."""
        for span in spans:
            self.spend(span.phase, span.stop - max(span.start, self.until))
            self.until = max(span.stop, self.until)

    def record(self, now: float, openings: Openings) -> Worker:
        """The record of this worker as of now."""
        stop = now if self.ended is None else self.ended
        phases, left = dict(self.phases), max(stop - self.until, 0.0)
        opened = openings.within(self.until, stop)
        for phase, seconds in (("wait", min(opened, left)), ("idle", left - min(opened, left))):
            if seconds:
                phases[phase] = phases.get(phase, 0.0) + seconds
        return Worker(
            self.number,
            self.backend,
            self.pid,
            self.name,
            self.node,
            self.start,
            max(stop, self.until),
            self.end,
            phases,
            self.chunks,
            self.items,
            self.decodings,
            self.memory_peak,
        )
