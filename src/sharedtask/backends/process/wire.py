"""The frames between the caller's process and a worker, and how they are sent.

A frame is a fixed header, a body of ``length`` bytes, and up to 255 descriptors that are sent with
its first byte (SCM_RIGHTS). The header is outside every pickle, so even if a body is damaged, both
sides know its chunk::

    magic  kind  descriptors  count  chunk  first  elapsed  length  checksum | body
    u16    u8    u8           u32    u64    u64    u64      u64     u32      |

    caller -> worker    ATTACH a value for a token   DROP a token    CHUNK items to run   STOP
    worker -> caller    RESULTS outcomes of items    FAILED body unreadable    OUTPUT printed text
                        CHANGED a shared value           LOGS are there to read, many
    caller -> forkserver  SPAWN a worker   SIGNAL to a worker
    forkserver -> caller   SPAWNED   EXITED   STOPPED
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import threading
import zlib
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from sharedtask.backends.worker.result_format import TRACED
from sharedtask.errors import SharedTaskError
from sharedtask.system.descriptors import Descriptor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FIELDS = "<HBBIQQQQ"
_CHECKED, _HEADER = struct.Struct(_FIELDS), struct.Struct(_FIELDS + "I")
_MAGIC = 0x5348
_MAX_FDS = 16
_READ_SIZE = 1 << 18
# As plain numbers: the enumerations of the socket module cost microseconds at every use.
_ANCILLARY = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_CTRUNC = int(socket.MSG_CTRUNC)
# The end of a peer is an error to handle, also if the program's SIGPIPE action is to end it.
_NO_SIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))
_SO_NOSIGPIPE = 0x1022  # of macOS and the BSDs, which have no such flag
_SOL_SOCKET, _SCM_RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)


class Kind:
    """The kind of a frame."""

    ATTACH: Final = 1
    DROP: Final = 2
    CHUNK: Final = 3
    STOP: Final = 4
    RESULTS: Final = 5
    FAILED: Final = 6
    OUTPUT: Final = 7
    SPAWN: Final = 8
    SIGNAL: Final = 9
    SPAWNED: Final = 10
    EXITED: Final = 11
    STOPPED: Final = 12
    END: Final = 13
    CHANGED: Final = 14
    LOGS: Final = 15


class Frame(NamedTuple):
    """One message; what ``chunk``, ``first``, ``items`` and ``elapsed`` mean depends on the kind.

    A tuple, because two of them are made for every chunk, and it is four times as fast to make.
    """

    kind: int
    chunk: int = 0
    first: int = 0
    items: int = 0
    elapsed: int = 0
    body: bytes | memoryview = b""
    fds: tuple[int, ...] = ()

    def header(self) -> bytes:
        """The fixed part as bytes."""
        fields = _CHECKED.pack(
            _MAGIC,
            self.kind,
            len(self.fds),
            self.items,
            self.chunk,
            self.first,
            self.elapsed,
            len(self.body),
        )
        return fields + zlib.crc32(fields).to_bytes(4, "little")


def with_trace(mode: int, trace: bytes, data: bytes) -> bytes:
    """The body of a RESULTS frame that also tells the times of its chunk."""
    return b"".join((bytes((mode | TRACED,)), len(trace).to_bytes(4, "little"), trace, data))


def without_trace(frame: Frame) -> tuple[Frame, bytes]:
    """A RESULTS frame whose body is that of any other, and what was told beside."""
    kind, chunk, first, items, elapsed, body, fds = frame
    end = 5 + int.from_bytes(body[1:5], "little")
    plain = bytes((body[0] & ~TRACED,)) + body[end:]
    return Frame(kind, chunk, first, items, elapsed, plain, fds), bytes(body[5:end])


class ProtocolError(SharedTaskError):
    """Raised when the received bytes are not a frame: the connection is unusable."""


class Reader:
    """Splits the bytes received on a socket into frames."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray(_READ_SIZE)
        self._view = memoryview(self._buffer)
        self._fresh = self._view[:0]  # the bytes of the last read
        self._rest = bytearray()  # the start of an incomplete frame
        self._wanted = 0  # bytes needed before the next attempt
        self._fds: deque[int] = deque()

    def fill(self) -> bool:
        """Read once; False at the end of the stream. BlockingIOError if nothing is there."""
        if self._fresh:
            self._keep()
        size, ancillary, flags, _ = self._sock.recvmsg_into((self._view,), _ANCILLARY, _CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (_SOL_SOCKET, _SCM_RIGHTS):
                self._fds.extend(_own(_ints(content)))
        if flags & _CTRUNC:
            msg = "descriptors were lost on arrival: this process may not open more (RLIMIT_NOFILE)"
            raise ProtocolError(msg)
        self._fresh = self._view[:size]
        return size > 0

    def frames(self) -> list[Frame]:
        """The frames that are complete; their bodies are copies."""
        if self._rest:
            self._keep()
            if len(self._rest) < self._wanted:
                return []
            self._fresh, self._rest = memoryview(self._rest), bytearray()
        found = []
        while self._fresh and (frame := self._cut()) is not None:
            found.append(frame)
        if self._fresh:
            self._keep()
        return found

    def _cut(self) -> Frame | None:
        data = self._fresh
        self._wanted = _HEADER.size
        if len(data) < _HEADER.size:
            return None
        magic, kind, fds, count, chunk, first, elapsed, length, told = _HEADER.unpack_from(data)
        # Without the checksum, a wrong length or count would be trusted, and waited for.
        if magic != _MAGIC or told != zlib.crc32(data[: _CHECKED.size]):
            msg = "what arrived on a worker's socket is not a frame; did the task close it?"
            raise ProtocolError(msg)
        self._wanted = end = _HEADER.size + length
        if len(data) < end:
            return None
        if fds > len(self._fds):
            msg = f"{fds} descriptors were sent with a frame, and {len(self._fds)} have arrived"
            raise ProtocolError(msg)
        self._fresh = data[end:]
        taken = tuple(self._fds.popleft() for _ in range(fds)) if fds else ()
        return Frame(kind, chunk, first, count, elapsed, bytes(data[_HEADER.size : end]), taken)

    def _keep(self) -> None:
        """Copy the remaining bytes out of the buffer, which the next read overwrites."""
        self._rest += self._fresh
        self._fresh = self._view[:0]

    def close(self) -> None:
        """Close the descriptors that no frame claimed."""
        while self._fds:
            os.close(self._fds.popleft())


class OwnSocket(socket.socket):
    """A non-blocking socket that checks that its descriptor is still its own.

    A program may close descriptors that it did not open. The next file that it opens gets the same
    number, and must not be read, written or closed here.
    """

    __slots__ = ("is_open",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.setblocking(False)
        without_signal(self)
        self.is_open = Descriptor.of(self.fileno()).is_open

    def give_up(self) -> None:
        """Mark the socket as lost."""
        self.is_open = bool

    def close(self) -> None:
        if self.is_open():
            super().close()
        else:
            self.detach()
        self.give_up()


class Writer:
    """Sends frames on a non-blocking socket and queues the rest when it is full."""

    def __init__(self, sock: OwnSocket) -> None:
        self._sock = sock
        self._backlog: deque[tuple[memoryview, tuple[Descriptor, ...]]] = deque()

    @property
    def pending(self) -> bool:
        """True while something waits for room in the socket."""
        return bool(self._backlog)

    def send(self, frame: Frame) -> bool:
        """Send a frame, or as much of it as fits now; False where something waits for room.

        A peer that is gone is not an error here: the end of the stream reports its death, in one
        place. Descriptors of a frame that has to wait are duplicated.
        """
        data = frame.header() + frame.body
        sent = 0 if self._backlog else self._try(memoryview(data), frame.fds)
        if sent < len(data):
            self._queue(memoryview(data)[sent:], () if sent else frame.fds)
        return sent == len(data)

    def flush(self) -> None:
        """Send queued data as far as it fits."""
        while self._backlog:
            data, files = self._backlog[0]
            sent = self._try(data, [file.number for file in files])
            if sent and files:
                _close_files(files)
                files = ()
            if sent < len(data):
                self._backlog[0] = (data[sent:], files)
                return
            self._backlog.popleft()

    def close(self) -> None:
        """Drop queued data."""
        while self._backlog:
            _close_files(self._backlog.popleft()[1])

    def _queue(self, data: memoryview, fds: Sequence[int]) -> None:
        self._backlog.append((data, tuple(Descriptor.of(os.dup(fd)) for fd in fds)))

    def _try(self, data: memoryview, fds: Sequence[int]) -> int:
        if not self._sock.is_open():
            return len(data)
        try:
            return self._sock.sendmsg([data], rights(fds) if fds else (), _NO_SIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:  # EPIPE, ECONNRESET: as if sent
            if error.errno == errno.EBADF:  # a descriptor of the frame was closed meanwhile
                self._sock.give_up()
            return len(data)


class Sender:
    """Sends whole frames on a blocking socket, from any thread.

    Thread 1 sends a large result, in as many pieces as the socket has room for; thread 2 of the
    task prints. Without the lock its frame would be between two of the pieces. So would the
    frame of a signal handler or a finalizer that prints while its own thread sends: it is kept
    until that frame is complete.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.RLock()
        self._later: deque[Frame] | None = None  # not None while a frame is being sent

    def send(self, frame: Frame) -> None:
        """Send a frame, after the one that is being sent."""
        with self._lock:
            if self._later is not None:
                self._later.append(frame)
                return
            self._later = later = deque((frame,))
            try:
                while later:
                    send_all(self._sock, later.popleft())
            finally:
                self._later = None


def send_all(sock: socket.socket, frame: Frame) -> None:
    """Send a frame on a blocking socket."""
    data = memoryview(frame.header() + frame.body)
    sent = sock.sendmsg([data], rights(frame.fds), _NO_SIGNAL)
    if sent < len(data):
        sock.sendall(data[sent:], _NO_SIGNAL)


def rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """The ancillary message that carries descriptors."""
    if not fds:
        return []
    return [(_SOL_SOCKET, _SCM_RIGHTS, array.array("i", fds).tobytes())]


def _own(fds: array.array[int]) -> array.array[int]:
    """Descriptors that just arrived, which programs of the task do not inherit."""
    if not _CLOEXEC:  # the system cannot receive them so
        for fd in fds:
            os.set_inheritable(fd, False)
    return fds


def without_signal(sock: socket.socket) -> socket.socket:
    """The socket; the end of its peer is an error, where it is not by the flag of each call."""
    if not _NO_SIGNAL:
        with contextlib.suppress(OSError):
            sock.setsockopt(_SOL_SOCKET, _SO_NOSIGPIPE, 1)
    return sock


def _ints(content: bytes) -> array.array[int]:
    found = array.array("i")
    found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return found


def _close_files(files: Iterable[Descriptor]) -> None:
    for file in files:
        file.close()


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
