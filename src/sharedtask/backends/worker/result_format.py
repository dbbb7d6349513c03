"""Formats of results from a worker: a column of numbers, joined scalars, or records.

Every result is recorded as soon as its item is done, so that a crash in the next item does not lose
it. Floats, ints and bools go into a column, at 0.05 us each. Other scalars are written by
``marshal`` one after the other and read back as one list. Anything else becomes a record: a status
byte, a length, an envelope.
"""

from __future__ import annotations

import marshal
import pickle
import struct
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from sharedtask.errors import SerializationError
from sharedtask.outcomes import Batch, RaisedError
from sharedtask.serialization import codec
from sharedtask.system import interrupts

from . import envelope

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Version 2 has exact floats and no references between values, so that strings of it can be joined.
_MARSHAL_VERSION = 2
_LIST = b"["

# Formats of results, the first byte of a RESULTS body, from special to general.
NOTHING, FLOATS, INTS, BOOLS, SCALARS, NUMPY, RECORDS = range(7)
FINISHED, TRACED = 0x80, 0x40

# Exact types only: a subclass of float is not a float here.
_Format: TypeAlias = Literal["d", "q", "?"]
COLUMNS: dict[type, _Format] = {float: "d", int: "q", bool: "?"}
COLUMN_MODES: dict[int, _Format] = {FLOATS: "d", INTS: "q", BOOLS: "?"}
WIDTHS = {FLOATS: 8, INTS: 8, BOOLS: 1}
PLAIN_TYPES: frozenset[type] = frozenset((int, float, bool, type(None), str, bytes, complex))
_BOUND_TYPES: frozenset[type] = frozenset((int, type(None)))
_OF_RANGE = 3
# numpy's scalars are written as (code, value) and rebuilt by the receiver.
NUMPY_TYPES: tuple[Any, ...] = (
    np.float64,
    np.float32,
    np.int64,
    np.int32,
    np.bool_,
    np.uint8,
    np.float16,
    np.int16,
    np.int8,
    np.uint16,
    np.uint32,
    np.uint64,
)
# Values of these types cannot be changed.
FIXED_TYPES: frozenset[type] = PLAIN_TYPES.union(NUMPY_TYPES, (range, type(...)))
NUMPY_CODES: dict[type, int] = {cls: code for code, cls in enumerate(NUMPY_TYPES)}
_MODES: dict[type, int] = {
    **dict.fromkeys(PLAIN_TYPES, SCALARS),
    **dict.fromkeys(NUMPY_TYPES, NUMPY),
    **dict(zip(COLUMNS, COLUMN_MODES, strict=True)),
}

OK, RAISED = 0, 1
_RECORD = struct.Struct("<BI")


def is_plain(mode: int) -> bool:
    """Whether results in this format are read without unpickling anything."""
    return mode != RECORDS


def mode_of(value: Any) -> int:
    """The least general format for a result."""
    return _MODES.get(type(value), RECORDS)


def dump_scalar(value: Any) -> bytes:
    """A scalar as bytes that can be joined to others."""
    code = NUMPY_CODES.get(type(value))
    content = value if code is None else (code, value.item())
    return marshal.dumps(content, _MARSHAL_VERSION)


def load_scalars(data: bytes | memoryview, count: int, *, numpy: bool) -> list[Any]:
    """The list of ``count`` scalars that were written into ``data``."""
    values: list[Any] = marshal.loads(_LIST + count.to_bytes(4, "little") + data)
    if not numpy:
        return values
    return [NUMPY_TYPES[v[0]](v[1]) if type(v) is tuple else v for v in values]


def dump_items(items: Sequence[Any]) -> bytes | None:
    """Items as one string if all are scalars; else None, and they need the codec.

    A range is written as its three numbers, slices as a tuple of such, others as a list.
    """
    if type(items) is range:
        return marshal.dumps((items.start, items.stop, items.step), _MARSHAL_VERSION)
    kinds = set(map(type, items))
    if kinds <= PLAIN_TYPES:
        return marshal.dumps(list(items), _MARSHAL_VERSION)
    if kinds == {slice}:
        return _dump_slices(items)
    return None


def _dump_slices(slices: Sequence[slice]) -> bytes | None:
    """Slices of plain numbers: the blocks of partitioned arrays are often named by them."""
    bounds = [(each.start, each.stop, each.step) for each in slices]
    if not _BOUND_TYPES.issuperset(map(type, chain.from_iterable(bounds))):
        return None
    return marshal.dumps((tuple(bounds),), _MARSHAL_VERSION)


def load_items(data: bytes | memoryview) -> Sequence[Any]:
    """The items from ``dump_items``."""
    items: Any = marshal.loads(data)
    if type(items) is list:
        return items
    return range(*items) if len(items) == _OF_RANGE else [slice(*bounds) for bounds in items[0]]


def record(status: int, packed: envelope.Envelope) -> bytes:
    """A record ready for the outbox."""
    return _RECORD.pack(status, len(packed.data)) + packed.data


def raised_record(error: RaisedError) -> bytes:
    """The record of an item that raised."""
    fields = (error.class_name, error.text, error.trace, error.pickled)
    return record(RAISED, envelope.Envelope(pickle.dumps(fields, codec.PROTOCOL)))


def load_batch(
    mode: int,
    data: bytes | memoryview,
    count: int,
    first: int,
    task: str,
    attachments: Iterator[Any],
) -> Batch:
    """The outcomes in the body of a RESULTS frame, or in a dead worker's outbox.

    If they cannot be read, these items get the error as their outcome: the thread that waits for
    them may not be able to raise it.
    """
    try:
        batch = _load(mode, data, count, first, task, attachments)
        if len(batch.values) != count:
            raise ValueError(f"{len(batch.values)} results of {count}")
    except envelope.DAMAGED as error:
        problem = SerializationError(
            f"{task}(): results from item {first} on arrived damaged: {error!r}"
        )
        problem.__cause__ = error
        return Batch(first, [None] * count, dict.fromkeys(range(count), problem))
    return batch


def _load(
    mode: int,
    data: bytes | memoryview,
    count: int,
    first: int,
    task: str,
    attachments: Iterator[Any],
) -> Batch:
    if mode in COLUMN_MODES:
        column = memoryview(data)[: count * WIDTHS[mode]]
        return Batch(first, column.cast(COLUMN_MODES[mode]).tolist())
    if mode != RECORDS:
        return Batch(first, load_scalars(data, count, numpy=mode == NUMPY))
    batch = Batch(first, [None] * count)
    view = memoryview(data)
    for offset in range(count):
        status, length = _RECORD.unpack_from(view)
        view = view[_RECORD.size :]
        _load_record(status, view[:length], batch, offset, task, attachments)
        view = view[length:]
    return batch


def _load_record(
    status: int, data: memoryview, batch: Batch, offset: int, task: str, attachments: Iterator[Any]
) -> None:
    try:
        if status == RAISED:
            raised = RaisedError(*pickle.loads(data))
            batch.errors[offset] = raised.restore(task, batch.first + offset)
            return
        received = envelope.unpack(data, attachments, private=False)
        batch.values[offset] = codec.decode(received.head, received.buffers)
    except BaseException as error:  # unpickling runs user code, which may even exit
        if interrupts.is_real(error):
            raise
        index = batch.first + offset
        problem = SerializationError(
            f"{task}(): the result of item {index} cannot be unpickled here: {error!r}"
        )
        problem.__cause__ = error
        batch.errors[offset] = problem
