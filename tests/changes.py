"""Values, a change of each, and how one writes the way to what was changed."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from sharedtask import Shared, parallel

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Layer:
    weights: Any = None
    seen: list[int] = field(default_factory=list)


class Model:
    def __init__(self) -> None:
        self.layers = [Layer(np.ones(3)) for _ in range(5)]
        self.name = "model"

    @parallel
    def touch(self: Shared[Any], i: int) -> int:
        if i == 2:
            self.name = "touched"
        return i


class Slots:
    __slots__ = ("names", "other")

    def __init__(self) -> None:
        self.names = ["a"]


@dataclass(frozen=True, slots=True)
class Frozen:
    number: int
    names: list[str]


class Point(NamedTuple):
    x: int
    tags: list[str]


class Reduces:
    """Pickles in a way of its own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return Reduces, (self.number,)


def objects() -> Any:
    made = np.empty((2, 2), object)
    made[1, 0] = [1]
    return made


def frame() -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})


def set_in(value: Any, name: str, new: Any) -> None:
    value[name] = new


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "new key": (lambda: {"a": 1}, lambda v: set_in(v, "seen", 3), "['seen']"),
    "deleted key": (lambda: {"a": 1, "b": 2}, lambda v: v.pop("b"), "['b']"),
    "replaced": (lambda: {"a": "one"}, lambda v: set_in(v, "a", "two"), "['a']"),
    "another type": (lambda: {"a": 1}, lambda v: set_in(v, "a", True), "['a']"),
    "sign of zero": (lambda: {"a": 0.0}, lambda v: set_in(v, "a", -0.0), "['a']"),
    "another order": (
        lambda: {"d": {"a": 1, "b": 2}},
        lambda v: set_in(v["d"], "a", v["d"].pop("a")),
        "['d']",
    ),
    "type of a key": (lambda: {1: 2}, lambda v: v.update({True: v.pop(1)}), ""),
    "key that is an object": (
        lambda: {frozenset({1}): [2]},
        lambda v: next(iter(v.values())).append(3),
        "[<frozenset>][1]",
    ),
    "nested list": (lambda: {"a": [1, 2]}, lambda v: v["a"].append(3), "['a'][2]"),
    "shorter list": (lambda: [1, 2, 3], list.pop, "[2]"),
    "attribute": (Model, lambda v: v.layers[3].__setattr__("seen", 1), ".layers[3].seen"),
    "list of an attribute": (Model, lambda v: v.layers[3].seen.append(1), ".layers[3].seen[0]"),
    "new attribute": (Model, lambda v: v.__setattr__("_cache", {}), "._cache"),
    "set": (lambda: {"s": {"x", "y"}}, lambda v: v["s"].add("z"), "['s']"),
    "slot": (Slots, lambda v: v.names.append("b"), ".names[1]"),
    "filled slot": (Slots, lambda v: v.__setattr__("other", 1), ".other"),
    "frozen dataclass": (lambda: Frozen(1, ["a"]), lambda v: v.names.append("b"), ".names[1]"),
    "named tuple": (lambda: [Point(1, [])], lambda v: v[0].tags.append("x"), "[0].tags[0]"),
    "own reduce": (
        lambda: {"r": Reduces(1)},
        lambda v: v["r"].__setattr__("number", 2),
        "['r'].__reduce__()[1][0]",
    ),
    "missing key that is read": (lambda: defaultdict(list), lambda v: v["new"], "['new']"),
    "counter": (lambda: Counter("ab"), lambda v: v.update("a"), "['a']"),
    "ordered dict": (lambda: OrderedDict(a=1, b=2), lambda v: v.move_to_end("a"), ""),
    "deque": (lambda: deque([1]), lambda v: v.append(2), "[1]"),
    "bytearray": (lambda: {"b": bytearray(9)}, lambda v: v["b"].append(1), "['b']"),
    "array replaced": (
        lambda: {"w": np.arange(99.0)},
        lambda v: set_in(v, "w", np.ones(99)),
        "['w']",
    ),
    "array cut": (lambda: {"w": np.arange(99.0)}, lambda v: set_in(v, "w", v["w"][1:]), "['w']"),
    "array added": (lambda: [np.arange(9.0)], lambda v: v.append(np.arange(9.0)), "[1]"),
    "arrays exchanged": (lambda: [np.ones(9), np.zeros(9)], list.reverse, "[0]"),
    "array of objects": (objects, lambda v: v[1, 0].append(2), "[1, 0][1]"),
    "what cannot be pickled": (
        lambda: {"a": 1},
        lambda v: set_in(v, "lock", threading.Lock()),
        "['lock']",
    ),
    "column": (frame, lambda v: set_in(v, "new", 1), "['new']"),
    "text in a column": (frame, lambda v: v.loc.__setitem__((1, "b"), "z"), "['b']"),
}
