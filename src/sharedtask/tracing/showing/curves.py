"""Memory and bytes over the time of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sharedtask.system.records import dataclass
from sharedtask.tracing.records import Recorded, Sample

POINTS = 400


@dataclass(frozen=True, slots=True)
class Curve:
    """A value over time; it keeps its value until the next point.

    Attributes:
        name: What it shows.
        css: The class of its line.
        points: Times and bytes.
    """

    name: str
    css: str
    points: Sequence[tuple[float, int]]

    @property
    def most(self) -> int:
        """The largest value."""
        return max((value for _time, value in self.points), default=0)


def memory(recorded: Recorded) -> list[Curve]:
    """Private memory of the program and of all workers together, and what is stored."""
    own = [sample for sample in recorded.samples if sample.worker is None]
    curves = [
        Curve("this process", "m-own", _thin([(s.time, s.private) for s in own])),
        Curve("all workers", "m-workers", _thin(list(_together(recorded)))),
        Curve("stored values", "m-stored", _thin([(s.time, s.stored) for s in own])),
    ]
    return [curve for curve in curves if curve.most]


def moved(recorded: Recorded) -> list[Curve]:
    """Bytes that travelled, from the start."""
    own = [sample for sample in recorded.samples if sample.worker is None]
    curve = Curve("bytes that travelled", "m-moved", _thin([(s.time, s.moved) for s in own]))
    return [curve] if curve.most else []


def _together(recorded: Recorded) -> Iterator[tuple[float, int]]:
    """The sum over workers, each with its last sample until it ended."""
    ends = [Sample(w.stop, w.number) for w in recorded.workers if w.end]
    samples = [sample for sample in recorded.samples if sample.worker is not None]
    now: dict[int | None, int] = {}
    for sample in sorted([*samples, *ends], key=lambda sample: sample.time):
        now[sample.worker] = sample.private
        yield sample.time, sum(now.values())


def _thin(points: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """At most some hundred points: of neighbours the highest, for peaks are what is looked for."""
    if len(points) <= POINTS:
        return points
    step = -(-len(points) // POINTS)
    groups = (points[at : at + step] for at in range(0, len(points), step))
    return [max(group, key=lambda point: point[1]) for group in groups]


def path(curve: Curve, seconds: float, most: int) -> str:
    """The ``d`` of a path in a box of 1000 by 100: steps from point to point."""
    if not seconds or not most:
        return ""
    steps = [(time / seconds * 1000, 100 - value / most * 100) for time, value in curve.points]
    drawn = "".join(f"H{x:.1f}V{y:.1f}" for x, y in steps)
    return f"M{steps[0][0]:.1f} {steps[0][1]:.1f}{drawn}H1000"
