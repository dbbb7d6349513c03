"""One process at a time writes a journal: a lock on a separate file, freed on death."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from functools import partial

from sharedtask.errors import JournalError
from sharedtask.system import finalizers, forks, interrupts, posix
from sharedtask.system.descriptors import Descriptor
from sharedtask.system.finalizers import Ending, Weak
from sharedtask.system.forks import Step
from sharedtask.system.posix import fcntl
from sharedtask.system.records import dataclass, field

__all__ = ["Lock"]

_locks: Weak[int, Lock] = Weak()

# Through a link another file would be emptied, and a pipe would block.
_FLAGS = (
    os.O_CREAT | os.O_RDWR | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC
)


@dataclass(eq=False)
class Lock:
    """A lock on a file next to the journal. On the journal itself SQLite has locks of its own.

    It is released by ``release()``, or when the run that has it is freed.
    """

    path: str
    file: Descriptor | None = field(default=None, init=False)
    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        with interrupts.shield():
            try:
                self.file = self._locked()
            except OSError as error:
                raise JournalError(self.path, _why_not(self._name, error)) from None
            self._ending = Ending(self, partial(_give_back, self.file, self._name, self.pid))
            _locks.put(id(self), self)

    @property
    def _name(self) -> str:
        return f"{self.path}-lock"

    @property
    def is_ours(self) -> bool:
        """Whether this process has taken it, and not the parent from which it was forked."""
        return self.file is not None and self.pid == os.getpid()

    def _locked(self) -> Descriptor:
        while True:
            fd = os.open(self._name, _FLAGS, 0o600)
            try:
                self._require_own(os.fstat(fd))
                self._take(fd)
                # Its last holder may have removed the file after this process opened it.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.lstat(self._name), os.fstat(fd)):
                        self._sign(fd)
                        return Descriptor.of(fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _require_own(self, status: os.stat_result) -> None:
        """Refuse a file that others may write, or that has another link."""
        if not stat.S_ISREG(status.st_mode):
            reason = "is no file"
        elif status.st_uid != os.geteuid():
            reason = f"belongs to user {status.st_uid}"
        elif status.st_mode & 0o022:
            reason = f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
        elif status.st_nlink > 1:
            reason = "has another name as well"
        else:
            return
        raise JournalError(self.path, f"its lock {self._name!r} {reason}. {_LOOK}")

    def _take(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            finalizers.wait_until_idle()  # a freed run of this process may still have it
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise JournalError(self.path, _in_use(holder, self.pid)) from None

    def _sign(self, fd: int) -> None:
        """Write the holder's pid, for others' messages, unless the disk is full."""
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d" % self.pid, 0)

    def release(self) -> None:
        """Release it; idempotent."""
        self.file = None
        self._ending.now()


def _give_back(file: Descriptor, name: str, pid: int) -> None:
    if not file.is_open():  # closed by the program: the number may be reused
        return
    if pid == os.getpid():
        with contextlib.suppress(OSError):
            os.unlink(name)
    file.close()


def _why_not(name: str, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"its lock {name!r} is a link. {_LOOK}"
    return f"its lock {name!r} cannot be had ({error.strerror}). {_ELSEWHERE}"


_LOOK = "Look who made it, then remove it, or take another file."
_ELSEWHERE = "Take a file in a folder that you can write to, on a disk of this machine."


def _in_use(holder: str, pid: int) -> str:
    if holder == str(pid):
        return (
            "another call of this process is writing to it. Let it come to its end first: a stream "
            "ends when it is read to its end or closed. Or take another file."
        )
    return f"it is in use by process {holder}. Wait for its end, or take another file."


def _abandon() -> None:
    """In a forked child: a copy of the descriptor would hold the lock for as long as it lives."""
    for lock in _locks.values():
        lock.release()


forks.in_child(Step.HELD, _abandon)
