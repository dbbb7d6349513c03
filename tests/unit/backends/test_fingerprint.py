import collections
import collections.abc
import copy
import dataclasses
import enum
import functools
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedtask import parallel
from sharedtask.serialization import codec
from sharedtask.serialization.hashing import SIZE, Fingerprints, fingerprint
from sharedtask.testing import arrays

SERVER = """
import struct, sys
from sharedtask.serialization.codec import decode
from sharedtask.serialization.hashing import fingerprint
read, write = sys.stdin.buffer, sys.stdout.buffer
while head := read.read(8):
    write.write(fingerprint(decode(read.read(*struct.unpack("<Q", head)))))
    write.flush()
"""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[[Any], bytes]]:
    """The fingerprint of a value in a process with other hashes, after a pickle's way there."""
    seed = "7" if os.environ.get("PYTHONHASHSEED") != "7" else "8"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    sent, got = server.stdin, server.stdout

    def ask(value: Any) -> bytes:
        # numpy's own pickle would give some arrays another byte order.
        data = codec.encode_inband(value)
        sent.write(struct.pack("<Q", len(data)) + data)
        sent.flush()
        return got.read(SIZE)

    yield ask
    server.communicate()


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False)
)  # fmt: skip
hashable = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=3),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4),
    max_leaves=6,
)
values = st.recursive(
    scalars | hashable | st.sets(hashable, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=12,
)


def form(value: Any) -> Any:
    """What a value is made of, in a form in which equal means the same."""
    kind = type(value).__name__
    if isinstance(value, (set, frozenset)):
        return kind, sorted(repr(form(each)) for each in value)
    if isinstance(value, (list, tuple)):
        return kind, [form(each) for each in value]
    if isinstance(value, dict):
        return kind, [(form(key), form(each)) for key, each in value.items()]
    if isinstance(value, float):
        return kind, struct.pack("<d", value)
    if isinstance(value, complex):
        return kind, struct.pack("<dd", value.real, value.imag)
    return kind, value


anything = settings(
    max_examples=examples(200),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@anything
@given(value=values)
def test_equal_in_every_process(elsewhere: Any, value: Any) -> None:
    """A value has one fingerprint: here, copied, and in a process with other hashes."""
    here = fingerprint(value)
    assert SIZE == len(here)
    assert here == fingerprint(copy.deepcopy(value))
    assert here == elsewhere(value)


@anything
@given(one=values, other=values)
def test_equal_only_where_values_are(one: Any, other: Any) -> None:
    """Two values have the same fingerprint exactly if they are made of the same."""
    assert (form(one) == form(other)) == (fingerprint(one) == fingerprint(other))
    assert fingerprint([one, other]) != fingerprint((one, other))
    assert (form(one) == form(other)) == (fingerprint([one, other]) == fingerprint([other, one]))


@anything
@given(array=arrays())
def test_arrays_in_every_process(elsewhere: Any, array: Any) -> None:
    """Arrays of every dtype, shape and order have one fingerprint; so have they inside others."""
    for value in (array, [array, 1], {"a": (array,)}):
        assert fingerprint(value) == elsewhere(value)


def test_one_bit_of_an_array() -> None:
    """Each bit, the shape and the dtype of an array count."""
    array = np.zeros((4, 6))
    seen = {fingerprint(array)}
    for k in (0, 191):
        changed = array.copy()
        changed.view(np.uint8).reshape(-1)[k] ^= 1
        seen.add(fingerprint(changed))
    seen.add(fingerprint(array.reshape(6, 4)))
    seen.add(fingerprint(array.view(np.int64)))
    seen.add(fingerprint(array.tobytes()))
    seen.add(fingerprint(array.tolist()))
    assert 7 == len(seen)


def test_views_are_their_contents() -> None:
    """Where an array lies, and in what it lies, does not count."""
    table = np.arange(60.0).reshape(6, 10)
    assert fingerprint(table[1:3].copy()) == fingerprint(table[1:3])
    assert fingerprint(np.asfortranarray(table)) == fingerprint(table)
    assert fingerprint([table, table[1]]) == fingerprint([table.copy(), table[1].copy()])


def test_identity_does_not_count() -> None:
    """Whether two parts are one object or two equal ones is not seen."""
    one, other = ["a", 1.5], ["a", 1.5]
    assert fingerprint(Pair(one, one)) == fingerprint(Pair(one, other))
    text = "some words"
    assert fingerprint(Pair(text, text)) == fingerprint(Pair(text, text[:4] + text[4:]))


@dataclasses.dataclass
class Pair:
    a: Any
    b: Any


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Node:
    def __init__(self, name: str) -> None:
        self.name = name
        self.parent = self


def wrapped(inner: list[Any], _: int) -> list[Any]:
    return [inner, {1}]


LOOPED: list[Any] = [1]
LOOPED.append(LOOPED)

KINDS: dict[str, Any] = {
    "dataclass": Pair(1, {"a", "b", "c"}),
    "enum": [Color.RED, Color.BLUE],
    "ordered": collections.OrderedDict(a=1, b=2),
    "counter": collections.Counter("abca"),
    "partial": functools.partial(max, 1),
    "path": Path("/tmp/x"),
    "slice": slice(1, 2),
    "range": range(3),
    "function": fingerprint,
    "builtin": len,
    "class": Path,
    "numpy scalar": np.float32(1.5),
    "masked": np.ma.masked_array([1, 2], [False, True]),
    "objects": np.array([{"b", "a"}, None], dtype=object),
    "large bytes": bytes(100_000),
    "nested sets": {frozenset({"a", "b"}), frozenset({"c"})},
    "looped list": LOOPED,
    "looped object": Node("a"),
    "deep": functools.reduce(wrapped, range(80), [0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    """Values of all kinds have a fingerprint, equal for copies, and all differ."""
    value = KINDS[kind]
    assert fingerprint(value) == fingerprint(copy.deepcopy(value))
    others = [each for name, each in KINDS.items() if name != kind]
    assert fingerprint(value) not in list(map(fingerprint, others))


def test_order_of_a_dict_counts() -> None:
    """A task can see the order of a dict, so another order is another value."""
    assert fingerprint({"a": 1, "b": 2}) != fingerprint({"b": 2, "a": 1})


def test_what_cannot_be_pickled_is_refused() -> None:
    """A value that is a lock, or has one in it, raises what pickle raises."""
    for value in (threading.Lock(), [threading.Lock()], {"a": Pair(1, threading.Lock())}):
        with pytest.raises(TypeError, match="cannot pickle"):
            fingerprint(value)


# ------------------------------------------------------------------------------- functions

SCRIPT = '''
import dataclasses, enum, sys
from sharedtask import parallel
from sharedtask.serialization.hashing import Fingerprints, fingerprint
{blank}
@dataclasses.dataclass
class Item:
    a: int
    tags: set
    def turned(self):
        return helper(self.a), Item
class Color(enum.Enum):
    RED = 1
def helper(x):
    return other(x) in {{"a", "b", "c"}}
def other(x):
    return helper(x - 1) if x else LIMIT
LIMIT = {{"x": [1, {limit}]}}
@parallel
def task(x): return inner(x)
def inner(x): return {inner}
def make(k):
    def score(x, y=3):
        """says something {blank}"""
        z = [helper(i) for i in range(x)]
        return k, z, x in ("k", "l"), task.map([x]), Color.RED, Item(x, {{1}})
    return score
print(fingerprint([Item(3, {{"q", "r"}}), Color.RED, Item, lambda q: q + LIMIT["x"][0]]).hex())
for name, digest in Fingerprints().parts(make({{"s", "t"}}), "score").items():
    print(name, digest.hex())
'''


def printed(tmp_path: Path, seed: int, name: str = "script", **words: Any) -> list[str]:
    path = tmp_path / f"{name}.py"
    path.write_text(SCRIPT.format(**{"blank": "", "limit": 2, "inner": "x", **words}))
    ran = subprocess.run(
        [sys.executable, path],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return ran.stdout.splitlines()


def test_functions_of_a_script(tmp_path: Path) -> None:
    """Another process, other hashes, another file and other lines change nothing."""
    first = printed(tmp_path, 1)
    assert first == printed(tmp_path, 2, "other", blank="# a comment\n\n")
    names = [line.rpartition(" ")[0] for line in first[1:]]
    assert [
        "the code of score()", "a default of score()", "'k', which score() captures",
        "the code of Color()", "the code of Item()", "the code of helper()", "the code of task()",
    ] == names  # fmt: skip


def test_annotations_that_someone_asked_for() -> None:
    """Python notes them in the class from then on."""

    class Noted:
        size: int = 1

    before = fingerprint(Noted)
    assert {"size": int} == Noted.__annotations__
    assert before == fingerprint(Noted)


def test_annotations_as_python_3_14_keeps_them() -> None:
    """The function that gives them counts, not its results nor the class that it captures."""

    def made(__classdict__: dict[str, Any]) -> Callable[[], Any]:
        return lambda: (__classdict__, int)

    first, other = made({"__firstlineno__": 1}), made({"__firstlineno__": 2})
    assert fingerprint(first) == fingerprint(other)

    class Asked:
        pass

    Asked.__annotate_func__ = first  # type: ignore[attr-defined]
    before = fingerprint(Asked)
    Asked.__annotations_cache__ = {"size": int}  # type: ignore[attr-defined]
    assert before == fingerprint(Asked)


def test_depth_of_functions(tmp_path: Path) -> None:
    """A change is seen through functions, methods, tasks and the globals that they name."""
    first, limit = printed(tmp_path, 1), printed(tmp_path, 1, limit=3)
    inner = printed(tmp_path, 1, inner="x + 1")

    def changed(other: list[str]) -> set[str]:
        return {line.rpartition(" ")[0] for line in set(first) ^ set(other)}

    assert {"", "the code of helper()", "the code of Item()"} == changed(limit)
    assert {"the code of task()"} == changed(inner)


def double(x: int) -> int:
    return twice(x)


def twice(x: int) -> int:
    return x * FACTOR


FACTOR = 2
LOCK = threading.Lock()


def locked(x: int) -> int:
    with LOCK:
        return x


def test_functions_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of the task's own module are looked into, wherever it was imported from."""
    before = Fingerprints().parts(double, "double")
    assert ["the code of double()", "the code of twice()"] == list(before)
    monkeypatch.setitem(globals(), "FACTOR", 3)
    after = Fingerprints().parts(double, "double")
    assert before["the code of double()"] == after["the code of double()"]
    assert before["the code of twice()"] != after["the code of twice()"]


def test_what_cannot_be_pickled_counts_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock among the globals is no obstacle, and another lock is as good."""
    before = Fingerprints().parts(locked, "locked")
    monkeypatch.setitem(globals(), "LOCK", threading.Lock())
    assert before == Fingerprints().parts(locked, "locked")
    monkeypatch.setitem(globals(), "LOCK", threading.RLock())
    assert before != Fingerprints().parts(locked, "locked")


def test_a_task_is_its_function() -> None:
    """The options of a task that a function names do not decide about results."""
    one, other = parallel(double), parallel(workers=2)(double)
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(parallel(twice))


def test_use_does_not_change_a_class() -> None:
    """What Python notes in a class while it is used is no part of it."""
    source = "class Used:\n  def __init__(self): self.x = 1\n  def f(self): return self.x"
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    before = fingerprint(space["Used"])
    used = space["Used"]()
    used.f()
    codec.encode(used)
    copy.deepcopy(used)
    assert before == fingerprint(space["Used"])
    assert {} == space["Used"].__annotations__  # a protocol asks for them
    assert before == fingerprint(space["Used"])


DISPATCHED = """
import collections.abc, enum, functools
class Option(enum.Flag):
    FAST = 1
    SAFE = 2
@functools.singledispatch
def kind(x): return "any"
@kind.register
def _(x: collections.abc.Sequence): return "sequence"
@kind.register
def of_int(x: int): return "int"
"""


def test_use_does_not_change_a_flag_or_a_dispatcher() -> None:
    """A flag notes its combinations, a dispatcher how many classes were registered anywhere."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(DISPATCHED, space)
    flag, kind = space["Option"], space["kind"]
    before = [*map(fingerprint, (flag, flag.FAST, kind)), Fingerprints().parts(kind, "kind")]
    assert 3 == (flag.FAST | flag.SAFE).value
    collections.abc.Sized.register(type("Registered", (), {}))
    assert ("int", "sequence") == (kind(1), kind(""))
    after = [*map(fingerprint, (flag, flag.FAST, kind)), Fingerprints().parts(kind, "kind")]
    assert before == after
    kind.register(float, space["of_int"])
    assert before[2] != fingerprint(kind)
    assert before[3] != Fingerprints().parts(kind, "kind")


def test_classes_are_digested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items of one class cost no look at the class each."""
    prints = Fingerprints()
    cls = type("Here", (), {"__module__": "__main__", "f": lambda self: 1})
    prints.of(cls())
    monkeypatch.setattr(prints, "pickled", None)
    assert prints.root(cls) == prints.root(cls)
