"""Snapshot of the containers in a value, and the first one whose contents differ later.

A snapshot keeps, for each reachable container, references to its parts. A check compares
identities, which takes 10 to 30 ns for each part. Only if these differ are contents compared, by
``diff``: a task that assigns an equal value has changed nothing. Of a large value a sample
is kept.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from operator import is_
from typing import Any

from . import traversal
from .codec import FAILURES
from .containers import FIXED, LEAVES, Kind, is_leaf, kinds_of
from .diff import first_difference

__all__ = ["Snapshot"]

# A check of this many containers, and of this many parts of them all, takes about 5 ms.
_MOST_CONTAINERS, _MOST_PARTS = 3_000, 200_000
# Of a container that has more parts than this a sample is kept.
_MOST_OF_ONE, _SAMPLE = 100_000, 2_000
_FEW = 100
# Time of a check for each container and each part. Those of plain types are compared at once.
_CONTAINER_SECONDS, _PART_SECONDS, _PLAIN_SECONDS = 1e-6, 3e-8, 2e-8
_SAMPLED_SECONDS = 5e-7
_WORTH_MEASURING = 1e-4


class _Node:
    """A container with its recorded parts, at ``key`` of ``parent``.

    Of one with too many parts every ``stride``-th is kept.
    """

    __slots__ = ("key", "kind", "known", "parent", "plain", "seconds", "size", "stride", "value")
    known: list[Any]

    def __init__(self, value: Any, kind: Kind, parent: _Node | None, key: Any) -> None:
        self.value, self.kind, self.parent, self.key = value, kind, parent, key
        self.note()

    def note(self) -> None:
        """Record its present parts."""
        self.size = self.kind.size(self.value)
        self.stride = -(-self.size // _SAMPLE) if self.size > _MOST_OF_ONE else 0
        self.known = self._read(None)
        # Comparing plain parts for equality takes a third of the time.
        self.plain = len(self.known) > _FEW and traversal.ATOMS.issuperset(map(type, self.known))
        each = _PLAIN_SECONDS if self.plain else _PART_SECONDS
        each = _SAMPLED_SECONDS if self.stride else each
        self.seconds = _CONTAINER_SECONDS + each * len(self.known)

    def _read(self, before: list[Any] | None) -> list[Any]:
        if self.stride:
            return self.kind.some(self.value, self.stride, before)
        return self.kind.read(self.value)

    def is_same(self) -> bool:
        """Whether it has the same parts; equal ones if they are many and plain."""
        if self.kind.size(self.value) != self.size:
            return False
        now, known = self._read(self.known), self.known
        if self.plain:
            return now == known
        return len(now) == len(known) and all(map(is_, now, known))

    def has_same_size(self) -> bool:
        """The only immediate check of a large container."""
        return self.kind.size(self.value) == self.size

    def change(self) -> str | None:
        """The step to the changed part; None if all parts are equal, though other objects."""
        if not self.stride:
            return self.kind.change(self.value, self.known)
        now = self._read(self.known)
        is_same = self.has_same_size() and first_difference(self.known, now) is None
        return None if is_same else ""

    def renew(self) -> bool:
        """Record its present parts; False if there are new containers."""
        met = set(map(id, self.known))
        self.note()
        return all(is_leaf(part) or id(part) in met for _, part in self.kind.children(self.value))

    @property
    def path(self) -> str:
        """The path to it, as Python code."""
        steps = []
        node = self
        while node.parent is not None:
            steps.append(node.parent.kind.step(node.key))
            node = node.parent
        return "".join(reversed(steps))


class Snapshot:
    """The recorded parts of the containers in a value.

    No more than ``most`` are kept, those nearest to the value itself. ``seconds`` is the
    approximate time of a full check; ``is_whole``: the last check was a full one.

    Examples:
        >>> model = {"seen": [], "rate": 0.5}
        >>> snapshot = Snapshot(model)
        >>> model["seen"].append(1)
        >>> snapshot.change(1.0)
        "['seen'][0]"
    """

    __slots__ = ("_at", "_most", "_nodes", "_value", "is_whole", "seconds")

    def __init__(self, value: Any, most: int = _MOST_CONTAINERS) -> None:
        self._value, self._most = value, most
        self._take()

    def _take(self) -> None:
        self._nodes = _reached(self._value, self._most)
        self._at = 0
        self.is_whole = True
        self.seconds = sum(node.seconds for node in self._nodes)

    def change(self, seconds: float) -> str | None:
        """The path to the changed part, "" for the value itself; None if all is equal.

        A check that would take longer than ``seconds`` ends early; the next one continues there.
        """
        self.is_whole = self.seconds <= seconds
        if not self.is_whole:
            return self._change_of(list(self._unlike_of_some(seconds)))
        if self.seconds < _WORTH_MEASURING:
            return self._change_of([node for node in self._nodes if not _is_same(node)])
        began = time.thread_time()
        unlike = [node for node in self._nodes if not _is_same(node)]
        self.seconds = (self.seconds + time.thread_time() - began) / 2
        return self._change_of(unlike)

    def _unlike_of_some(self, seconds: float) -> Iterator[_Node]:
        for _ in self._nodes:
            node = self._nodes[self._at]
            self._at = (self._at + 1) % len(self._nodes)
            fits = node.seconds <= seconds
            if not (_is_same(node) if fits else node.has_same_size()):
                yield node
            seconds -= node.seconds if fits else _CONTAINER_SECONDS
            if seconds <= 0:
                return

    def _change_of(self, unlike: list[_Node]) -> str | None:
        """Compare the contents of those that have other parts."""
        if not unlike:
            return None
        began = time.thread_time()
        for node in unlike:
            try:
                way = node.change()
            except FAILURES:  # another thread changes it at this moment
                way = ""
            if way is not None:
                return node.path + way
        known = [node.renew() for node in unlike]
        if not all(known):
            self._take()
        # Repeated assignments of equal values make checks expensive, and so rare.
        self.seconds = sum(node.seconds for node in self._nodes) + time.thread_time() - began
        return None


def _is_same(node: _Node) -> bool:
    try:
        return node.is_same()
    except Exception:  # noqa: BLE001  it changes at this moment
        return False


def _reached(value: Any, most: int) -> list[_Node]:
    """The containers that can be reached, the nearest first."""
    found: list[_Node] = []
    if is_leaf(value):
        return found
    todo: deque[tuple[_Node | None, Any, Any]] = deque([(None, None, value)])
    met: dict[int, Any] = {}
    left = _MOST_PARTS
    while todo and len(met) < most and left > 0:
        parent, key, value = todo.popleft()
        if id(value) in met:
            continue
        met[id(value)] = value
        for kind in kinds_of(value):
            try:
                node = _Node(value, kind, parent, key)
                todo.extend((node, *each) for each in _inner(node, most - len(todo)))
            except Exception:  # noqa: BLE001, S112  a class may refuse to be looked into
                continue
            left -= len(node.known)
            if kind is not FIXED:
                found.append(node)
    return found


def _inner(node: _Node, most: int) -> list[tuple[Any, Any]]:
    """The parts that may change themselves; an even sample of very many."""
    if not node.stride and LEAVES.issuperset(map(type, node.known)):
        return []
    stride = max(-(-node.size // max(most, 1)), 1)
    children = islice(node.kind.children(node.value), 0, None, stride)
    return [(key, part) for key, part in children if not is_leaf(part)]
