"""From a tree of parts to rows: small parts are joined in one row of their container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.system.records import dataclass, field

from .advice import Tip
from .report import Row, Totals, Transfer
from .sizes import Weight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .tree import Node

# A part with less than this share of all bytes has no row of its own.
_SHARE, _LEAST = 25, 1000


@dataclass(frozen=True, slots=True)
class Transfers:
    """How the kinds of bytes are sent, which depends on the role of the parameter.

    ``said`` is the reason of parts that have none of their own.
    """

    outside: Transfer = "zero-copy"
    inside: Transfer = "once per worker"
    placed: Transfer = "in place"
    said: str = ""

    def split(self, weight: Weight) -> dict[Transfer, int]:
        """Bytes by the way they are sent; transfers without bytes are left out."""
        found: dict[Transfer, int] = {}
        pairs: tuple[tuple[Transfer, int], ...] = (
            (self.outside, weight.outside),
            (self.inside, weight.inside),
            (self.placed, weight.placed),
            ("zero-copy", weight.captured),
        )
        for way, nbytes in pairs:
            if nbytes:
                found[way] = found.get(way, 0) + nbytes
        return found

    def totals(self, weight: Weight) -> Totals:
        """The same as totals."""
        found = self.split(weight)
        return Totals(
            found.get("zero-copy", 0),
            found.get("once per worker", 0),
            found.get("copied", 0),
            found.get("in place", 0),
        )

    def main(self, weight: Weight) -> Transfer:
        """How most of the bytes are sent."""
        found = self.split(weight)
        return max(found, key=lambda way: found[way]) if found else self.inside


@dataclass(slots=True)
class _Rest:
    """The parts that are too small for a row of their own."""

    weight: Weight = field(default_factory=Weight)
    number: int = 0

    def add(self, weight: Weight, number: int) -> None:
        self.weight += weight
        self.number += number


@dataclass(frozen=True, slots=True)
class Fold:
    """Makes the rows of one value."""

    transfers: Transfers
    limit: int
    section: str = ""

    @classmethod
    def of(cls, transfers: Transfers, whole: int, section: str = "") -> Fold:
        """Join parts that are small compared with ``whole`` bytes."""
        return cls(transfers, max(whole // _SHARE, _LEAST), section)

    def rows(self, node: Node) -> list[Row]:
        """The rows of a value and of its parts, in the order of the value."""
        kept: set[int] = set()
        self._keep(node, kept, met=set())
        rest = _Rest()
        rows = list(self._rows(node, kept, rest))
        if rest.number:
            rows += self._folded(node, rest)
        return rows

    def _keep(self, node: Node, kept: set[int], met: set[int]) -> bool:
        """Find the nodes with rows: large ones, unpicklable ones, large ones that are met again.

        A part that is met again often is listed once only.
        """
        worth = node.refused or node.total.nbytes >= self.limit
        for child in node.children:
            worth |= self._keep(child, kept, met)
        if node.same_as is not None and id(node.same_as) not in met:
            met.add(id(node.same_as))
            worth = node.same_as.total.nbytes >= self.limit
        if worth:
            kept.add(id(node))
        return worth

    def _rows(self, node: Node, kept: set[int], above: _Rest) -> Iterator[Row]:
        """The rows of a node; small remaining parts are added to ``above``."""
        if not any(id(child) in kept for child in node.children):
            yield from self._leaf(node)
            return
        rest = _Rest(node.own, node.small)
        for child in node.children:
            if id(child) in kept:
                yield from self._rows(child, kept, rest)
            else:
                rest.add(child.total, 1)
        if rest.weight.nbytes >= self.limit and rest.number:
            yield from self._folded(node, rest)
        else:
            above.add(rest.weight, rest.number)

    def _leaf(self, node: Node) -> Iterator[Row]:
        if node.cannot:
            yield self._row(node, node.kind, "cannot", 0, Tip(node.cannot, node.tip.advice))
        elif node.same_as is not None:
            yield self._row(node, node.kind, self.transfers.main(node.same_as.total), 0, Tip())
        else:
            tip = node.tip
            for way, nbytes in self._split(node.total).items():
                yield self._row(node, node.kind, way, nbytes, tip)
                tip = Tip()

    def _folded(self, node: Node, rest: _Rest) -> Iterator[Row]:
        kind = f"and {rest.number:,} smaller part{'s' if rest.number > 1 else ''}"
        for way, nbytes in self._split(rest.weight).items():
            yield self._row(node, kind, way, nbytes, Tip())

    def _split(self, weight: Weight) -> dict[Transfer, int]:
        """Bytes by way, the most first; a way with few bytes is counted with the others."""
        split, main = self.transfers.split(weight), self.transfers.main(weight)
        found: dict[Transfer, int] = {main: sum(split.values())}
        for way, nbytes in split.items():
            if nbytes >= self.limit and way != main:
                found[way] = nbytes
                found[main] -= nbytes
        return found

    def _row(self, node: Node, kind: str, way: Transfer, nbytes: int, tip: Tip) -> Row:
        why = tip.why or self.transfers.said
        return Row(node.path, kind, nbytes, way, why, tip.advice, self.section)
