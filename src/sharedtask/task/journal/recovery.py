"""Copies the readable results of a damaged journal into a new one.

SQLite rejects a damaged file as a whole. Here each page is read by itself, also those in the
``-wal`` file: rows are in pages of one kind, and a row whose checksum matches is valid. This
follows https://www.sqlite.org/fileformat.html.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Any

from sharedtask.errors import JournalError
from sharedtask.system.records import dataclass

from .database import PAGE, Journal, Row, RunRow

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Recovered", "recover"]

_TABLE_LEAF = 0x0D
_WAL_HEADER, _FRAME_HEADER = 32, 24
_ROWS_AT_ONCE = 1000
# Maximum of a row in its page; the rest overflows into other pages.
_LARGEST = PAGE - 35
_LEAST = (PAGE - 12) * 32 // 255 - 23
_WIDTHS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many runs and results were copied."""

    runs: int
    results: int


def recover(path: str, new: str) -> Recovered:
    """Copy every readable result of the journal at ``path`` into a new one.

    Raises:
        JournalError: ``path`` cannot be read, or ``new`` exists.
    """
    path, new = os.path.realpath(path), os.path.realpath(new)
    if os.path.lexists(new):
        raise JournalError(new, "there is such a file already. Name one that is not there.")
    image = _read(path)
    images = [image]
    with contextlib.suppress(JournalError):
        images.append(_laid_over(image, _read(f"{path}-wal")))
    out = Journal(new)
    try:
        return _copied(images, out)
    finally:
        out.close()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise JournalError(path, f"it cannot be read ({error.strerror}).") from None


def _laid_over(image: bytes, wal: bytes) -> bytes:
    """The file, updated with the pages of its -wal file."""
    whole = bytearray(image)
    for at in range(_WAL_HEADER, len(wal) - PAGE, _FRAME_HEADER + PAGE):
        start = (int.from_bytes(wal[at : at + 4], "big") - 1) * PAGE
        if 0 <= start <= len(image) + len(wal):
            whole.extend(bytes(max(start + PAGE - len(whole), 0)))
            whole[start : start + PAGE] = wal[at + _FRAME_HEADER : at + _FRAME_HEADER + PAGE]
    return bytes(whole)


def _copied(images: list[bytes], out: Journal) -> Recovered:
    runs: dict[int, RunRow] = {}
    found: dict[tuple[int, int, bytes], None] = {}
    waiting: list[Row] = []
    for image in images:
        for row in _rows(image):
            if isinstance(row, RunRow):
                runs[row.id] = row
            else:
                found[row.run, row.place, row.item] = None
                waiting.append(row)
            if len(waiting) >= _ROWS_AT_ONCE:
                out.add(waiting)
                waiting.clear()
    out.add(waiting)
    for row in runs.values():
        out.begin(row)
    out.commit(0)
    return Recovered(len(runs), len(found))


def _rows(image: bytes) -> Iterator[RunRow | Row]:
    """Every sound row in the pages of a file."""
    for start in range(0, len(image), PAGE):
        header = 100 if start == 0 else 0
        if image[start + header : start + header + 1] == bytes([_TABLE_LEAF]):
            yield from _rows_of_page(image, start, header)


def _rows_of_page(image: bytes, start: int, header: int) -> Iterator[RunRow | Row]:
    count = int.from_bytes(image[start + header + 3 : start + header + 5], "big")
    for k in range(min(count, PAGE // 4)):
        at = start + header + 8 + 2 * k
        offset = int.from_bytes(image[at : at + 2], "big")
        with contextlib.suppress(ValueError, LookupError, TypeError, struct.error):
            row = _row(*_record(image, start, start + offset))
            if row.is_sound:
                yield row


def _record(image: bytes, start: int, at: int) -> tuple[int, list[Any]]:
    """The id of a row, and its columns."""
    length, at = _varint(image, at)
    number, at = _varint(image, at)
    data = _payload(image, start, at, length)
    end, at = _varint(data, 0)
    body, columns = end, []
    while at < end:
        kind, at = _varint(data, at)
        value, width = _column(kind, data, body)
        columns.append(value)
        body += width
    return number, columns


def _payload(image: bytes, start: int, at: int, length: int) -> bytes:
    """The bytes of a row, from its page and from its overflow pages."""
    if length <= _LARGEST:
        return image[at : at + length]
    here = _LEAST + (length - _LEAST) % (PAGE - 4)
    here = here if here <= _LARGEST else _LEAST
    if at + here + 4 > start + PAGE or length > len(image):
        raise ValueError(length)
    parts = [image[at : at + here]]
    page = int.from_bytes(image[at + here : at + here + 4], "big")
    left = length - here
    while left > 0:
        data = image[(page - 1) * PAGE : page * PAGE]
        if page < 1 or len(data) < PAGE:
            raise ValueError(page)
        parts.append(data[4 : 4 + left])
        left -= PAGE - 4
        page = int.from_bytes(data[:4], "big")
    return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for k in range(8):
        byte = data[at + k]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + k + 1
    return value << 8 | data[at + 8], at + 9


def _column(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    """The value of a column, and its size in bytes."""
    if kind in _WIDTHS:
        width = _WIDTHS[kind]
        return int.from_bytes(data[at : at + width], "big", signed=True), width
    if kind == 7:
        return struct.unpack_from(">d", data, at)[0], 8
    if kind >= 12:
        width = (kind - 12) // 2
        value = data[at : at + width]
        if len(value) < width:
            raise ValueError(kind)
        return (value.decode() if kind % 2 else value), width
    return {0: None, 8: 0, 9: 1}[kind], 0


def _row(number: int, columns: list[Any]) -> RunRow | Row:
    if len(columns) == len(Row._fields):
        return Row(*columns)
    return RunRow(number, *columns[1:])
