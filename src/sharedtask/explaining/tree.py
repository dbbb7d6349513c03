"""A walk through a value: a tree of its parts with their weights, in bounded time.

The walk follows pickle, within a time limit. Large containers of small values are weighed by a
sample. No part of the value is kept alive after the walk.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from itertools import islice
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.explaining.advice import Tip, tip_for
from sharedtask.serialization import codec, traversal
from sharedtask.serialization.codec import FAILURES
from sharedtask.serialization.libraries import is_data, is_frame
from sharedtask.serialization.unpicklable import Culprit, class_name, find_culprits
from sharedtask.serialization.unshareable import advice_for, cure_for_value
from sharedtask.store.handles import Handle
from sharedtask.system.records import dataclass, field

from .describe import description
from .sizes import Weight, weigh, weigh_column, weigh_sample

if TYPE_CHECKING:
    from collections.abc import Iterator


# Containers with more parts than this are weighed by a sample.
_ALL = 4096
# Parts below this depth are not named: they count for their container.
_DEPTH = 40
_LARGE_ATOM = 1024
_COLUMNS = 500
_ROWS = 2000


@dataclass(slots=True)
class Node:
    """A part of a value.

    Attributes:
        path: Its Python expression.
        kind: Its description.
        own: Bytes of this part that belong to none of ``children``.
        children: The parts with a row of their own.
        small: The number of other parts.
        same_as: The node of its first occurrence, None if this is the first.
        cannot: Why it cannot be pickled, "" if it can.
        tip: The remark about it.
        sampled: Whether ``own`` was estimated.
        total: Bytes of it and of everything inside; set after the walk, as is ``refused``.
        refused: Whether it, or a part of it, cannot be pickled.
    """

    path: str
    kind: str
    own: Weight = field(default_factory=Weight)
    children: list[Node] = field(default_factory=list)
    small: int = 0
    same_as: Node | None = None
    cannot: str = ""
    tip: Tip = field(default_factory=Tip)
    sampled: bool = False

    total: Weight = field(default_factory=Weight)
    refused: bool = False

    def sum_up(self) -> None:
        """Set the fields that depend on the children."""
        self.total = sum((child.total for child in self.children), self.own)
        self.refused = bool(self.cannot) or any(child.refused for child in self.children)

    def scale_to(self, whole: Weight) -> None:
        """Scale the parts so that they add up to the measured whole.

        Each was weighed alone, and together they take less: pickle writes a name once.
        """
        inside = whole.inside / max(self.total.inside, 1)
        outside = whole.outside / self.total.outside if self.total.outside else 1.0
        for part in self.walk():
            part.own = part.own.scaled(inside, outside)
            part.total = part.total.scaled(inside, outside)

    def walk(self) -> Iterator[Node]:
        """Itself and all its descendants."""
        yield self
        for child in self.children:
            yield from child.walk()


class Walk:
    """Walks through values that belong together; parts of several are counted once.

    ``cut``: the time was over before all parts were visited.
    """

    def __init__(
        self, deadline: float, *, in_place: bool = True, capture_from: int | None = None
    ) -> None:
        self.cut = False
        self.in_place = in_place
        self._capture_from = (
            capture_from  # arrays of at least this many bytes are stored by themselves
        )
        self._deadline = deadline
        # The objects met, by identity; they are kept so that ids are not reused.
        self._met: dict[int, tuple[Node, Any]] = {}

    def visit(self, value: Any, path: str, depth: int = 0, owner: type | None = None) -> Node:
        """Make the node of a value; never raises, whatever the value does.

        ``owner`` is the class in whose state it lies, where it has no name there.
        """
        met = self._met.get(id(value))
        if met is not None and not is_small(value):
            return _met_again(met[0], path)
        node = Node(path, description(value))
        self._met[id(value)] = node, value
        try:
            self._fill(node, value, depth, owner)
        except FAILURES as error:
            _blame(node, value, error)
        node.sum_up()
        if not node.cannot:
            tip = node.tip if node.tip.why else tip_for(value, node.own)
            node.tip = tip if owner is None else tip.of_the_inside(owner)
        return node

    def _fill(self, node: Node, value: Any, depth: int, owner: type | None) -> None:
        if type(value) is Handle:
            _weigh_handle(node, value)
        elif is_frame(value) and len(value.columns) <= _COLUMNS:
            self._fill_frame(node, value)
        elif depth > _DEPTH or _is_leaf(value) or cure_for_value(value) is not None:
            node.own = weigh(value, in_place=self.in_place, alone=not depth)
            if (
                self._capture_from is not None
                and _is_array(value)
                and value.nbytes >= self._capture_from
            ):
                node.own = replace(node.own, outside=0, captured=node.own.outside)
        elif _is_plain(value) or (traversal.count(value) or 0) > _ALL:
            self._fill_by_sample(node, value)
        else:
            self._fill_by_parts(node, value, depth, owner)

    def _fill_by_sample(self, node: Node, value: Any) -> None:
        total = node.small = traversal.count(value) or 0
        node.sampled = total > _ALL
        if node.sampled:
            node.own = weigh_sample(value, total, in_place=self.in_place)
        else:
            node.own = weigh(value, in_place=self.in_place)

    def _fill_by_parts(self, node: Node, value: Any, depth: int, owner: type | None) -> None:
        found = traversal.parts(value)
        plain = type(value) in _BUILT_IN
        node.own = Weight(inside=_HEADER, seconds=_ATOM_SECONDS if plain else _OBJECT_SECONDS)
        for step, part in found:
            if is_small(part):
                node.small += 1
                named = 0 if type(value) in _UNNAMED else len(step)
                node.own += Weight(inside=_atom_bytes(part) + named, seconds=_ATOM_SECONDS)
            else:
                inside = type(value) if step.startswith(_WITHOUT_NAMES) else owner
                node.children.append(self.visit(part, node.path + step, depth + 1, inside))
            if time.monotonic() > self._deadline:
                self._cut_short(node, value)
                break
        if not node.children and not node.small:
            node.own = weigh(value, in_place=self.in_place)

    def _cut_short(self, node: Node, value: Any) -> None:
        """The time is over: estimate the remaining parts from those visited."""
        self.cut = node.sampled = True
        seen = len(node.children) + node.small
        unseen = (traversal.count(value) or seen) - seen
        if unseen > 0:
            node.sum_up()
            node.own += node.total.times(unseen / seen)
            node.small += unseen

    def _fill_frame(self, node: Node, frame: Any) -> None:
        """A DataFrame column by column: numbers apart from Python objects."""
        node.own = Weight(inside=_HEADER)
        for step, column in traversal.columns(frame):
            node.children.append(_column(column, node.path + step))
        node.children.append(self.visit(frame.index, f"{node.path}.index"))


_WITHOUT_NAMES = (".__getstate__()", ".__reduce__()")
_HEADER = 6
# Approximate pickling time of parts that are not weighed alone.
_OBJECT_SECONDS, _ATOM_SECONDS = 2e-6, 1e-7
_BUILT_IN = (list, tuple, set, frozenset, dict)
_UNNAMED = (list, tuple, set, frozenset, deque)


def _column(column: Any, path: str) -> Node:
    """The node of a column: numbers are memory; others are encoded by a sample."""
    node = Node(path, f"{column.dtype} column of {len(column):,}")
    if hasattr(column.dtype, "itemsize") and column.dtype.kind in "biufcmM":
        node.own = Weight(outside=len(column) * column.dtype.itemsize)
    else:
        node.sampled = len(column) > _ROWS
        node.own = weigh_column(column.array, _ROWS)
        node.tip = tip_for(column, node.own)
    node.sum_up()
    return node


def _weigh_handle(node: Node, handle: Handle[Any]) -> None:
    if handle.closed:
        node.cannot = "this handle is closed"
        node.tip = Tip(advice="share the value again")
    else:
        node.own = Weight(placed=handle.nbytes)
        node.tip = Tip(why="shared already, by share() or attach()")


def _is_array(value: Any) -> bool:
    return type(value) is np.ndarray and not traversal.is_object_array(value)


def _is_leaf(value: Any) -> bool:
    """Whether a value is weighed as a whole."""
    cls = type(value)
    if cls in traversal.ATOMS or cls in _NAMED or issubclass(cls, type):
        return True
    if cls is FunctionType:
        return not traversal.is_sent_by_value(value)
    return is_data(value) and not traversal.is_object_array(value)


_NAMED = (BuiltinFunctionType, ModuleType)


def _is_plain(value: Any) -> bool:
    """Whether a container of some length contains only small values."""
    if (traversal.count(value) or 0) < _FEW or traversal.is_object_array(value):
        return False
    held = value.values() if type(value) is dict else value
    kinds = set(map(type, islice(held, _ALL)))
    if type(value) is dict:
        kinds |= set(map(type, islice(value, _ALL)))
    return kinds <= _SMALL


_FEW = 64
_SMALL = {int, float, bool, complex, type(None)}


def is_small(value: Any) -> bool:
    """Whether a value has no parts and few bytes: it gets no row, and no second visit."""
    cls = type(value)
    if cls in (str, bytes, bytearray):
        return len(value) < _LARGE_ATOM
    return cls in traversal.ATOMS


def _atom_bytes(value: Any) -> int:
    """The approximate pickled size of a small value."""
    if type(value) in (str, bytes, bytearray):
        return len(value) + 3
    return 2 + value.bit_length() // 8 if type(value) is int else 9


def _met_again(node: Node, path: str) -> Node:
    if node.cannot:
        return Node(path, node.kind, cannot=node.cannot, tip=node.tip, refused=True)
    return Node(path, f"the same as {node.path}", same_as=node)


def _blame(node: Node, value: Any, error: BaseException) -> None:
    """Say what cannot be pickled, by the paths that the error of a call would name."""
    try:
        found = list(find_culprits(value, node.path, _NAMED_AT_MOST))
    except FAILURES:
        found = [Culprit(node.path, value)]
    node.own, node.children, node.small = Weight(), [], 0
    if len(found) == 1:
        _accuse(node, found[0], error)
        return
    for each in found:
        child = Node("", "")
        _accuse(child, each, error)
        child.sum_up()
        node.children.append(child)


_NAMED_AT_MOST = 100


def _accuse(node: Node, found: Culprit, error: BaseException) -> None:
    node.path, node.kind = found.path, class_name(found.part)
    node.cannot = _first_line(_error_of(found.part) or error)
    node.tip = Tip(advice=_advice(found.part))


def _error_of(part: Any) -> BaseException | None:
    try:
        codec.encode(part)
    except FAILURES as error:
        return error
    return None


def _advice(part: Any) -> str:
    cure, otherwise = advice_for(part), "leave it out, or make it in the task"
    if cure_for_value(part) is not None:
        return cure
    return f"{cure}; or {otherwise}" if cure else otherwise


def _first_line(error: BaseException) -> str:
    try:
        text = str(error).partition("\n")[0]
    except FAILURES:
        text = ""
    return text or type(error).__name__


def blame(node: Node, value: Any, error: BaseException) -> None:
    """Add an unpicklable part that the walk did not visit."""
    found = Node(node.path, node.kind)
    _blame(found, value, error)
    found.refused = node.refused = True
    node.children.append(found)
