"""Values that are recognised without being encoded: the same ones, and no others."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedtask.memory.dirty_pages import WATCH_FROM
from sharedtask.serialization import codec
from sharedtask.store import identities, outline
from sharedtask.store.cache import ShareCache
from sharedtask.store.outline import Outline
from sharedtask.store.publication import Publication


def arrays(count: int = 40) -> dict[str, Any]:
    """Two and two are equal, so that one could be taken for the other."""
    return {f"w{k}": np.arange(5.0) + k // 2 for k in range(count)}


def model() -> dict[str, Any]:
    """Everything that an outline knows."""
    return {
        "small": arrays(),
        "steps": [np.ones((2, 3), "f4"), np.zeros(0, "i8"), np.array(7), np.array(["a", "bc"])],
        "turned": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "window": np.arange(10)[2:5],
        "large": np.zeros(WATCH_FROM // 8),
        "names": ["a", "b", None, True, 1, 0.0, 2j, b"c"],
        "pair": (1, {"deep": [1.5]}),
        "numbers": {"one": 1, "as well": 1},
    }


def recognising(value: Any) -> Publication:
    """The publication of a value, after as many comparisons as it takes."""
    published = Publication(codec.encode_shared(value), watched=True)
    for _ in range(2):
        payload = codec.encode_shared(value)
        assert published.matches(payload)
        published.recognise(value, payload, codec.encode_shared)
    return published


def test_same_value_is_recognised() -> None:
    """A value of containers, atoms and arrays is, and so it is again."""
    value = model()
    published = recognising(value)
    assert published.is_recognised(value)
    assert published.is_recognised(value)
    published.release()
    assert not published.is_recognised(value)


def set_key(value: Any) -> None:
    del value["small"]["w3"]
    value["small"]["other"] = np.arange(5.0)


def in_order(value: Any) -> None:
    value["small"]["w0"] = value["small"].pop("w0")


def last_key(value: Any) -> None:
    value["small"]["other"] = value["small"].pop("w39")


def windows_of_one_buffer(value: Any) -> None:
    buffer = value["small"]["w0"].tobytes()
    for name in ("w0", "w1"):
        value["small"][name] = np.frombuffer(buffer)[:]


def other_bounds(value: Any) -> None:
    both = np.concatenate([value["small"]["w0"], value["small"]["w1"]])
    value["small"]["w0"], value["small"]["w1"] = both[:4].copy(), both[4:].copy()


CHANGES: dict[str, Callable[[Any], object]] = {
    "element": lambda v: v["small"]["w7"].__setitem__(2, -9.0),
    "sign of zero": lambda v: v["steps"][0].__setitem__((0, 0), -1.0),
    "element of a large one": lambda v: v["large"].__setitem__(5, 1.0),
    "element of a window": lambda v: v["window"].base.__setitem__(3, 99),
    "text": lambda v: v["steps"][3].__setitem__(0, "z"),
    "shape": lambda v: v["steps"].__setitem__(0, v["steps"][0].reshape(3, 2)),
    "shape in place": lambda v: v["turned"].resize((6,), refcheck=False),
    "order": lambda v: v.__setitem__("turned", np.ascontiguousarray(v["turned"])),
    "dtype": lambda v: v["steps"].__setitem__(0, v["steps"][0].astype("f8")),
    "bytes as another dtype": lambda v: v["steps"].__setitem__(0, v["steps"][0].view("i4")),
    "two names of one array": lambda v: v["small"].__setitem__("w1", v["small"]["w0"]),
    "two views of one memory": lambda v: v["small"].__setitem__("w1", v["small"]["w0"][:]),
    "kind of array": lambda v: v["small"].__setitem__("w1", np.ma.array(v["small"]["w1"])),
    "array in the place of an atom": lambda v: v["names"].__setitem__(4, np.array(1)),
    "one is not True": lambda v: v["names"].__setitem__(4, True),
    "zero is not minus zero": lambda v: v["names"].__setitem__(5, -0.0),
    "key": set_key,
    "order of keys": in_order,
    "large one as another dtype": lambda v: v.__setitem__("large", v["large"].view("i8")),
    "bounds between two": other_bounds,
    "name of a key": last_key,
    "order of equal numbers": lambda v: v["numbers"].__setitem__("one", v["numbers"].pop("one")),
    "number beside a dict": lambda v: v.__setitem__("pair", (2, v["pair"][1])),
    "windows of one buffer": windows_of_one_buffer,
    "append": lambda v: v["names"].append(1),
    "one less": lambda v: v["steps"].pop(),
    "tuple for a list": lambda v: v.__setitem__("names", tuple(v["names"])),
    "deep inside": lambda v: v["pair"][1]["deep"].__setitem__(0, 2.5),
    "other kind inside": lambda v: v["pair"][1].__setitem__("deep", {1.5}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_is_not_taken_for_the_same(change: Callable[[Any], object]) -> None:
    """What a comparison of all bytes would see is not recognised."""
    value = model()
    published = recognising(value)
    assert published.is_recognised(value)
    change(value)
    assert not published.is_recognised(value)


def test_outline_that_does_not_recognise_its_value_is_dropped() -> None:
    """Equal objects take the place of others at each call: in the end none is made or asked."""
    value = {f"k{k}": float(k) for k in range(2000)}
    published = recognising(value)
    for _ in range(8):
        value.update({key: number + 0.0 for key, number in value.items()})
        assert not published.is_recognised(value)
        payload = codec.encode_shared(value)
        assert published.matches(payload)
        published.recognise(value, payload, codec.encode_shared)
    assert published.outline is None


def test_change_back_is_recognised() -> None:
    """Contents count, for arrays, and not their history."""
    value = model()
    published = recognising(value)
    value["small"]["w7"][2] += 1
    assert not published.is_recognised(value)
    value["small"]["w7"][2] -= 1
    value["small"]["w8"] = value["small"]["w8"].copy()
    assert published.is_recognised(value)


@pytest.mark.parametrize(
    "inside",
    [
        {1, 2},
        np.array([1, "a"], object),
        np.zeros(3, "i4,f8"),
        np.zeros(3, "g"),
        np.zeros(3, ">f8"),
        np.zeros(3, np.dtype("f8", metadata={"unit": "m"})),
        np.zeros((4, 4))[::2, ::2],
        np.float64(1.0),
        type("Text", (str,), {})("a"),
        range(3),
    ],
    ids=lambda each: type(each).__name__ + str(getattr(each, "dtype", "")),
)
def test_value_with_anything_else_is_encoded_each_time(inside: Any) -> None:
    """There is no outline of a value with a part that it does not know."""
    assert Outline.of({"a": 1, "b": [1.0]}) is not None
    assert Outline.of({"a": 1, "b": [inside]}) is None


def test_value_that_is_pickled_as_fast_has_no_outline() -> None:
    """One of many small containers."""
    assert Outline.of([[k] for k in range(100)]) is None
    assert Outline.of([[k] * 20 for k in range(100)]) is not None


def test_copy_that_would_take_much_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as large as the small arrays together; large ones are not copied."""
    monkeypatch.setattr(outline, "_MOST_SMALL_BYTES", 1000)
    assert Outline.of(arrays(40)) is None
    assert Outline.of({**arrays(10), "large": np.zeros(WATCH_FROM // 8)}) is not None


def test_large_array_that_was_published_as_a_copy_has_no_outline() -> None:
    """There is no watch that tells of its changes."""
    value = {"large": np.zeros(WATCH_FROM // 8)}
    for published, is_found in ((value["large"], True), (value["large"].copy(), False)):
        made = Outline.of(value)
        assert made is not None
        assert is_found == made.confirm([published.view(np.uint8)])


def test_container_in_itself_has_no_outline() -> None:
    """Nor has one that is nested too deeply."""
    ring: list[Any] = []
    ring.append(ring)
    assert Outline.of(ring) is None


def test_one_container_in_two_places_is_not_taken_for_two() -> None:
    """A copy of it would be two: so what is published is not its outline."""
    inner = {f"k{k}": float(k) for k in range(2000)}
    value = {"a": inner, "b": inner, **arrays()}
    published = recognising(value)
    assert not published.is_recognised(value)


def test_change_while_the_outline_is_made_is_seen() -> None:
    """Thread 1 compares a value, thread 2 changes it, thread 1 makes the outline: of no use."""
    value = model()
    published = Publication(codec.encode_shared(value), watched=True)
    payload = codec.encode_shared(value)
    assert published.matches(payload)
    published.recognise(value, payload, codec.encode_shared)
    value["small"]["w0"][0] = 5.0
    value["names"][0] = "c"
    published.recognise(value, payload, codec.encode_shared)
    assert not published.is_recognised(value)


@pytest.mark.parametrize("layout", [True, False])
def test_many_objects_are_compared_by_identity(
    layout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal objects are not the same ones, whatever the interpreter's memory looks like."""
    if not layout:
        monkeypatch.setattr(identities, "_same", identities._one_by_one)
    values = [float(k) for k in range(1000)]
    known = tuple(values)
    assert identities.same_objects(known, values)
    assert identities.same_objects(known, dict.fromkeys(values))
    assert not identities.same_objects(known, [*values[:-1], float(999)])
    assert not identities.same_objects(known, values[:-1])
    assert identities._has_addresses(known)


def test_cache_recognises_a_value_and_sees_its_change() -> None:
    """The third lease and later ones need no encoding, until the value changes."""
    encoded = []

    def encode(value: object) -> Any:
        encoded.append(value)
        return codec.encode_shared(value)

    cache, value = ShareCache(), arrays()
    for count in (1, 2, 4, 4, 4):  # the third makes the outline
        lease = cache.lease(value, encode=encode)
        lease.release()
        assert count == len(encoded)
    assert lease.hit
    value["w5"][0] = -1.0
    changed = cache.lease(value, encode=encode)
    assert not changed.hit
    assert changed.publication.value()["w5"][0] == -1.0
    changed.release()
    for verify in ("compare", "identity"):
        cache.lease(value, encode=encode, verify=verify).release()
    cache.clear()


atoms = st.one_of(
    st.integers(-2, 2), st.booleans(), st.sampled_from([0.0, -0.0, 1.0]), st.text(max_size=2)
)
leaves = st.one_of(atoms, st.integers(0, 3).map(lambda n: np.arange(n, dtype="f8")))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(atoms, inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=12,
)


@given(values, values)
@settings(max_examples=examples(300))
def test_recognised_means_the_same_bytes(value: Any, other: Any) -> None:
    """Whatever is recognised would be encoded to the same contents."""
    made = Outline.of([value])
    assert made is not None
    payload = codec.encode_shared(made.copy)
    if not made.confirm(payload.sources):
        return
    for each in (value, other, copy.deepcopy(value)):
        if made.describes([each], lambda *_: False):
            assert repr([value]) == repr([each])
    assert made.describes([value], lambda *_: False) or _shares([value])


def _shares(value: Any) -> bool:
    """Whether an array is in two places."""
    found: list[int] = []

    def look(each: Any) -> None:
        if isinstance(each, np.ndarray):
            found.append(id(each))
        elif isinstance(each, (list, tuple)):
            list(map(look, each))
        elif isinstance(each, dict):
            list(map(look, each.values()))

    look(value)
    return len(set(found)) != len(found)
