"""The registry of names: one small file for each, which says whose memory it refers to.

The memory itself has no name and is freed with its owner, also after ``kill -9``. An entry may be
left whose owner has ended: no process can attach to it, and the next one that shares under that
name takes it over.

The registry is a directory that only this user can access. A process that changes it holds a lock
on it, so that of two processes that claim one name, or find the same dead owner, one comes first.
Readers take no lock: an entry appears whole, by ``link()``, and is never changed. An entry is read
before its writer is known. So it is JSON, not a pickle, and has a checksum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import stat
import time
import zlib
from typing import TYPE_CHECKING, Any, Literal

from sharedtask.errors import (
    InvalidNameError,
    NameInUseError,
    NameRefusedError,
    SharedTaskError,
    UnknownNameError,
)
from sharedtask.system import interrupts
from sharedtask.system.posix import fcntl
from sharedtask.system.records import dataclass
from sharedtask.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Generator

State = Literal["alive", "gone", "elsewhere", "damaged"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_MAX_BYTES = 1 << 20
_LOCK_SECONDS = 10.0
_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry: the owner, the memory that it has open, and its contents.

    ``nonce`` distinguishes this use of the name from others. ``form`` is for attaching processes.
    """

    name: str
    nonce: str
    kind: str
    look: str
    nbytes: int
    pid: int
    started: int
    boot: str
    namespace: int
    fd: int
    device: int
    inode: int
    size: int
    created: float
    form: dict[str, Any]

    @property
    def path(self) -> str:
        """Where the owner's descriptor of the memory can be opened by others."""
        return f"/proc/{self.pid}/fd/{self.fd}"

    @property
    def owner(self) -> int | None:
        """The owner's pid as seen by this process, None in another PID namespace."""
        return self.pid if self.namespace == _namespace() else None


@dataclass(frozen=True, slots=True)
class Listed:
    """A name in the registry; ``entry`` is None if it cannot be read."""

    name: str
    state: State
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A name that this process has, until it is released."""

    directory: str
    name: str
    nonce: str
    pid: int

    def release(self) -> None:
        """Remove the name, unless this is a forked child: the name is its parent's."""
        if self.pid == os.getpid():
            self.remove()

    def remove(self) -> None:
        """Remove the name for any caller, but not if another process has claimed it since."""
        with _locked(self.directory) as opened:
            if opened is not None:
                _remove(opened, self.name, self.nonce)


# --------------------------------------------------------------------------------- the names


def check_name(name: str) -> str:
    """Return the name if it is valid.

    Raises:
        InvalidNameError: It is no string, is too long, or has other characters.
    """
    given: Any = name
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        shown = repr(given)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        msg = (
            f"{shown} cannot be a name. A name is 1 to 200 of A-Z a-z 0-9 _ - . and does not"
            " begin with a dot."
        )
        raise InvalidNameError(msg)
    return given


def require_free(name: str) -> None:
    """Refuse a name in use early, before anything is copied; only ``claim`` decides.

    Raises:
        NameInUseError: A living process has it.
        NameRefusedError: The registry, or the entry of the name, cannot be trusted.
    """
    with _opened(directory()) as opened:
        if opened is not None:
            _require_free(opened, name)


def claim(entry: Entry) -> Claim:
    """Enter a name, or take it over from an owner that has ended.

    Raises:
        NameInUseError: A living process has it.
        NameRefusedError: The registry, or the entry of the name, cannot be trusted.
        SharedTaskError: The entry cannot be written.
    """
    where = directory()
    with _locked(where, create=True) as opened:
        assert opened is not None  # noqa: S101  it was created
        try:
            if _require_free(opened, entry.name):
                os.unlink(entry.name, dir_fd=opened)
            _write(opened, entry)
        except FileExistsError:  # it was written without the lock
            raise NameInUseError(entry.name) from None
        except OSError as error:
            if isinstance(error, SharedTaskError):
                raise
            msg = f"{entry.name!r} cannot be entered in {where}: {error.strerror}."
            raise SharedTaskError(msg) from error
    return Claim(where, entry.name, entry.nonce, os.getpid())


def find(name: str) -> tuple[Entry, Claim]:
    """The entry of a name whose owner is alive, and the claim that removes it.

    Raises:
        UnknownNameError: There is none. An entry whose owner has ended is removed.
        NameRefusedError: The registry, or the entry of the name, cannot be trusted.
    """
    where = directory()
    with _opened(where) as opened:
        entry = None if opened is None else _read(opened, name)
        if entry is None:
            known = [] if opened is None else _names(opened)
            raise UnknownNameError(name, did_you_mean(name, known).lstrip())
    found = Claim(where, name, entry.nonce, entry.pid)
    state = state_of(entry)
    if state == "elsewhere":
        raise NameRefusedError(name, _ELSEWHERE)
    if state == "gone":
        found.remove()
        raise UnknownNameError(name, f"Process {entry.pid}, which had shared it, has ended.")
    return entry, found


