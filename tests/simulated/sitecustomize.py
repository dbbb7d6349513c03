"""Take away what another system lacks, in this process and all that it starts.

    SHAREDTASK_SIMULATED=mac PYTHONPATH=tests/simulated python -m pytest ...

    "mac", or "windows"

Python imports this module at its start. What stays missing is what the library may use there: a
program that uses the rest fails as it would on the system itself, or by an AssertionError where
that system would do something else. Files in /proc and /dev/shm are hidden from the library alone,
since the harness of the tests reads them.
"""

import builtins
import contextlib
import ctypes
import errno
import fcntl
import functools
import importlib
import io
import mmap
import os
import resource
import select
import selectors
import signal
import socket
import sys
import sysconfig
import time
import types
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import threadpoolctl

SIMULATED = "SHAREDTASK_SIMULATED"

_LINUX_ALONE: dict[Any, tuple[str, ...]] = {
    os: (
        *("memfd_create", "posix_fallocate", "posix_fadvise", "pidfd_open", "eventfd", "pipe2"),
        *("sched_getaffinity", "sched_setaffinity", "copy_file_range", "splice", "getrandom"),
        *("preadv2", "fdatasync", "getxattr", "setxattr", "listxattr", "removexattr", "P_PIDFD"),
        *("O_PATH", "O_TMPFILE", "O_DIRECT", "setresuid", "getresuid", "setresgid", "getresgid"),
        *("MFD_CLOEXEC", "MFD_ALLOW_SEALING", "unshare", "setns", "timerfd_create"),
    ),
    socket: ("MSG_CMSG_CLOEXEC", "MSG_NOSIGNAL", "SOCK_CLOEXEC", "SOCK_NONBLOCK", "SO_PEERCRED"),
    select: ("epoll",),
    selectors: ("EpollSelector",),
    signal: ("sigtimedwait", "sigwaitinfo", "pidfd_send_signal", "SIGSTKFLT", "SIGPWR"),
    resource: ("prlimit", "RUSAGE_THREAD"),
    time: ("CLOCK_BOOTTIME", "CLOCK_TAI"),
}
_OF_LINUX_FILES = ("F_OFD", "F_ADD_SEALS", "F_GET_SEALS", "F_SEAL", "F_SETPIPE", "F_SETSIG")
# The Mac's buffers of a pair of sockets: a frame that is larger goes in pieces.
_SOCKET_BYTES = 8192
_HIDDEN = ("/proc", "/dev/shm")
_BETWEEN = {"builtins", "codecs", "contextlib", "genericpath", "io", "os", "pathlib", "posixpath"}


_open = open


