"""Memory that several arrays of a value share: stored once, without bytes that none uses.

Pickle passes buffers one by one, and does not detect two views of one base. So the arrays of a
value are compared when all are known, and a table after the pickle gives the place of each::

    head = pickle | table | length of the table | MARK          only where it says something

    buffers     #0 ................................   #1 ............
    arrays          a ----------------                    c ---------
                              b ----------------

While the value is decoded, pickle gets a ``Piece`` instead of such an array's buffer.
"""

from __future__ import annotations

import itertools
import pickle
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sharedtask.memory import mapping
from sharedtask.memory.mapping import bounds
from sharedtask.memory.strided import Scattered, Strip
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from sharedtask.memory.strided import Bytes, Source

# The last byte of a pickle is b".", so this one tells that a table follows.
_MARK = 0xFF
_LENGTH = struct.Struct("<Q")
# Unused memory is stored too only if it is at most as large as the used memory.
_WASTE = 2


class Row(NamedTuple):
    """The place of an array: the buffer, the offset in it, and the strides in bytes.

    Instead of strides, its length in bytes for objects that are no arrays. Without either it is the
    whole buffer.
    """

    buffer: int
    offset: int = 0
    form: tuple[int, ...] | int | None = None


class Extent:
    """A buffer that several arrays share; ``kept`` is for another library's object over it."""

    __slots__ = ("buffer", "kept")

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer
        self.kept: Any = None


@dataclass(frozen=True, slots=True)
class Piece:
    """An array's place in an extent."""

    extent: Extent
    offset: int
    strides: tuple[int, ...]

    def array(self, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The array; overlapping elements stay overlapping only if it is read-only."""
        found: npt.NDArray[Any]
        found = np.ndarray(shape, dtype, self.extent.buffer, self.offset, self.strides)
        low, high = bounds(found)
        return found.copy() if found.flags.writeable and high - low < found.nbytes else found


# ------------------------------------------------------------------------------- encoding


@dataclass(frozen=True, slots=True)
class _Member:
    """An array and its span; if ``bare``, only its bytes matter."""

    number: int
    array: npt.NDArray[Any]
    low: int
    high: int
    bare: bool

    @property
    def is_dense(self) -> bool:
        return self.high - self.low == self.array.nbytes


def flat(array: npt.NDArray[Any]) -> Bytes:
    """The bytes of an array in C order: the same memory if it is in that order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def source(array: npt.NDArray[Any]) -> Source:
    """The source of the same bytes: an array in another order is copied later, not now."""
    return flat(array) if array.flags.c_contiguous else Scattered.of(array)


def arrange(
    arrays: Sequence[npt.NDArray[Any]], bare: Container[int] = ()
) -> tuple[list[Source], bytes]:
    """The sources of these arrays, and the table with the place of each, if one is needed.

    For those whose numbers are in ``bare`` only the place of their bytes matters.
    """
    if _have_owners_each(arrays) and all(array.flags.c_contiguous for array in arrays):
        return list(map(flat, arrays)), b""
    spans = list(map(bounds, arrays))
    if _all_apart(spans) and not any(map(_needs_a_row, arrays, spans)):
        return list(map(source, arrays)), b""
    members = [_Member(n, array, *spans[n], n in bare) for n, array in enumerate(arrays)]
    buffers: list[Source] = []
    rows: dict[int, Row] = {}
    for group in _groups(members):
        _store(group, buffers, rows)
    if len(rows) == len(buffers) and all(row.form is None for row in rows.values()):
        return [buffers[rows[n].buffer] for n in range(len(arrays))], b""
    return buffers, _table([tuple(rows[n]) for n in range(len(arrays))])


def _have_owners_each(arrays: Sequence[npt.NDArray[Any]]) -> bool:
    """True if each array has another owner: the common case, and a fast check."""
    owners = set()
    for array in arrays:
        base = array.base
        if base is None:
            owners.add(id(array))
        elif type(base) is np.ndarray and base.base is None:
            owners.add(id(base))
        else:
            return False
    return len(owners) == len(arrays)


def _all_apart(spans: list[tuple[int, int]]) -> bool:
    end = 0
    for low, high in sorted(spans):
        if low < end and low < high:
            return False
        end = max(end, high)
    return True


def _needs_a_row(array: npt.NDArray[Any], span: tuple[int, int]) -> bool:
    """True if shape and order of axes do not describe the array completely.

    Elements overlap, or run backwards through memory.
    """
    low, high = span
    if high - low == array.nbytes:
        return is_flipped(array)
    return high - low < array.nbytes or 0 in array.strides or keeps_gaps(array, span)


def keeps_gaps(array: npt.NDArray[Any], span: tuple[int, int]) -> bool:
    """True if a view is stored with its gaps, since gathering would cost more, at each call.

    Only if the memory in between certainly exists, as part of the array that it is a view of.
    """
    low, high = span
    if not array.nbytes < high - low <= _WASTE * array.nbytes or 0 in array.strides:
        return False
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    begin, end = bounds(owner)
    return end - begin == owner.nbytes and begin <= low and high <= end


def is_flipped(array: npt.NDArray[Any]) -> bool:
    """True if an array is dense and in C order except for the direction of axes."""
    if array.flags.c_contiguous or min(array.strides, default=0) >= 0:
        return False
    forwards = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)
    return array[forwards].flags.c_contiguous


