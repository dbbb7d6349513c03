"""What a rule returns, and what several rules ask of the records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from sharedtask.system.records import dataclass
from sharedtask.tracing.records import Call, Recorded

# Less than this share of a run, and less than these seconds, is not worth a change of a program.
WORTHWHILE = 0.05
NOTICEABLE = 0.02


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that costs time or memory, and a way to save it.

    Attributes:
        topic: The name of the rule, as "unmarked".
        figure: The measurement that led to it, as "8.0 MB x 120".
        sentence: What happens, to which thing, and what to do.
        code: A line of Python, or of the shell, that does it.
        cost: About how many seconds of the run it concerns, for the order.
    """

    topic: str
    figure: str
    sentence: str
    code: str
    cost: float = 0.0

    def __str__(self) -> str:
        return f"{self.figure}: {self.sentence}\n    {self.code}"


def matters(recorded: Recorded, seconds: float) -> bool:
    """Whether so many seconds are noticeable, and a share of the time with a call open."""
    return seconds >= NOTICEABLE and seconds >= WORTHWHILE * recorded.in_calls


def by_task(calls: Iterable[Call]) -> Iterator[tuple[str, list[Call]]]:
    """Calls of the same task, by its name."""
    ordered = sorted(calls, key=lambda call: (call.task, call.number))
    for task, several in groupby(ordered, key=lambda call: call.task):
        yield task, list(several)


def apart(call: Call) -> bool:
    """Whether its items run outside the caller's process."""
    return call.backend not in ("serial", "thread")


def at_once(call: Call) -> int:
    """How many items of a call can run at the same time."""
    return max(min(call.workers, call.cpus), 1)