def listing() -> list[Listed]:
    """All names in alphabetical order."""
    with _opened(directory()) as opened:
        return [] if opened is None else [_listed(opened, name) for name in _names(opened)]


def clean() -> list[Listed]:
    """Remove entries of ended owners and unreadable ones; return them."""
    with _locked(directory()) as opened:
        if opened is None:
            return []
        found = [_listed(opened, name) for name in _names(opened)]
        left_over = [each for each in found if each.state in {"gone", "damaged"}]
        return [each for each in left_over if _unlinked(opened, each.name)]


def _unlinked(opened: int, name: str) -> bool:
    """False if it cannot be removed: it is a directory."""
    try:
        os.unlink(name, dir_fd=opened)
    except OSError:
        return False
    return True


_ELSEWHERE = (
    "it was shared in another PID namespace, in a container for example. "
    "Only processes in the same one can attach."
)


# ------------------------------------------------------------------------------- the owners


def state_of(entry: Entry) -> State:
    """Whether the owner is alive and still has the memory open.

    Pids are reused; the start time of the process distinguishes it from a later one. The device and
    inode distinguish the memory from another file under the same descriptor.
    """
    if entry.boot != _boot():
        return "gone"
    if entry.namespace != _namespace():
        return "elsewhere"
    if started(entry.pid) != entry.started:
        return "gone"
    try:
        status = os.stat(entry.path)
    except FileNotFoundError:
        return "gone"
    except OSError:  # it is alive, and denies access; attach reports that
        return "alive"
    same = (status.st_dev, status.st_ino) == (entry.device, entry.inode)
    return "alive" if same else "gone"


