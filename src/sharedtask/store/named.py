"""Values with a name: one process keeps them, and unrelated processes open them.

    keep(value, name)  -> Kept    memory that others can open, and the entry that locates it
    open_named(name)   -> Opened  the same memory, through a descriptor of this process

An array that is already in shared memory is shared in place; any other array is copied
there. Both can be attached writable. Every other value becomes a sealed segment:

    buffers | head | table: the entry's nonce, the head's checksum, the offset of each part

The nonce, and the checksum of the table in the entry, tie the segment to the entry, so that no
other data is ever unpickled.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.errors import NameRefusedError, SharedTaskError
from sharedtask.memory import arrays, capacity, locations, segments
from sharedtask.memory.integrity import NONCE_BYTES, Mark
from sharedtask.memory.locations import Memory
from sharedtask.memory.payload import Payload
from sharedtask.memory.segments import Layout
from sharedtask.serialization import codec
from sharedtask.system.records import dataclass

from . import name_registry, stores
from .name_registry import Claim, Entry
from .publication import Publication
from .stores import SegmentStore

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy.typing as npt

# The name may be released and claimed between the reading of its entry and the opening.
_TRIES = 3
_LONGEST_DTYPE = 1 << 16
_LONGEST_LOOK = 60


@dataclass(frozen=True, slots=True)
class Kept:
    """A value in memory that others can open, and the entry to be made of it."""

    publication: Publication
    entry: Entry


@dataclass(frozen=True, slots=True)
class Opened:
    """A value that another process keeps; ``array`` is set if it is an array."""

    publication: Publication
    entry: Entry
    claim: Claim
    array: npt.NDArray[Any] | None


# ------------------------------------------------------------------------------------ keeping


def keep(value: Any, name: str) -> Kept:
    """Put a value into memory that others can open.

    Raises the errors of encoding, and StoreFullError if there is too little memory.
    """
    if type(value) in {np.ndarray, np.memmap} and _can_be_told(value.dtype):
        return _keep_array(value, name)
    return _keep_value(value, name)


def _keep_array(value: npt.NDArray[Any], name: str) -> Kept:
    array, writable = value.view(np.ndarray), value.flags.writeable
    found = locations.find(array)
    if found is None:
        array, writable = arrays.array(array), True
        found = locations.find(array)
    assert found is not None  # noqa: S101  it was made there
    region = found.region
    form = {
        "dtype": _words_of(region.dtype),
        "shape": list(region.shape),
        "strides": list(region.strides),
        "offset": region.offset,
        "writable": writable,
    }
    look = f"{region.dtype} {region.shape}"
    entry = _entry(name, "array", look, array.nbytes, region.memory, form)
    return Kept(Publication(codec.encode_shared(array), watched=False), entry)


def _keep_value(value: Any, name: str) -> Kept:
    # Not in place: attached elsewhere, it must survive the process that shared it.
    payload = codec.encode(value)
    store = _seal(payload)
    publication = _publication_of(store)
    return Kept(publication, _entry_of(store, name, type(value).__name__, payload.nbytes))


def _publication_of(store: SegmentStore) -> Publication:
    """A publication of a segment's contents, which are never compared."""
    return Publication(Payload(b"", ()), watched=False, keep=lambda _: store)


def _entry(
    name: str,
    kind: str,
    look: str,
    nbytes: int,
    memory: Memory,
    form: dict[str, Any],
    nonce: str = "",
) -> Entry:
    return Entry(
        name=name,
        nonce=nonce or secrets.token_hex(NONCE_BYTES),
        kind=kind,
        look=look if len(look) <= _LONGEST_LOOK else f"{look[:_LONGEST_LOOK]}...",
        nbytes=nbytes,
        fd=memory.fd,
        device=memory.device,
        inode=memory.inode,
        size=memory.size,
        created=time.time(),
        form=form,
        **name_registry.origin(),
    )


# ----------------------------------------------------------------------------------- segments


def _seal(payload: Payload) -> SegmentStore:
    """Store a payload in a segment that contains its own layout."""
    numbers = itertools.chain(*Layout.of(payload).parts)
    return stores.seal(payload, _words(zlib.crc32(payload.head), *numbers))


def _words(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}Q", *numbers)


def _entry_of(store: SegmentStore, name: str, look: str, nbytes: int) -> Entry:
    assert store.fd is not None  # noqa: S101  it is new
    mark, size = store.mark, store.layout.size
    memory = Memory(os.getpid(), store.fd, mark.device, mark.inode, size)
    table = os.pread(store.fd, size - mark.at, mark.at)
    form = {
        "table": [mark.at, len(table)],
        "checksum": zlib.crc32(table),
        "sealed": segments.uses_memfd(),
    }
    return _entry(name, "value", look, nbytes, memory, form, mark.nonce.hex())


def _table_of(fd: int, entry: Entry) -> tuple[Layout, Mark]:
    """The layout and the mark from the table of a segment."""
    start, length = entry.form["table"]
    if min(start, length) < 0 or start + length > entry.size:
        raise ValueError
    data = os.pread(fd, length, start)
    nonce, words = data[:NONCE_BYTES], data[NONCE_BYTES:]
    if nonce.hex() != entry.nonce or zlib.crc32(data) != entry.form["checksum"]:
        raise ValueError
    checksum, *numbers = struct.unpack(f"={len(words) // 8}Q", words)
    parts = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    mark = Mark(entry.device, entry.inode, start, nonce, checksum)
    return Layout(parts, entry.size), mark


