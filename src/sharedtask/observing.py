"""Who watches the calls of this process: a trace, or nothing.

The engine asks ``recorder is None`` where a call begins and where something rare happens. All else
that a trace records of a call goes through ``Call.trace``.
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Clock", "Observer", "recorder"]


class Observer(Protocol):
    """What a trace is told that belongs to no call. It never raises, and does not block."""

    def call_begins(self) -> None:
        """A call of a task begins in this thread: its checks count from now on."""

    def traced(self, backend: Any) -> Any:
        """A backend whose sessions are recorded."""
        ...

    def evicted(self, key: int, nbytes: int) -> None:
        """The published value with this identity was released for want of room."""

    def worker_started(self, backend: str, pid: int) -> None:
        """A worker was started."""

    def worker_ended(self, pid: int, how: str, *, expected: bool) -> None:
        """A worker has ended."""


class Clock(Protocol):
    """Times the phases and the items of one chunk, where it runs."""

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before ends."""

    def around(self, call: Any) -> Any:
        """The call of one item, with its time taken."""
        ...

    def compute(self) -> None:
        """The items begin, in this thread."""

    def sent(self, nbytes: int, beside: int) -> None:
        """Results were sent, so many bytes in messages and so many beside them."""

    def note_decoding(self, token: Any, began: float, head: int, mapped: int, objects: int) -> None:
        """A value of so many objects was decoded, since the time ``began``."""

    def leave(self) -> None:
        """The chunk is over, and was told or could not run."""

    def told(self) -> bytes:
        """What was timed, at the end of the chunk."""
        ...


recorder: Observer | None = None