def _table(rows: list[tuple[Any, ...]]) -> bytes:
    table = pickle.dumps(rows, 5)
    return table + _LENGTH.pack(len(table)) + bytes([_MARK])


def _groups(members: list[_Member]) -> list[list[_Member]]:
    """Groups of members whose spans overlap, in the order in which pickle met them.

    Not in the order of addresses: temporary objects have other addresses each time, and an
    unchanged value must give the same buffers.
    """
    groups = [[m] for m in members if m.low == m.high]
    end = -1
    for member in sorted((m for m in members if m.low < m.high), key=lambda m: (m.low, m.number)):
        if member.low < end:
            groups[-1].append(member)
        else:
            groups.append([member])
        end = max(end, member.high)
    return sorted(groups, key=lambda group: min(m.number for m in group))


def _store(group: list[_Member], buffers: list[Source], rows: dict[int, Row]) -> None:
    """Give every member of a group its row, in as few bytes as keep shared memory shared."""
    if len(group) == 1:
        _store_alone(group[0], buffers, rows)
        return
    extents = _dense_extents(group)
    if all(any(low <= m.low and m.high <= high for low, high in extents) for m in group):
        for low, high in extents:
            inside = [m for m in group if low <= m.low and m.high <= high]
            _place(inside, low, buffers, rows)
            buffers.append(_memory(low, high, [m.array for m in inside]))
        return
    _store_scattered(group, buffers, rows)


def _store_alone(member: _Member, buffers: list[Source], rows: dict[int, Row]) -> None:
    array = member.array
    number = len(buffers)
    if not array.size or array.flags.c_contiguous or (member.is_dense and not is_flipped(array)):
        buffers.append(source(array))
        rows[member.number] = Row(number)
        return
    if is_flipped(array) or keeps_gaps(array, (member.low, member.high)):
        _place([member], member.low, buffers, rows)
        buffers.append(_memory(member.low, member.high, [array]))
        return
    core = array[tuple(slice(0, 1) if s == 0 else slice(None) for s in array.strides)]
    low, high = bounds(core)
    if high - low <= core.nbytes:  # overlapping elements: windows over a series
        _place([member], member.low, buffers, rows)
        buffers.append(_memory(low, high, [array]))
        return
    gathered = Scattered.of(core)
    steps = zip(gathered.strips[0].strides, array.strides, strict=True)
    repeated = core.shape != array.shape
    strides = tuple(0 if old == 0 else new for new, old in steps) if repeated else None
    rows[member.number] = Row(number, 0, strides)
    buffers.append(gathered)


