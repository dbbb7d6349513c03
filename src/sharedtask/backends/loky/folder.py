"""The files of a caller: values and status files, in a folder that bears its process id.

No system frees them when their owner is killed: so each folder of a caller that has ended is
removed at the next start of another one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sharedtask.memory import capacity
from sharedtask.system.posix import fcntl

_RAM_DISK = "/dev/shm"  # noqa: S108  each folder there is private
_NAME = "sharedtask-loky-"
_OWNER = "owner"

# None where there are no such locks.
_flock: Any = getattr(fcntl, "flock", None)


class Folder:
    """A private folder; ``remove`` it at the end."""

    def __init__(self) -> None:
        home = _home()
        _sweep(home)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.path = home / f"{_NAME}{name}"
        # Another process that sweeps must not find it without its lock.
        made = self.path if _flock is None else home / f"{_NAME}new-{name}"
        made.mkdir(mode=0o700)
        # Open, and so locked, until this process ends, in whichever way.
        self._owner = (made / _OWNER).open("wb")
        if _flock is not None:
            _flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.rename(self.path)
        self._kept: set[Path] = set()

    def new_path(self, kind: str) -> Path:
        """A path for a file that does not exist yet."""
        return self.path / f"{kind}-{secrets.token_hex(8)}"

    def limit(self) -> int:
        """Bytes that values may take which are only kept for reuse."""
        return min(capacity.total() // 4, shutil.disk_usage(self.path).total // 2)

    def drop(self, path: Path) -> None:
        """Remove a file; later, where the system keeps files that are mapped."""
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self._kept.add(path)
        else:
            self._kept.discard(path)

    def sweep(self) -> bool:
        """Remove files that could not be removed before; returns whether some are left."""
        for path in list(self._kept):
            self.drop(path)
        return bool(self._kept)

    def remove(self) -> None:
        """Remove everything."""
        self._owner.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def leave(self) -> None:
        """In a forked child: the folder belongs to the parent."""
        self._owner.close()


def _home() -> Path:
    named = os.environ.get("SHAREDTASK_STORE_DIR")
    if named:
        return Path(named)
    if os.access(_RAM_DISK, os.R_OK | os.W_OK | os.X_OK):
        return Path(_RAM_DISK)
    return Path(tempfile.gettempdir())


def _sweep(home: Path) -> None:
    for path in home.glob(f"{_NAME}*"):
        found = re.fullmatch(rf"{_NAME}(\d+)-[0-9a-f]+", path.name)
        with contextlib.suppress(OSError):
            if found and path.is_dir() and not path.is_symlink() and _is_over(path, int(found[1])):
                shutil.rmtree(path, ignore_errors=True)


def _is_over(path: Path, pid: int) -> bool:
    """Whether the owner of a folder has ended. OSError if the folder belongs to another user."""
    if pid == os.getpid():
        return False
    if _flock is not None:
        with (path / _OWNER).open("rb") as owner:
            _flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    if os.name == "nt":
        (path / _OWNER).unlink()  # an OSError as long as it is open
        return True
    return not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
