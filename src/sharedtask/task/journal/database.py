"""A journal: finished results in one SQLite file, which survives the process that wrote it.

    runs     one row for each task with the same code, values and arguments; its id is its key
    results  one row for each finished item: its place, its digest, the result, a checksum

Every row has its own checksum, since SQLite has none. No other process writes while a journal is
open here: a lock on a separate file ensures that, which the kernel releases when its holder dies.
``_translated`` converts SQLite's own errors.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sqlite3
import stat
import struct
import time
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from sharedtask.errors import JournalError
from sharedtask.memory import mapping
from sharedtask.serialization import codec
from sharedtask.system.finalizers import Ending
from sharedtask.system.records import dataclass

from .lock import Lock

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

__all__ = ["Journal", "Row", "RunRow", "reading"]

APPLICATION = 0x7374_6A6C  # "stjl"
VERSION = 2
# Earlier formats, and which versions wrote them. In 1 values name modules that no longer exist.
_WRITERS = {1: ", of sharedtask before 0.1.0"}
PAGE = 4096
_MAGIC = b"SQLite format 3\0"
_HEADER = struct.Struct(">60xI4xI")  # version of ours, application
_SCHEMA = f"""
PRAGMA page_size = {PAGE};
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
BEGIN;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, task TEXT NOT NULL, parts TEXT NOT NULL, crc INTEGER NOT NULL,
    begun REAL NOT NULL, written REAL NOT NULL, total INTEGER, finished INTEGER NOT NULL
);
CREATE TABLE results (
    run INTEGER NOT NULL, place INTEGER NOT NULL, item BLOB NOT NULL, crc INTEGER NOT NULL,
    value BLOB NOT NULL, PRIMARY KEY (run, place, item)
);
COMMIT;
PRAGMA journal_mode = WAL;
"""


class RunRow(NamedTuple):
    """A run as stored in the file; ``parts`` has its digests by part, as JSON."""

    id: int
    task: str
    parts: str
    crc: int
    begun: float
    written: float
    total: int | None
    finished: int

    @property
    def is_sound(self) -> bool:
        """Whether its checksum matches."""
        return self.crc == crc_of_run(self.id, self.task, self.parts)

    def digests(self) -> dict[str, str]:
        """The digest of each part."""
        found: dict[str, str] = json.loads(self.parts)
        return found


class Row(NamedTuple):
    """The result of an item as stored in the file."""

    run: int
    place: int
    item: bytes
    crc: int
    value: bytes

    @property
    def is_sound(self) -> bool:
        """Whether its checksum matches."""
        return self.crc == _crc_of_result(self.run, self.place, self.item, self.value)


def crc_of_run(run: int, task: str, parts: str) -> int:
    """The checksum of a run."""
    return zlib.crc32(f"{run}\0{task}\0{parts}".encode("utf-8", "surrogatepass"))


_PLACE = struct.Struct("<qq")


def _crc_of_result(run: int, place: int, item: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(_PLACE.pack(run, place) + item))


def result_row(run: int, place: int, item: bytes, value: bytes) -> Row:
    """A row with its checksum."""
    return Row(run, place, item, _crc_of_result(run, place, item, value), value)


# ------------------------------------------------------------------------------- values

_LENGTH = struct.Struct("<Q")
_NO_BUFFERS = _LENGTH.pack(0)
# Types that the codec would write equally, in ten times the time.
_ATOMS = frozenset((int, float, complex, bool, str, type(None)))


def packed(value: object) -> bytes:
    """A result as bytes: its buffers with their lengths, then the pickle.

    Raises:
        Exception: Any error of pickling it.
    """
    if type(value) in _ATOMS:
        return _NO_BUFFERS + pickle.dumps(value, codec.PROTOCOL)
    payload = codec.encode(value, by_path=False, by_name=True)
    lengths = b"".join(_LENGTH.pack(source.nbytes) for source in payload.sources)
    count = _LENGTH.pack(len(payload.sources))
    return b"".join((count, lengths, *map(mapping.memory_of, payload.buffers), payload.head))


def unpacked(data: bytes) -> Any:
    """The result, with writable arrays."""
    (count,) = _LENGTH.unpack_from(data)
    at = _LENGTH.size * (count + 1)
    view, buffers = memoryview(data), []
    for k in range(count):
        (length,) = _LENGTH.unpack_from(data, _LENGTH.size * (k + 1))
        buffers.append(bytearray(view[at : at + length]))
        at += length
    return codec.decode(view[at:], buffers)


# --------------------------------------------------------------------------------- the file


class Journal:
    """A journal open for writing, by this process only."""

    def __init__(self, path: str) -> None:
        """Open the file, or create it.

        Raises:
            JournalError: Another process has it, or it is damaged, no journal, or not writable.
        """
        self.path = path
        self._lock = Lock(path)
        self._begun = False
        try:
            if not _is_there(path):
                _create(path)
            _check_header(path)
            self._db = _connected(path, "rw")
            self._ending = Ending(self, partial(_close, self._db, self._lock))
        except BaseException:
            self._lock.release()
            raise
        try:
            self._file = _identity(path)
            with _translated(path):
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                _check_pages(self._db, path)
        except BaseException:
            self.close()
            raise

    def is_in_place(self) -> bool:
        """Whether the path still names the file that was opened."""
        return _identity(self.path) == self._file

    def runs(self) -> list[RunRow]:
        """All runs, oldest first.

        Raises:
            JournalError: One of them is damaged.
        """
        return _runs(self._db, self.path)

    def count(self, run: int) -> int:
        """How many items of a run have a result."""
        return _count(self._db, self.path, run)

    def begin(self, row: RunRow) -> None:
        """Record the begin of a run, or its continuation."""
        with _translated(self.path):
            self._db.execute("INSERT OR IGNORE INTO runs VALUES (?,?,?,?,?,?,?,?)", row)
            self._db.execute("UPDATE runs SET finished = 0 WHERE id = ?", (row.id,))
            self._note_total(row.id, row.total)

    def rows(self, run: int, first: int, stop: int) -> list[Row]:
        """The results of items from ``first`` to before ``stop``."""
        query = "SELECT * FROM results WHERE run = ? AND place >= ? AND place < ?"
        with _translated(self.path):
            return list(map(Row._make, self._db.execute(query, (run, first, stop))))

    def add(self, rows: Iterable[Row]) -> None:
        """Write results, which the next ``commit`` makes durable."""
        with _translated(self.path):
            if not self._begun:
                self._db.execute("BEGIN IMMEDIATE")
                self._begun = True
            self._db.executemany("INSERT OR REPLACE INTO results VALUES (?,?,?,?,?)", rows)

    def commit(self, run: int) -> None:
        """Make added results durable, even if this process dies."""
        if self._begun:
            with _translated(self.path):
                self._db.execute("UPDATE runs SET written = ? WHERE id = ?", (time.time(), run))
                self._db.execute("COMMIT")
                self._begun = False

    def finish(self, run: int, total: int) -> None:
        """Record the end of a run, and whether every item has a result."""
        self.commit(run)
        query = "UPDATE runs SET finished = total <= ? WHERE id = ?"
        with _translated(self.path):
            self._note_total(run, total)
            self._db.execute(query, (self.count(run), run))

    def _note_total(self, run: int, total: int | None) -> None:
        """Record the number of items of a run: that of the longest call."""
        query = "UPDATE runs SET total = max(ifnull(total, 0), ?) WHERE id = ?"
        if total is not None:
            self._db.execute(query, (total, run))

    def close(self) -> None:
        """Close the journal; results that were not committed are lost. Idempotent."""
        self._ending.now()


def _close(db: sqlite3.Connection, lock: Lock) -> None:
    """End both, in this order; also where no one has closed the journal of a run that is freed."""
    if lock.is_ours:
        with contextlib.suppress(sqlite3.Error):
            db.close()
    lock.release()


@dataclass(frozen=True, slots=True)
class Told:
    """A run for display: with its number of items, and their bytes."""

    row: RunRow
    recorded: int
    nbytes: int


def reading(path: str) -> list[Told]:
    """The runs of a journal, also while a run writes to it.

    Raises:
        JournalError: There is none, it is damaged, or no journal.
    """
    path = os.path.realpath(path)
    if not os.path.lexists(path):
        raise JournalError(path, "there is no such file.")
    if not _is_there(path):
        return []
    _check_header(path)
    with contextlib.closing(_connected_to_read(path)) as db:
        _check_pages(db, path)
        query = "SELECT count(DISTINCT place), total(length(value)) FROM results WHERE run = ?"
        told = []
        for row in _runs(db, path):
            with _translated(path):
                count, nbytes = db.execute(query, (row.id,)).fetchone()
            told.append(Told(row, count, int(nbytes)))
        return told


def _runs(db: sqlite3.Connection, path: str) -> list[RunRow]:
    with _translated(path):
        rows = list(map(RunRow._make, db.execute("SELECT * FROM runs ORDER BY begun")))
    if not all(row.is_sound for row in rows):
        raise JournalError(path, damaged(path, "what it says of a run does not fit its checksum"))
    return rows


def _count(db: sqlite3.Connection, path: str, run: int) -> int:
    with _translated(path):
        query = "SELECT count(DISTINCT place) FROM results WHERE run = ?"
        found: int = db.execute(query, (run,)).fetchone()[0]
        return found


def _is_there(path: str) -> bool:
    """Whether the file has contents; an empty one counts as none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise JournalError(path, f"it cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
        raise JournalError(path, f"this is {kind}. Name a file, which need not exist yet.")
    if not status.st_size and _has_content(f"{path}-wal"):
        raise JournalError(path, "it is empty, and results are in the -wal file beside it. "
                           f"They can be copied: {_recover(path)}")  # fmt: skip
    return status.st_size > 0


def _identity(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def _has_content(path: str) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size > 0
    return False


def _check_header(path: str) -> None:
    """Refuse files that are not ours, before SQLite has touched them."""
    try:
        with open(path, "rb") as file:
            head = file.read(100)
    except OSError as error:
        raise JournalError(path, f"it cannot be read ({error.strerror}).") from None
    if not head.startswith(_MAGIC) or len(head) < 100:
        raise JournalError(path, _NOT_OURS.format("not a journal", _recover(path)))
    version, application = _HEADER.unpack_from(head)
    if application != APPLICATION:
        raise JournalError(path, _NOT_OURS.format("a database of another program", _recover(path)))
    if version != VERSION:
        raise JournalError(
            path,
            f"it has format {version}{_WRITERS.get(version, '')}, and this version of sharedtask"
            f" writes format {VERSION}. "
            "Take another file, or the version that wrote it. If none did, the file is damaged: "
            f"{_recover(path)}",
        )


_NOT_OURS = (
    "this is {}, and is left unchanged. Take another file. If it was a journal, its first page is "
    "damaged, and its readable results can be copied: {}"
)


def _recover(path: str) -> str:
    return f"sharedtask journal {path} --recover NEW"


def damaged(path: str, how: str) -> str:
    """The reason of an error, with what to do."""
    return f"it is damaged: {how}. Its readable results can be copied: {_recover(path)}"


def _check_pages(db: sqlite3.Connection, path: str) -> None:
    """Check every page, so that nothing is written into a damaged file."""
    with _translated(path):
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise JournalError(path, damaged(path, " ".join(verdict.split())))


def _create(path: str) -> None:
    """Create an empty journal: under another name first, so that it appears complete."""
    draft = f"{path}-new"
    try:
        # Files left over from a deleted journal would be taken for a part of this one.
        for rest in (draft, f"{path}-wal", f"{path}-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(rest)
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            with contextlib.closing(_connected(draft, "rw")) as db, _translated(path):
                db.executescript(_SCHEMA)
            os.fsync(file.fileno())
        os.rename(draft, path)
    except OSError as error:
        raise JournalError(path, f"it cannot be made ({error.strerror}).") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)


def _connected(path: str, mode: str) -> sqlite3.Connection:
    # An amap opens in one thread and continues in another, one at a time.
    with _translated(path):
        return sqlite3.connect(
            f"file:{quote(path)}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=5.0,
        )


def _connected_to_read(path: str) -> sqlite3.Connection:
    """Connect to read; without write permission to the -shm file, as an immutable file."""
    db = _connected(path, "rw")
    try:
        with _translated(path):
            db.execute("PRAGMA query_only = 1")
            db.execute("SELECT 1 FROM runs").fetchone()
    except JournalError:
        db.close()
        if os.access(os.path.dirname(path), os.W_OK) and os.access(path, os.W_OK):
            raise
        return _connected(path, "ro&immutable=1")
    return db


@contextlib.contextmanager
def _translated(path: str) -> Generator[None]:
    """Translate SQLite's errors into a JournalError with advice."""
    try:
        yield
    except sqlite3.DataError as error:
        raise JournalError(path, f"a result is too large for it ({error}).") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise JournalError(path, _reason(path, code, str(error))) from error
    except OverflowError as error:
        raise JournalError(path, f"a result is too large for it ({error}).") from error


def _reason(path: str, code: int, text: str) -> str:
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, text)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"another program is writing to it ({text}). Try again when it is done."
    if code == sqlite3.SQLITE_TOOBIG:
        return f"a result is too large for it ({text})."
    if code == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK):
        return damaged(path, text)  # its header says read-only
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"it cannot be written ({text}). Take a file in a folder that you can write to."
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return (
            f"it cannot be written ({text}). What was recorded before is safe: make room, and the "
            "same call goes on from there."
        )
    return damaged(path, text)