def _remove(module: Any, names: Iterable[str]) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def _asks_for_the_library() -> bool:
    """Whether the caller of a function of the system is a module of the library."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        frame = frame.f_back
    name = "" if frame is None else frame.f_globals.get("__name__", "")
    return bool(name.startswith("sharedtask.") and not name.startswith("sharedtask.testing"))


def _hide_files(module: Any, name: str) -> None:
    real = getattr(module, name)

    @functools.wraps(real)
    def look(path: Any, *args: Any, **options: Any) -> Any:
        shown = str(path)
        if shown.startswith(_HIDDEN) and _asks_for_the_library():
            if name == "access":
                return False
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), shown)
        return real(path, *args, **options)

    for kind in (os.supports_dir_fd, os.supports_effective_ids, os.supports_fd):
        if real in kind:
            kind.add(look)
    if real in os.supports_follow_symlinks:
        os.supports_follow_symlinks.add(look)
    setattr(module, name, look)


def _hide_calls(hidden: set[str], changed: dict[str, Callable[[Any], Any]]) -> None:
    """The C library of this process without some functions, and with others in their place."""

    class CDLL(ctypes.CDLL):
        def __getattr__(self, name: str) -> Any:
            if not vars(self).get("_name") and _asks_for_the_library():
                if name == "proc_pid_rusage":
                    return _told_usage
                if name in hidden:
                    raise AttributeError(name)
                if name in changed:
                    return changed[name](super().__getattr__(name))
            return super().__getattr__(name)

    setattr(ctypes, "CDLL", CDLL)  # noqa: B010  it is a class for type checkers


def _told_usage(pid: int, _flavor: int, usage: Any) -> int:
    """The private memory, where ``struct rusage_info_v0`` has it."""
    try:
        with _open(f"/proc/{pid}/statm", encoding="ascii") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return -1
    words = ctypes.cast(usage, ctypes.POINTER(ctypes.c_uint64))
    words[9] = (resident - shared) * resource.getpagesize()
    return 0


def _no_raw_call(_real: Any) -> Any:
    def syscall(number: int, *_: Any) -> None:
        message = f"the raw system call {number} has another meaning on a Mac"
        raise AssertionError(message)

    return syscall


def _known_advice(real: Any) -> Any:
    def madvise(address: int, size: int, advice: int) -> Any:
        assert advice <= 11, f"madvise({advice}) has another meaning on a Mac"
        return real(ctypes.c_void_p(address), ctypes.c_size_t(size), advice)

    return madvise


def _known_commands(real: Any) -> Any:
    @functools.wraps(real)
    def control(fd: Any, command: int, *args: Any) -> Any:
        assert command < 1024, f"fcntl({command}) has another meaning on a Mac"
        return real(fd, command, *args)

    return control


def _small_buffers(real: Any) -> Any:
    @functools.wraps(real)
    def socketpair(*args: Any, **options: Any) -> Any:
        both = real(*args, **options)
        for end in both:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES // 2)
        return both

    return socketpair


def mac() -> None:
    """What macOS lacks: serial, thread and process must run without."""
    for module, names in _LINUX_ALONE.items():
        _remove(module, names)
    _remove(fcntl, [name for name in vars(fcntl) if name.startswith(_OF_LINUX_FILES)])
    setattr(selectors, "DefaultSelector", selectors.PollSelector)  # noqa: B010  as above
    for name in ("open", "listdir", "readlink", "stat", "lstat", "scandir", "access", "statvfs"):
        _hide_files(os, name)
    _hide_files(builtins, "open")
    io.open = builtins.open
    _hide_calls(
        {"prctl", "mremap", "memfd_create"}, {"syscall": _no_raw_call, "madvise": _known_advice}
    )
    fcntl.fcntl = _known_commands(fcntl.fcntl)
    socket.socketpair = _small_buffers(socket.socketpair)
    finder = threadpoolctl.ThreadpoolController
    finder._find_libraries_with_dyld = finder._find_libraries_with_dl_iterate_phdr
    config: Any = sysconfig
    built_for = config._get_sysconfigdata_name()
    config._get_sysconfigdata_name = lambda: built_for
    sys.platform = "darwin"


_POSIX_MODULES = ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty", "syslog")
_POSIX_ALONE: dict[Any, tuple[str, ...]] = {
    os: (
        *("fork", "forkpty", "register_at_fork", "posix_spawn", "posix_spawnp", "uname", "sysconf"),
        *("getuid", "geteuid", "getgid", "getegid", "getpgid", "setsid", "killpg", "getloadavg"),
        *("fchmod", "fchown", "chown", "fchdir", "mkfifo", "pread", "pwrite", "preadv", "pwritev"),
        *("statvfs", "fstatvfs", "openpty", "wait", "wait3", "wait4", "waitid", "set_blocking"),
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "WNOHANG"),
        *("WUNTRACED", "environb", "getenvb", "fdatasync", "nice", "getpriority"),
        *_LINUX_ALONE[os],
    ),
    # AF_UNIX stays: `socket.socketpair` has another form on Windows.
    socket: (*_LINUX_ALONE[socket], "SCM_RIGHTS", "CMSG_SPACE", "CMSG_LEN"),
    select: ("epoll", "poll"),
    selectors: ("EpollSelector", "PollSelector"),
    signal: (
        *("SIGKILL", "SIGCHLD", "SIGSTOP", "SIGCONT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE"),
        *("SIGALRM", "SIGBUS", "SIGQUIT", "alarm", "setitimer", "pthread_sigmask", "pthread_kill"),
        *("SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK", "sigwait", "sigpending", "siginterrupt"),
        *_LINUX_ALONE[signal],
    ),
    time: ("clock_gettime", "clock_gettime_ns", "CLOCK_MONOTONIC", *_LINUX_ALONE[time]),
    mmap: (
        *("PROT_READ", "PROT_WRITE", "PROT_EXEC", "MAP_SHARED", "MAP_PRIVATE", "MAP_ANONYMOUS"),
        *("MAP_ANON", "MAP_POPULATE", "MAP_NORESERVE", "MADV_DONTNEED", "MADV_HUGEPAGE"),
    ),
}
# What loky and the standard library have of POSIX in the place of their halves for Windows.
_OF_OTHERS = (
    *("asyncio", "concurrent.futures.process", "multiprocessing.connection", "subprocess"),
    *("multiprocessing.heap", "multiprocessing.popen_fork", "multiprocessing.resource_tracker"),
    *("multiprocessing.shared_memory", "multiprocessing.util", "tempfile", "shutil", "uuid"),
    *("loky", "loky.backend.popen_loky_posix", "loky.backend.resource_tracker"),
    *("loky.backend.fork_exec", "numpy", "pydantic", "tqdm", "wrapt", "cloudpickle", "pytest"),
    *("pytest_timeout", "hypothesis", "pathlib"),
)


_KEEP_THEIRS = {
    *("loky", "multiprocessing", "subprocess", "asyncio", "tempfile", "shutil", "pathlib"),
    *("_pytest", "pytest", "pytest_timeout", "hypothesis", "numpy", "pandas", "joblib"),
}


def _give_copies(*modules: Any) -> None:
    """Have other libraries use copies of these modules, which stay whole."""
    whole = {}
    for module in modules:
        whole[module] = types.ModuleType(module.__name__)
        vars(whole[module]).update(vars(module))
    for name, other in list(sys.modules.items()):
        if name.partition(".")[0] in _KEEP_THEIRS:
            for word, value in list(vars(other).items()):
                if isinstance(value, types.ModuleType) and value in whole:
                    setattr(other, word, whole[value])


def windows() -> None:
    """What Windows lacks: serial and thread must run without, and process by loky.

    Its own ways of starting a process are not played: other libraries keep those of this system.
    """
    for name in _OF_OTHERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _give_copies(*_POSIX_ALONE)
    for name in _POSIX_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in _POSIX_ALONE.items():
        _remove(module, names)
    setattr(selectors, "DefaultSelector", selectors.SelectSelector)  # noqa: B010  as above
    for name in ("open", "listdir", "readlink", "stat", "lstat", "scandir", "access"):
        _hide_files(os, name)
    _hide_files(builtins, "open")
    io.open = builtins.open

    class CDLL(ctypes.CDLL):
        def __init__(self, name: Any, *args: Any, **options: Any) -> None:
            if name is None:  # as LoadLibrary says
                message = "bad argument type for built-in operation"
                raise TypeError(message)
            super().__init__(name, *args, **options)

    setattr(ctypes, "CDLL", CDLL)  # noqa: B010  it is a class for type checkers


class _FirstImport:
    """Waits for the first import of the library: a worker has started by then."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "sharedtask":
            sys.meta_path.remove(self)
            windows()


if os.environ.get(SIMULATED) == "mac":
    mac()
elif os.environ.get(SIMULATED) == "windows":
    sys.meta_path.insert(0, _FirstImport())
