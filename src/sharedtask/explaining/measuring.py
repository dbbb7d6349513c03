"""Measures values, and builds an explanation from the measurements."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sharedtask.explaining.report import Explanation, Row, Totals
from sharedtask.explaining.tree import Node, Walk, blame
from sharedtask.memory import capacity
from sharedtask.serialization import codec
from sharedtask.serialization.codec import FAILURES
from sharedtask.store.handles import Handle
from sharedtask.system.records import dataclass

from . import timings
from .sizes import Weight, of_payload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .rows import Transfers

# Seconds: for the walk, for encoding all of a value, and the limit for beginning anything.
_WALK, _ENCODE, _ENOUGH = 0.8, 0.8, 1.5
_LARGE_PICKLE = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """The measurements of one value.

    Attributes:
        node: The tree of its parts.
        weight: Its bytes; exact if all of it was encoded, else the sum of the parts.
        exact: Whether the bytes are exact.
        cut: Whether some parts were not visited for lack of time.
        attach: Seconds that decoding took, None if it was not tried.
    """

    node: Node
    weight: Weight
    exact: bool
    cut: bool = False
    attach: float | None = None

    @property
    def refused(self) -> bool:
        """Whether a part of it cannot be pickled."""
        return self.node.refused

    @property
    def attach_seconds(self) -> float:
        """Seconds to decode it in a worker, measured or estimated."""
        if self.attach is not None:
            return self.attach
        return self.weight.inside / timings.PICKLE_BYTES_PER_SECOND


class Measure:
    """Measures values one after the other, all of them in about two seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def walk(self, *, in_place: bool = True, capture_from: int | None = None) -> Walk:
        """A walk through values that are sent together."""
        return Walk(self._began + _WALK, in_place=in_place, capture_from=capture_from)

    def measure(self, walk: Walk, value: object, name: str) -> Found:
        """Walk through a value, and encode all of it if that is quick; never raises."""
        node = walk.visit(value, name)
        found = Found(node, node.total, exact=False, cut=walk.cut)
        if type(value) is Handle or node.same_as is not None:
            return replace(found, exact=True)
        if found.refused or walk.cut or self._is_late() or found.weight.seconds > _ENCODE:
            return found
        return self._encoded(found, value, in_place=walk.in_place)

    def _encoded(self, found: Found, value: object, *, in_place: bool) -> Found:
        began, node = time.perf_counter(), found.node
        try:
            payload = codec.encode(value, in_place=in_place)
        except FAILURES as error:
            blame(node, value, error)
            return found
        seconds = time.perf_counter() - began
        weight = of_payload(payload, None, seconds)
        weight = replace(
            weight,
            placed=found.weight.placed,
            captured=found.weight.captured,
            outside=max(weight.outside - found.weight.captured, 0),
        )
        if not node.children:
            node.own, node.sampled = weight, False
            node.sum_up()
        elif _meets_another(node):  # the parts of that are sent with it
            weight = found.weight
        else:
            node.scale_to(weight)
        # Decoding takes about as long as encoding did.
        attach = None if self._is_late(weight.seconds) else timings.decode_seconds(payload)
        return replace(found, weight=weight, exact=True, attach=attach)

    def _is_late(self, needed: float = 0.0) -> bool:
        return time.monotonic() - self._began + needed > _ENOUGH


def _meets_another(node: Node) -> bool:
    """Whether a value has a part in common with an earlier one."""
    own = {id(part) for part in node.walk()}
    return any(part.same_as is not None and id(part.same_as) not in own for part in node.walk())


def explanation_of(
    title: str, rows: Sequence[Row], found: Sequence[tuple[Found, Transfers]]
) -> Explanation:
    """Build the explanation of a call's values, each with how it is sent."""
    totals, shared, attach = Totals(), Weight(), 0.0
    for each, transfers in found:
        totals += transfers.totals(each.weight)
        if transfers.outside == "zero-copy":
            shared += each.weight
            attach += each.attach_seconds
        else:
            shared += Weight(outside=each.weight.captured)
    values = [each for each, _ in found]
    notes = tuple(_notes(values))
    if any(each.refused for each in values):
        return Explanation(title, tuple(rows), totals, notes=notes)
    speed = timings.bandwidth(shared.inside + shared.outside)
    put = timings.put_seconds(shared, speed)
    return Explanation(
        title, tuple(rows), totals, put, attach, (*notes, _about_times(values, speed))
    )


def _notes(found: Sequence[Found]) -> Iterator[str]:
    sampled = any(part.sampled for each in found for part in each.node.walk())
    if any(each.cut for each in found):
        yield "Bytes are estimates: the time was over before all parts were seen."
    elif all(each.exact for each in found):
        if sampled:
            yield "Totals are exact. Large containers were sampled."
    elif sampled:
        yield "Bytes are estimates: large containers were sampled."
    else:
        yield "Bytes are estimates: the whole was not encoded."


def _about_times(found: Sequence[Found], speed: float | None) -> str:
    rate = f"{capacity.human(speed or timings.BYTES_PER_SECOND)}/s into shared memory"
    how = "measured now" if speed else "a usual figure"
    if any(each.attach is None and each.weight.inside > _LARGE_PICKLE for each in found):
        decoding = f"decoding at {capacity.human(timings.PICKLE_BYTES_PER_SECOND)}/s, not tried"
    else:
        decoding = "decoding tried here once"
    return f"Times are estimates: {rate}, {how}; {decoding}."
