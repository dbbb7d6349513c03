"""One process at a time has a journal: a lock on a file beside it, which dies with its holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from dataclasses import dataclass, field

from sharedtask.errors import JournalError
from sharedtask.sharing.descriptors import Descriptor

__all__ = ["Lock"]

_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


@dataclass(eq=False)
class Lock:
    """A lock on a file beside the journal. On the journal itself SQLite has locks of its own."""

    path: str
    file: Descriptor | None = field(default=None, init=False)
    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        try:
            self.file = self._locked()
        except OSError as error:
            reason = f"its lock {self._name!r} cannot be had ({error.strerror})."
            raise JournalError(self.path, f"{reason} {_ELSEWHERE}") from None
        _locks.add(self)

    @property
    def _name(self) -> str:
        return f"{self.path}-lock"

    @property
    def is_ours(self) -> bool:
        """Whether this process has taken it, and not the one it was forked from."""
        return self.file is not None and self.pid == os.getpid()

    def _locked(self) -> Descriptor:
        while True:
            fd = os.open(self._name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                self._take(fd)
                # Its last holder may have removed the file after we had opened it.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.stat(self._name), os.fstat(fd)):
                        self._sign(fd)
                        return Descriptor.of(fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _take(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise JournalError(self.path, _in_use(holder, self.pid)) from None

    def _sign(self, fd: int) -> None:
        """Say who has it, where the disk is not full: others want to know."""
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d" % self.pid, 0)

    def __del__(self) -> None:
        self.release()  # a run that nobody closed, because its caller was interrupted

    def release(self) -> None:
        """Give it back; twice is once."""
        file, self.file = self.file, None
        if file is None or not file.is_open():  # closed by the program: it may be another's by now
            return
        if self.pid == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(self._name)
        file.close()


_ELSEWHERE = "Take a file in a folder that you can write to, on a disk of this machine."


def _in_use(holder: str, pid: int) -> str:
    if holder == str(pid):
        return (
            "another call of this process is writing to it. Let it come to its end first: a stream "
            "ends when it is read to its end or closed. Or take another file."
        )
    return f"it is in use by process {holder}. Wait for its end, or take another file."


def _leave_to_parent() -> None:
    """In a forked child: a copy of the descriptor would hold the lock for as long as it lives."""
    for lock in list(_locks):
        lock.release()


os.register_at_fork(after_in_child=_leave_to_parent)
