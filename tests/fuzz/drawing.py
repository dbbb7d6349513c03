"""Random values, changes and calls, as source text."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

# Below and above what travels in messages, and what is shared where it is captured (1 MiB).
SIZES = (0, 1, 5, 700, 9_000, 40_000, 140_000)
DTYPES = ("i8", "f8", "u1", ">i2", "?", "c16", "f4", "S3", "U2", "M8[s]", "O", "i4,f8")
USES = (
    "shared", "shared", "shared", "nested", "copy", "plain", "plain_and_spoil", "item", "result",
    "global", "default", "captured", "self",
)  # fmt: skip
CALLS = (
    "map", "map", "map", "starmap", "imap", "imap partly", "imap_unordered", "submit",
    "submit, cancel", "amap", "together",
)  # fmt: skip
OPTIONS = (
    ("chunksize", (1, 2, "auto")),
    ("workers", (1, 2)),
    ("return_exceptions", (True, False)),
    ("retries", (0, 1)),
    ("timeout", (60,)),
    ("captured", ("share", "copy")),
    ("buffersize", (1, 5)),
    ("tasks_per_worker", (9,)),
)


@dataclass(frozen=True)
class Value:
    """The text that makes a value, and texts that change it, with {v} for where it is."""

    text: str
    changes: tuple[str, ...]


@dataclass
class Draw:
    """A source of random texts; the same seed gives the same ones."""

    random: random.Random
    backend: str
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def of(self, choices: Sequence[T]) -> T:
        """One of these."""
        return choices[self.random.randrange(len(choices))]

    def number(self) -> int:
        """A number that no other has."""
        return 10 + next(self.numbers)

    def name(self, start: str) -> str:
        """A name that no other has."""
        return f"{start}{next(self.numbers)}"

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def seconds(self, longest: float) -> float:
        return round(self.random.random() ** 2 * longest, 4)

    # ------------------------------------------------------------------------------- calls

    def options(self, *, journal: bool = True) -> str:
        """Some options, as keyword arguments of ``look`` and ``check``."""
        found = ""
        for name, values in OPTIONS:
            if self.chance(0.12) and not (self.backend == "ray" and name == "tasks_per_worker"):
                found += f", _{name}={self.of(values)!r}"
        if journal and self.chance(0.1):
            found += ", _journal=JOURNAL"
        if self.chance(0.15):  # the value is looked at by another backend in between
            found += f", _backend={self.of(('serial', 'thread', 'process', self.backend))!r}"
        return found

    def call(self) -> str:
        """A way to call, and options that it takes."""
        call = self.of(CALLS)
        return f"call={call!r}{self.options(journal=call == 'map')}"

    def look(self, name: str) -> str:
        """Show a value to tasks."""
        use, call = self.of(USES), self.call()
        if use == "plain_and_spoil" and "_chunksize" in call:
            use = "plain"
        return f"look({name}, {use!r}, {call})"

    # ------------------------------------------------------------------------------ values

    def value(self, depth: int = 2) -> Value:
        """A random value."""
        makers: list[Callable[[int], Value]] = [self.array, self.frame, self.plain, self.odd]
        if depth:
            makers += [self.record, self.mapping, self.listing, self.mapping]
        return self.of(makers)(depth)

    def array(self, depth: int = 0) -> Value:
        size, dtype = self.of(SIZES), self.of(DTYPES)
        if dtype in ("O", "i4,f8", "S3", "U2"):
            size = min(size, 700)
        text = f"(np.arange({size}) % 100).astype({dtype!r})"
        if dtype == "i4,f8":
            text = f"np.zeros({size}, {dtype!r})"
        half = self.of(("", "[::2]", "[::-1]", ".reshape(1, -1)", ".reshape(-1, 1).T", ".copy()"))
        if size % 20 == 0:
            half = self.of(
                (half, ".reshape(20, -1)[:, ::3]", ".reshape(20, -1).T", ".reshape(-1, 20)")
            )
        return Value(text + half, self.of_array(dtype))

    def of_array(self, dtype: str) -> tuple[str, ...]:
        one = {"O": "'new'", "i4,f8": "(7, 8.0)", "S3": "b'xy'", "U2": "'xy'", "?": "True"}
        new = one.get(dtype, "{n} % 90")
        last = "if {v}.size: {v}[(-1,) * {v}.ndim] = " + new
        every = "{v}[...] = np.array(" + new + ", {v}.dtype)"
        some = "{v}[...,::7] = np.array(" + new + ", {v}.dtype)"
        order = "{v}[...] = {v}[..., ::-1].copy()"
        return last, last, every, some, order

    def frame(self, depth: int = 0) -> Value:
        size = self.of((1, 5, 9_000))
        text = (
            f"pd.DataFrame({{'a': np.arange({size}), 'b': ['x'] * {size}, 'c': np.ones({size})}})"
        )
        return Value(
            text,
            (
                "{v}.loc[0, 'a'] = {n}",
                "{v}['new'] = {n}",
                "{v}.loc[0, 'b'] = 't{n}'",
                "{v}['c'] = {v}['c'] * {n}",
                "{v}.attrs['k'] = {n}; {v}.loc[0, 'c'] = {n}",
                "{v}.index = {v}.index + {n}; {v}.index -= {n}; {v}.loc[0, 'a'] = -{n}",
            ),
        )

    def plain(self, depth: int = 0) -> Value:
        return self.of(
            (
                Value("[1, 2.5, 'text', None, (3, b'4')]", LISTED),
                Value("list(range(3_000))", LISTED),
                Value(
                    "deque([1, 2, 3])", ("{v}.append({n})", "{v}.rotate(1)", "{v}.appendleft({n})")
                ),
                Value("bytearray(100_000)", ("{v}[-1] = {n} % 255", "{v}.append({n} % 255)")),
                Value("{'x', 'y'}", ("{v}.add({n})", "{v}.add('t{n}')")),
                Value("Counter('abracadabra')", ("{v}['a'] += {n}", "{v}.update('z')")),
                Value("OrderedDict(a=1, b=2)", ("{v}.move_to_end('a')", "{v}['a'] = {n}")),
                Value("'text' * 30_000", ("{v} = 't{n}' * 30_000",)),
            )
        )

    def odd(self, depth: int = 0) -> Value:
        """Objects with attributes, slots, or state of their own."""
        number = "{n}"
        return self.of(
            (
                Value(
                    "Record(1, np.ones(50_000))", ("{v}.b[3] = {n}", "{v}.a = {n}", "{v}.c = {n}")
                ),
                Value("Slotted(5)", ("{v}.a = {n}", "{v}.b = [{n}]")),
                Value("Level(5)", ("{v}.extra = {n}", "{v}.more = [{n}]")),
                Value("Named('text')", ("{v}.extra = {n}",)),
                Value("Listed([1, 2])", ("{v}.extra = {n}", "{v}.append({n})")),
                Value(
                    "Stateful(np.zeros(70_000))", (f"{{v}}.held[5] = {number}", "{v}.times += 1")
                ),
            )
        )

    def record(self, depth: int) -> Value:
        inner = self.value(depth - 1)
        return Value(f"Record({inner.text}, 7)", ("{v}.b = {n}", *within(inner, ".a")))

    def mapping(self, depth: int) -> Value:
        one, two = self.value(depth - 1), self.value(depth - 1)
        text = f"{{'k': {one.text}, 5: {two.text}, 'scratch': 0}}"
        own = ("{v}['scratch'] = {n}", "{v}['new{n}'] = {n}", "{v}['k2'] = {v}.pop('k2', {n}) + 1")
        return Value(text, (*own, *within(one, "['k']"), *within(two, "[5]")))

    def listing(self, depth: int) -> Value:
        one, two = self.value(depth - 1), self.value(depth - 1)
        own = ("{v}.append({n})", "{v}.insert(2, 't{n}')", "{v}[2:] = []")
        changes = (*own, *within(one, "[0]"), *within(two, "[1]"))
        return Value(f"[{one.text}, {two.text}]", changes)

    def change(self, name: str, value: Value) -> str:
        return self.of(value.changes).replace("{v}", name).replace("{n}", str(self.number()))


LISTED = ("{v}[0] = {n}", "{v}.append({n})", "{v}.reverse()", "{v}[1:2] = [{n}, {n}]", "{v}.pop()")


def within(value: Value, place: str) -> tuple[str, ...]:
    """The changes of a value, where it is inside another one."""
    return tuple(change.replace("{v}", "{v}" + place) for change in value.changes)


# The classes of the values above, at the top of programs that use them.
CLASSES = """
@dataclass
class Record:
    a: Any
    b: Any
    c: Any = None
    def with_b(self, x):
        return x, self.b

class Slotted:
    __slots__ = ("a", "b")
    def __init__(self, a):
        self.a = a

class Level(int):
    extra = 0

class Named(str):
    extra = 0

class Listed(list):
    extra = 0

class Stateful:
    def __init__(self, held):
        self.held, self.times = held, 0
    def __getstate__(self):
        return self.held, self.times
    def __setstate__(self, state):
        self.held, self.times = state
"""
