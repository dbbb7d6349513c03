import pickle
import threading
from typing import Any

import numpy as np
import pytest
from budget import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sharedtask.memory import mapping, proc_maps, segments
from sharedtask.memory.payload import Payload
from sharedtask.serialization import codec
from sharedtask.store.publication import Publication
from sharedtask.testing import DTYPES, array_of, arrays, assert_same, nested_values

pytestmark = pytest.mark.timeout(60)

many = settings(
    deadline=None, max_examples=examples(150), suppress_health_check=[HealthCheck.too_slow]
)


def through(value: Any) -> Any:
    """Encode and decode over read-only copies of the buffers."""
    payload = codec.encode(value)
    return codec.decode(payload.head, [memoryview(bytes(b)) for b in payload.buffers])


@many
@given(arrays())
@example(np.array(1.5))
@example(np.zeros((0, 5), order="F"))
@example(np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0)[::-1])
def test_array_round_trip(array: np.ndarray[Any, Any]) -> None:
    """Dtype, byte order, shape and every bit of any array survive, and it comes back read-only."""
    again = through(array)
    assert_same(array, again)
    assert not again.flags.writeable
    assert array.dtype.str == again.dtype.str


@many
@given(arrays())
def test_memory_order_is_kept(array: np.ndarray[Any, Any]) -> None:
    """An array that is dense in C or F order comes back in that order."""
    again = through(array)
    for order in ("c_contiguous", "f_contiguous"):
        if getattr(array.flags, order):
            assert getattr(again.flags, order)


@many
@given(nested_values())
def test_nested_round_trip(value: Any) -> None:
    """Dicts, lists and tuples around arrays survive with every bit."""
    assert_same(value, through(value))


@many
@given(nested_values())
def test_inband_round_trip(value: Any) -> None:
    """One string of bytes says the same."""
    assert_same(value, codec.decode(codec.encode_inband(value)))


@many
@given(nested_values())
def test_published_value_equals_the_original(value: Any) -> None:
    """What is read back from a sealed segment is the value; a copy-on-write twin as well."""
    publication = Publication(codec.encode(value), watched=False)
    try:
        assert_same(value, publication.value())
        assert_same(value, publication.private_value())
        assert publication.matches(codec.encode(value))
    finally:
        publication.release()


@many
@given(arrays(), st.data())
def test_any_changed_byte_is_noticed(array: np.ndarray[Any, Any], data: st.DataObject) -> None:
    """A publication does not match a value that differs in one byte."""
    raw = np.ascontiguousarray(array).copy()
    flat = raw.reshape(-1).view(np.uint8) if raw.nbytes else raw
    publication = Publication(codec.encode(raw), watched=False)
    try:
        if raw.nbytes:
            flat[data.draw(st.integers(0, raw.nbytes - 1))] ^= 1 << data.draw(st.integers(0, 7))
            assert not publication.matches(codec.encode(raw))
    finally:
        publication.release()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (0, 5)], ids=str)
def test_every_dtype(dtype: str, shape: tuple[int, ...]) -> None:
    """Every kind of dtype survives, read-only over read-only memory, writable over one's own."""
    array = array_of(dtype, shape)
    assert_same(array, through(array))
    assert not through(array).flags.writeable
    payload = codec.encode(array)
    own = codec.decode(payload.head, [bytearray(b) for b in payload.buffers])
    assert own.flags.writeable
    assert_same(array, own)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "O"])
def test_array_leaves_as_one_buffer(dtype: str) -> None:
    """The bytes of an array are not in the pickle, and not copied on the way out of it."""
    array = array_of(dtype, (50_000,))
    payload = codec.encode(array)
    assert [array.nbytes] == [buffer.nbytes for buffer in payload.buffers]
    assert 1000 > len(payload.head)
    assert mapping.address_of(array.view(np.uint8)) == mapping.address_of(payload.buffers[0])


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "O"])
def test_decoded_array_lies_in_the_mapped_segment(dtype: str) -> None:
    """A published array is used where it is mapped, wherever it is in the value."""
    value = {"rows": array_of(dtype, (70_000,)), "more": [array_of(dtype, (10,))]}
    publication = Publication(codec.encode(value), watched=False)
    try:
        found = publication.value()
        for array in (found["rows"], found["more"][0]):
            at = array.__array_interface__["data"][0]
            region = proc_maps.region_at(at)
            assert region is not None
            assert region.inode in segments_mapped()
            assert 0 == at % 64
        assert 0 == found["rows"].__array_interface__["data"][0] % mapping.PAGE
    finally:
        publication.release()