def _dense_extents(group: list[_Member]) -> list[tuple[int, int]]:
    """The spans of the members without gaps, joined where they touch."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted((m.low, m.high) for m in group if m.is_dense):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined


def _place(group: list[_Member], low: int, buffers: list[Source], rows: dict[int, Row]) -> None:
    """Add rows of members whose memory is stored as it is, from ``low`` on."""
    for member in group:
        array = member.array
        form = array.nbytes if member.bare else array.strides
        offset = mapping.address_of(array) - low
        rows[member.number] = Row(len(buffers), offset, form)


def _memory(low: int, high: int, holders: list[npt.NDArray[Any]]) -> Bytes:
    """The memory itself, read-only, kept alive by its arrays."""
    owner = mapping.Owner(low, high - low, readonly=True, source=holders)
    return np.asarray(owner)


# Views with gaps: columns of a table that no array covers as a whole.


def _store_scattered(group: list[_Member], buffers: list[Source], rows: dict[int, Row]) -> None:
    pitch = _pitch(group)
    for columns in _columns(group, pitch) if pitch else [group]:
        if len(columns) == 1:
            _store_alone(columns[0], buffers, rows)
        else:
            _store_columns(columns, pitch, buffers, rows)


def _pitch(group: list[_Member]) -> int:
    """The distance from row to row if it is the same for all, else 0."""
    found = {max((abs(s) for s in _steps(m.array)), default=0) for m in group}
    pitch = found.pop() if len(found) == 1 else 0
    return pitch if all(_width(m, pitch) <= pitch for m in group) else 0


def _steps(array: npt.NDArray[Any]) -> list[int]:
    return [s for s, length in zip(array.strides, array.shape, strict=True) if length > 1]


def _width(member: _Member, pitch: int) -> int:
    """The bytes of one row that a member spans, gaps included."""
    array = member.array
    first = array[tuple(slice(0, 1) if abs(s) == pitch else slice(None) for s in array.strides)]
    low, high = bounds(first)
    return high - low


def _columns(group: list[_Member], pitch: int) -> list[list[_Member]]:
    """Groups of members with common columns; one group if rows cannot be determined."""
    for origin in {m.low % pitch for m in group}:
        spans = sorted(((m.low - origin) % pitch, _width(m, pitch), m.number, m) for m in group)
        if all(start + width <= pitch for start, width, _, _ in spans):
            return _disjoint([(start, start + width, m) for start, width, _, m in spans])
    return [group]


def _disjoint(spans: list[tuple[int, int, _Member]]) -> list[list[_Member]]:
    groups: list[list[_Member]] = []
    end = -1
    for start, stop, member in spans:
        if start < end:
            groups[-1].append(member)
        else:
            groups.append([member])
        end = max(end, stop)
    return groups


def _store_columns(
    group: list[_Member], pitch: int, buffers: list[Source], rows: dict[int, Row]
) -> None:
    """Store the columns of a group side by side, or its whole span if that is no gain."""
    low, high = min(m.low for m in group), max(m.high for m in group)
    shown = sum(m.array.nbytes for m in group)
    # Rows begin at the leftmost column: the one with no other to its left.
    begin, width = _leftmost(group, pitch) if pitch else (low, 0)
    if width and width < pitch:
        begin -= pitch * -(-(begin - low) // pitch)
        count = -(-(high - begin) // pitch)
        if count * width <= _WASTE * shown:
            _put_together(group, _Rows(begin, pitch, width, count), buffers, rows)
            return
    if high - low <= _WASTE * shown:
        _put_together(group, _Rows(low, high - low, high - low, 1), buffers, rows)
        return
    for member in group:  # separately: keeping the sharing would store too many unused bytes
        _store_alone(member, buffers, rows)


def _leftmost(group: list[_Member], pitch: int) -> tuple[int, int]:
    """An address where a row's columns begin, and the bytes from there to their end."""
    for member in group:
        ends = [(m.low - member.low) % pitch + _width(m, pitch) for m in group]
        if max(ends) <= pitch:
            return member.low, max(ends)
    return 0, 0


class _Rows(NamedTuple):
    """Rows ``pitch`` bytes apart of which ``width`` bytes are stored."""

    begin: int
    pitch: int
    width: int
    height: int


def _put_together(
    group: list[_Member], rows_of: _Rows, buffers: list[Source], rows: dict[int, Row]
) -> None:
    """Store only the bytes of the members: the memory in between may not exist."""
    begin, pitch, width, height = rows_of
    strips = []
    for member in group:
        array = member.array
        row, column = divmod(mapping.address_of(array) - begin, pitch)
        offset = row * width + column
        strides = tuple(s // pitch * width if s % pitch == 0 else s for s in array.strides)
        strips.append(Strip(array, offset, strides))
        form = array.nbytes if member.bare else strides
        rows[member.number] = Row(len(buffers), offset, form)
    buffers.append(Scattered(width * height, tuple(strips)))


# ------------------------------------------------------------------------------- decoding


def laid_out(head: bytes | memoryview, buffers: Iterable[Any]) -> Iterable[Any]:
    """The buffers in the order of pickle: by the table, if one follows the pickle."""
    if head[-1] != _MARK:
        return buffers
    end = len(head) - 1 - _LENGTH.size
    (length,) = _LENGTH.unpack(head[end:-1])
    if not 0 < length < end:
        msg = f"a table of {length} bytes in a head of {len(head)}"
        raise ValueError(msg)
    return _pieces(pickle.loads(head[end - length : end]), list(buffers))


def _pieces(rows: list[tuple[Any, ...]], buffers: list[Any]) -> Iterator[Any]:
    extents = [Extent(buffer) for buffer in buffers]
    for row in itertools.starmap(Row, rows):
        if row.form is None:
            yield buffers[row.buffer]
        elif isinstance(row.form, int):
            yield memoryview(buffers[row.buffer])[row.offset : row.offset + row.form]
        else:
            yield Piece(extents[row.buffer], row.offset, row.form)