def started(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name, which may contain spaces and brackets.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # other errors do not prove that it has ended
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def origin() -> dict[str, Any]:
    """The fields of an entry that say who this process is."""
    pid = os.getpid()
    return {"pid": pid, "started": started(pid), "boot": _boot(), "namespace": _namespace()}


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        raise _without_proc(error) from None


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        raise _without_proc(error) from None


def _without_proc(error: OSError) -> SharedTaskError:
    msg = (
        "values have no names here: whether the owner of a name lives is read in /proc"
        f" ({error.strerror}: {error.filename}). Mount it, or share the value without name=."
    )
    return SharedTaskError(msg)


# ---------------------------------------------------------------------------- the directory


def directory() -> str:
    """The registry's directory. Not in TMPDIR, which two processes may have set differently.

    It is always a directory of its own: files that are no entries are removed from it.
    """
    parent = os.environ.get("SHAREDTASK_NAMES_DIR")
    if parent:
        return os.path.join(os.path.abspath(parent), "sharedtask")
    return f"/tmp/sharedtask-{os.geteuid()}"  # noqa: S108  it is checked, see _require_private


@contextlib.contextmanager
def _opened(path: str, *, create: bool = False) -> Generator[int | None]:
    """A descriptor of the directory, None if there is none. All operations are relative to it."""
    fd = _open_directory(path, create=create)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _open_directory(path: str, *, create: bool) -> int | None:
    try:
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if not create or os.path.isdir(os.path.dirname(path)):
            return None
        msg = f"{path} cannot be made: {error.strerror}. Set SHAREDTASK_NAMES_DIR to another path."
        raise SharedTaskError(msg) from error
    except OSError as error:
        if error.errno in _OUT_OF_FILES:
            raise
        raise NameRefusedError(path, _why_not(error)) from None
    try:
        _require_private(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _why_not(error: OSError) -> str:
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return f"it is a link or a file, and no directory of yours. {_CURE}"
    return f"{error.strerror}. {_CURE}"


def _require_private(path: str, status: os.stat_result) -> None:
    """Refuse a directory that others made, or in which others may create names."""
    if status.st_uid != os.geteuid():
        raise NameRefusedError(path, f"it belongs to user {status.st_uid}. {_CURE}")
    if status.st_mode & 0o077:
        mode = f"{stat.S_IMODE(status.st_mode):o}"
        reason = f"others may use it (mode {mode}). Look who made it, then `chmod 700` it."
        raise NameRefusedError(path, reason)


_CURE = "Remove it, or name another directory in SHAREDTASK_NAMES_DIR."


@contextlib.contextmanager
def _locked(path: str, *, create: bool = False) -> Generator[int | None]:
    """As ``_opened``, with the directory locked; an empty one is removed."""
    limit = time.monotonic() + _LOCK_SECONDS
    while True:
        with _opened(path, create=create) as opened:
            if opened is None and create:  # removed between its creation and the opening
                continue
            if opened is None:
                yield None
                return
            if not _lock(opened, path, limit):
                continue
            try:
                yield opened
            finally:
                _tidy(opened, path)
                # Not left to close(): a child that was forked meanwhile has the descriptor too.
                fcntl.flock(opened, fcntl.LOCK_UN)
            return


def _lock(opened: int, path: str, limit: float) -> bool:
    """Lock the directory; False if another process has replaced it by a new one."""
    while True:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > limit:
                msg = f"{path} is locked by a process that was stopped. Continue it, or end it."
                raise SharedTaskError(msg) from None
            interrupts.exposed(time.sleep, 0.001)
        else:
            break
    if _is_at(path, os.fstat(opened)):
        return True
    if time.monotonic() > limit:
        msg = f"{path} keeps changing under this process. Look who removes it."
        raise SharedTaskError(msg)
    return False


def _is_at(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, os.lstat(path))
    except OSError:
        return False


def _tidy(opened: int, path: str) -> None:
    """Remove unfinished files of killed processes, and the directory with its last entry."""
    with contextlib.suppress(OSError):
        for name in os.listdir(opened):
            if name.startswith("."):
                os.unlink(name, dir_fd=opened)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _names(opened: int) -> list[str]:
    return sorted(name for name in os.listdir(opened) if not name.startswith("."))


# ------------------------------------------------------------------------------ the entries


def _require_free(opened: int, name: str) -> bool:
    """True if an ended owner has left an entry, False if there is none."""
    entry = _read(opened, name)
    if entry is None:
        return False
    if state_of(entry) != "gone":
        raise NameInUseError(name, entry.owner)
    return True


def _remove(opened: int, name: str, nonce: str) -> None:
    """Remove an entry, if it is still the same."""
    with contextlib.suppress(NameRefusedError, FileNotFoundError):
        entry = _read(opened, name)
        if entry is not None and entry.nonce == nonce:
            os.unlink(name, dir_fd=opened)


def _listed(opened: int, name: str) -> Listed:
    try:
        entry = _read(opened, name)
    except NameRefusedError:
        return Listed(name, "damaged", None)
    return Listed(name, "gone" if entry is None else state_of(entry), entry)


def _write(opened: int, entry: Entry) -> None:
    """Write the entry under another name, then link it: it appears whole or not at all."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    draft = f".{entry.nonce}"
    fd = os.open(draft, flags, 0o600, dir_fd=opened)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            file.write(dumps(entry))
        os.link(draft, entry.name, src_dir_fd=opened, dst_dir_fd=opened, follow_symlinks=False)
    finally:
        os.unlink(draft, dir_fd=opened)


def _read(opened: int, name: str) -> Entry | None:
    """The entry of a name, None if there is none.

    Raises:
        NameRefusedError: It belongs to another user, or it is damaged.
    """
    # Without O_NONBLOCK the open would wait if the entry is a pipe.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=opened)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _OUT_OF_FILES:  # no fault of the entry, which `clean` would remove
            raise
        raise NameRefusedError(name, f"its entry cannot be opened: {error.strerror}.") from None
    try:
        _require_own(name, os.fstat(fd))
        with open(fd, "rb", closefd=False) as file:
            return loads(name, file.read(_MAX_BYTES))
    finally:
        os.close(fd)


def _require_own(name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NameRefusedError(name, f"its entry is no file. {_DAMAGED}")
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise NameRefusedError(name, f"others have made or may change its entry. {_DAMAGED}")


_DAMAGED = "`sharedtask clean` removes it."


def dumps(entry: Entry) -> bytes:
    """The bytes of an entry."""
    fields = dataclasses.asdict(entry)
    return json.dumps({"checksum": _checksum(fields), "entry": fields}).encode()


def loads(name: str, data: bytes) -> Entry:
    """Read the entry from ``dumps``.

    Raises:
        NameRefusedError: It was damaged, or is the entry of another name.
    """
    try:
        whole: Any = json.loads(data)
        fields = whole["entry"]
        right = whole["checksum"] == _checksum(fields)
        types = [type(fields[field.name]) for field in dataclasses.fields(Entry)]
    except (ValueError, TypeError, KeyError, RecursionError):
        right, fields, types = False, {}, []
    right = right and types == _TYPES and len(fields) == len(_TYPES) and fields["name"] == name
    if not right or not 0 <= fields["created"] < _END_OF_TIME:
        raise NameRefusedError(name, f"its entry is damaged. {_DAMAGED}")
    return Entry(**fields)


def _checksum(fields: Any) -> int:
    return zlib.crc32(json.dumps(fields).encode())


_END_OF_TIME = 1e12
_TYPES = [str, str, str, str, int, int, int, str, int, int, int, int, int, float, dict]