# ------------------------------------------------------------------------------------ opening


def open_named(name: str, *, writable: bool = False) -> Opened:
    """Open the value that another process keeps under a name.

    Raises:
        InvalidNameError: It is not a possible name.
        UnknownNameError: No value is shared under it.
        NameRefusedError: The entry is damaged, belongs to another user, or is not writable.
        StoreFullError: This process has no descriptors or address space left.
    """
    name_registry.check_name(name)
    reason = ""
    for _ in range(_TRIES):
        with segments.translated(0):
            entry, claim = name_registry.find(name)
        if writable:
            _require_writable(entry)
        memory = Memory(entry.pid, entry.fd, entry.device, entry.inode, entry.size)
        with segments.translated(entry.size):
            try:
                fd = locations.reopened(memory, writable=writable)
            except LookupError as error:
                reason = _why(entry, error)
                continue
            return _opened(entry, claim, fd, writable=writable)
    raise NameRefusedError(name, reason)


def _why(entry: Entry, error: LookupError) -> str:
    """Why a living owner's memory cannot be opened; raises errors of this process itself."""
    cause = error.__cause__
    if isinstance(cause, PermissionError):
        return (
            f"process {entry.pid}, which shares it, does not let this one open its memory. "
            "Run both as the same user, with the same rights."
        )
    if isinstance(cause, OSError) and cause.errno in capacity.NO_DESCRIPTORS:
        raise cause
    return f"{error}."


def _require_writable(entry: Entry) -> None:
    if entry.kind != "array":
        reason = f"it is a {entry.look}, a snapshot, which is read-only. Only arrays are writable."
        raise NameRefusedError(entry.name, f"{reason} Attach without writable=True.")
    if not entry.form.get("writable"):
        reason = "it was shared from a read-only array. Attach without writable=True."
        raise NameRefusedError(entry.name, reason)


def _opened(entry: Entry, claim: Claim, fd: int, *, writable: bool) -> Opened:
    """Use the descriptor, or close it."""
    if entry.kind == "array":
        array = _open_array(entry, fd, writable=writable)
        publication = Publication(codec.encode_shared(array), watched=False)
        return Opened(publication, entry, claim, array)
    return Opened(_publication_of(_open_value(entry, fd)), entry, claim, None)


def _open_array(entry: Entry, fd: int, *, writable: bool) -> npt.NDArray[Any]:
    """Make the array as if it was created here, so that no call copies it."""
    view = locations.adopted(fd, entry.size, writable=writable)
    form = entry.form
    with _checked(entry):
        dtype = _dtype_of(form["dtype"])
        if dtype.hasobject:
            raise ValueError
        # numpy refuses arrays that exceed the memory.
        return np.ndarray(form["shape"], dtype, view, form["offset"], form["strides"])


def _open_value(entry: Entry, fd: int) -> SegmentStore:
    try:
        with _checked(entry):
            _require_trust(entry, fd)
            return stores.unseal(fd, *_table_of(fd, entry))
    except BaseException:
        os.close(fd)
        raise


@contextlib.contextmanager
def _checked(entry: Entry) -> Generator[None]:
    """Translate every error of an entry's form into one."""
    try:
        yield
    except NameRefusedError:
        raise
    except (SharedTaskError, KeyError, TypeError, ValueError, OverflowError, struct.error):
        reason = "its entry does not fit its memory. Share it again, in the process that does."
        raise NameRefusedError(entry.name, reason) from None


def _require_trust(entry: Entry, fd: int) -> None:
    """Check that the memory to unpickle is this user's and immutable."""
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise NameRefusedError(entry.name, f"its memory belongs to user {status.st_uid}.")
    if entry.form["sealed"]:
        if not segments.is_sealed(fd, segments.FROZEN):
            raise ValueError
    elif segments.uses_memfd():
        reason = "it was shared with SHAREDTASK_STORE=file. Set the same here."
        raise NameRefusedError(entry.name, reason)


# ------------------------------------------------------------------------------------- dtypes


def _can_be_told(dtype: np.dtype[Any]) -> bool:
    """True for dtypes that can be written in JSON; the codec takes the others."""
    if dtype.hasobject or not dtype.itemsize:
        return False
    words = _words_of(dtype)
    return len(str(words)) <= _LONGEST_DTYPE and _dtype_of(words) == dtype


def _words_of(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_words_of(base), list(shape)]
    if dtype.names is None:
        return dtype.str
    fields: Any = dtype.fields
    return {
        "names": list(dtype.names),
        "formats": [_words_of(fields[name][0]) for name in dtype.names],
        "offsets": [fields[name][1] for name in dtype.names],
        "itemsize": dtype.itemsize,
    }


def _dtype_of(words: Any) -> np.dtype[Any]:
    if isinstance(words, str):
        return np.dtype(words)
    if isinstance(words, list):
        base, shape = words
        return np.dtype((_dtype_of(base), tuple(shape)))
    told: Any = {**words, "formats": [_dtype_of(each) for each in words["formats"]]}
    dtype: np.dtype[Any] = np.dtype(told)
    return dtype