def segments_mapped() -> set[int]:
    """Inodes of the segments that this process has mapped."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        return {int(line.split()[4]) for line in file if "memfd:sharedtask" in line}


def test_private_twin_does_not_touch_the_segment() -> None:
    """What is written into a copy-on-write twin is seen by no one else."""
    publication = Publication(codec.encode(np.zeros(100_000)), watched=False)
    try:
        one, two = publication.private_value(), publication.private_value()
        one[:] = 1
        assert [0.0, 0.0] == [two.sum(), publication.value().sum()]
        two[:] = 2
        assert 100_000.0 == one.sum()
    finally:
        publication.release()


def test_view_outlives_its_publication() -> None:
    """A decoded array stays valid when the publication has been released."""
    publication = Publication(codec.encode(np.arange(100_000)), watched=False)
    view = publication.value()[10:20]
    publication.release()
    del publication
    assert list(range(10, 20)) == view.tolist()


def test_aliases_are_one_buffer() -> None:
    """An array that a value holds twice is encoded once."""
    rows = np.arange(1000.0)
    payload = codec.encode({"a": rows, "b": rows})
    assert 1 == len(payload.buffers)
    again = through({"a": rows, "b": rows})
    assert again["a"] is again["b"]


def test_slice_ships_only_itself() -> None:
    """A small slice of a large array is encoded as a small array."""
    assert 800 == sum(b.nbytes for b in codec.encode(np.zeros(1_000_000)[5:105]).buffers)


def test_small_strided_view_ships_only_itself() -> None:
    """A column of a large table is encoded as one column."""
    assert 8000 == sum(b.nbytes for b in codec.encode(np.zeros((1000, 500))[:, 3]).buffers)


def test_object_array_with_arrays_inside() -> None:
    """Arrays inside an object array are buffers too."""
    inner = np.arange(10_000.0)
    array = np.empty(2, object)
    array[:] = [inner, "text"]
    payload = codec.encode(array)
    assert inner.nbytes in [buffer.nbytes for buffer in payload.buffers]
    again = through(array)
    assert np.array_equal(inner, again[0])
    assert not again.flags.writeable


def test_array_with_metadata() -> None:
    """Metadata of a dtype is kept."""
    dtype = np.dtype("f8", metadata={"unit": "m"})
    again = through(np.zeros(3, dtype))
    assert {"unit": "m"} == again.dtype.metadata


def test_structured_array_with_titles_and_offsets() -> None:
    """Field names, offsets and padding of a structured dtype are kept."""
    dtype = np.dtype(
        {"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 24}
    )
    array = np.zeros(5, dtype)
    array["b"] = np.arange(5)
    again = through(array)
    assert dtype == again.dtype
    assert list(range(5)) == again["b"].tolist()


def test_object_in_a_structure() -> None:
    """A structured dtype with a field of objects survives."""
    array = np.zeros(2, [("name", object), ("size", "i4")])
    array["name"] = ["a", ["b"]]
    again = through(array)
    assert array.tolist() == again.tolist()


class Subclass(np.ndarray[Any, Any]):
    pass


@pytest.mark.parametrize(
    "array",
    [
        np.arange(4).view(Subclass),
        np.ma.masked_array([1, 2, 3], [False, True, False], fill_value=9),
        np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    ],
    ids=["subclass", "masked", "recarray"],
)
def test_kinds_of_arrays_keep_their_class(array: Any) -> None:
    """A subclass of ndarray, a masked array and a record array keep class, mask and values."""
    again = through(array)
    assert type(array) is type(again)
    assert array.tolist() == again.tolist()
    assert getattr(array, "fill_value", 0) == getattr(again, "fill_value", 0)


def test_unpicklable_value_raises_what_pickle_raises() -> None:
    """The codec does not hide pickle's own error."""
    with pytest.raises(TypeError, match="pickle"):
        codec.encode({"lock": threading.Lock()})


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_damaged_head_is_an_error(cut: int) -> None:
    """A head that was cut is an exception, never a wrong value."""
    head = codec.encode({"a": np.arange(4), "b": "text"}).head
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, IndexError)):
        codec.decode(head[:cut], [bytes(32)])


@pytest.mark.parametrize(
    "sizes", [(), (0,), (1,), (5, 100_000, 0, 3), (65_536,), (1 << 21,)], ids=str
)
def test_layout_keeps_parts_apart(sizes: tuple[int, ...]) -> None:
    """Parts of a segment do not overlap, stand on cache lines, and large ones on pages."""
    payload = Payload(b"head", tuple(np.zeros(size, np.uint8) for size in sizes))
    layout = segments.Layout.of(payload)
    ends = 0
    for (start, length), size in zip(layout.parts, (*sizes, 4), strict=True):
        assert size == length
        assert start >= ends
        assert 0 == start % (mapping.PAGE if size >= 1 << 16 else 64)
        ends = start + length
    assert ends == layout.size


ADDRESSES = {
    "plain": lambda: np.arange(9.0),
    "one byte": lambda: np.ones(1, np.uint8),
    "no axes": lambda: np.array(3.5),
    "empty": lambda: np.zeros((0, 3)),
    "read-only": lambda: np.frombuffer(bytes(16)),
    "strided": lambda: np.arange(20.0)[3::2],
    "backwards": lambda: np.arange(20.0)[::-1],
    "in the middle": lambda: np.arange(20.0)[7:],
    "F order": lambda: np.zeros((3, 4), order="F"),
    "unaligned": lambda: np.zeros(17, np.uint8)[1:].view(np.float64),
    "dates": lambda: np.arange(5).astype("M8[s]"),
    "structure": lambda: np.zeros(4, [("a", "i8"), ("b", "f8", 2)]),
    "overlapping fields": lambda: np.zeros(
        4, {"names": ["a", "b"], "formats": ["i8", "i4"], "offsets": [0, 4]}
    ),
    "objects": lambda: np.array([1, None], object),
    "subclass": lambda: np.zeros(3).view(np.recarray),
    "no bytes": lambda: np.zeros(3, "V0"),
    "broadcast": lambda: np.broadcast_to(np.arange(3.0), (2, 3)),
}


@pytest.mark.parametrize("make", ADDRESSES.values(), ids=ADDRESSES)
def test_address_of_any_array(make: Any) -> None:
    """The address is the one that numpy tells, and asking for it leaves the array as it was."""
    array = make()
    flags = array.flags.num
    assert array.__array_interface__["data"][0] == mapping.address_of(array)
    assert flags == array.flags.num
