"""The forkserver: a small process that forks the workers.

It has numpy loaded and one thread only, so forking it is safe and takes a millisecond or two; the
caller's own process, with its threads, is never forked. It does not run the user's script. It is
the workers' parent, and only a parent can wait for them: so it reports to the caller how each of
them ended, and it sends the signals, since only for a parent a pid is certain to mean the same
process. When the caller dies, the socket ends, the forkserver kills the workers and ends; if it is
killed itself, they end with it (lifeline.py).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time

from sharedtask.errors import BackendUnavailableError
from sharedtask.system.loading import undisturbed

from . import wire
from .lifeline import Lifeline
from .wire import Frame, Kind

# Time limit for the exit functions that tasks registered in a worker.
_EXIT_SECONDS = 1.0
_STATUS = struct.Struct("<qqq")
_SHARED_WITHOUT_A_NAME = 1 << 1  # of the kinds of memory in core(5)


# Set for the forkserver alone: where a program finds it, it was started in the place of Python.
MARK = "SHAREDTASK_FORKSERVER"
# What a frozen program needs to be one: see sharedtask/system/freezing.
START = "SHAREDTASK_START"


def main(fd: int, caller: int, *modules: str) -> None:
    """Serve the caller on the socket ``fd`` until it ends."""
    os.environ.pop(MARK, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The caller's mask is inherited, and may block any signal. SIGCHLD reports children that ended,
    # and workers need the usual signals.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.set_inheritable(fd, False)
    _dump_no_shared_memory()
    server = _Forkserver(socket.socket(fileno=fd))
    if os.getppid() == caller:
        with contextlib.suppress(ConnectionError):  # the caller ended during the send
            server.serve(modules)
        server.kill_all()
    os._exit(0)


def _dump_no_shared_memory() -> None:
    """Exclude shared memory from core dumps; the workers inherit the setting."""
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/self/coredump_filter", "r+", encoding="ascii") as file,
    ):
        kinds = int(file.read(), 16)
        file.seek(0)
        file.write(hex(kinds & ~_SHARED_WITHOUT_A_NAME))


class _Forkserver:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = wire.Reader(sock)
        self._pids: dict[int, int] = {}  # serial number -> pid
        self._lifeline = Lifeline()
        self._wake, wakes = socket.socketpair()
        for end in (self._wake, wakes):
            end.setblocking(False)
        self._wakes = wakes
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)

    def serve(self, modules: tuple[str, ...]) -> None:
        # The workers inherit the modules that are loaded here.
        for module in ("numpy", f"{__package__}.worker", *modules):
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # collections in the workers then need not copy these pages
        selector = selectors.DefaultSelector()
        selector.register(self._sock, selectors.EVENT_READ)
        selector.register(self._wake, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is self._wake:
                    self._reap()
                elif not self._read():
                    return

    def _read(self) -> bool:
        try:
            alive = self._reader.fill()
        except OSError:
            return False
        for frame in self._reader.frames():
            if frame.kind == Kind.SPAWN:
                self._spawn(frame)
            elif frame.kind == Kind.SIGNAL and frame.chunk in self._pids:
                os.kill(self._pids[frame.chunk], frame.first)
            elif frame.kind == Kind.END:
                self._await_workers()
                return False
        return alive

    def _await_workers(self) -> None:
        """Wait for workers that were asked to end and run their exit functions."""
        until = time.monotonic() + _EXIT_SECONDS
        while self._pids and time.monotonic() < until:
            select.select([self._wake], (), (), until - time.monotonic())
            self._reap()

    def _spawn(self, frame: Frame) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            body = _STATUS.pack(0, 0, -(error.errno or 1))
            answer = Frame(Kind.EXITED, chunk=frame.chunk, body=body)
        else:
            if pid == 0:
                self._become_worker(frame, parent)
            self._pids[frame.chunk] = pid
            answer = Frame(Kind.SPAWNED, chunk=frame.chunk, first=pid)
        wire.close_all(frame.fds)
        wire.send_all(self._sock, answer)

    def _become_worker(self, frame: Frame, parent: int) -> None:
        """Run the worker in the child; no path may return into the forkserver's loop."""
        code = 1
        try:
            self._lifeline.hold()
            if os.getppid() != parent:  # it died before the kernel was told
                return
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self._sock, self._wake, self._wakes):
                end.close()
            from . import worker

            socket_fd, status_fd, tracker_fd = frame.fds
            birth = bytes(frame.body)
            code = worker.main(socket_fd, status_fd, tracker_fd, birth, self._lifeline)
        finally:
            os._exit(code)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._report_status(pid, status)

    def _report_status(self, pid: int, status: int) -> None:
        serial = next((s for s, p in self._pids.items() if p == pid), None)
        if serial is None:
            return
        if os.WIFSTOPPED(status):
            wire.send_all(self._sock, Frame(Kind.STOPPED, chunk=serial))
            return
        del self._pids[serial]
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        exitcode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
        body = _STATUS.pack(pid, number, exitcode)
        wire.send_all(self._sock, Frame(Kind.EXITED, chunk=serial, body=body))

    def kill_all(self) -> None:
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def exit_status(body: bytes | memoryview) -> tuple[int, int | None, int | None]:
    """Pid, signal and exit code (one of them None) from an EXITED frame.

    If the fork failed, the exit code is the negative errno.
    """
    pid, number, exitcode = _STATUS.unpack(body)
    return pid, number or None, None if number else exitcode


def command(fd: int, *modules: str) -> list[str]:
    """The command that starts a forkserver: this interpreter, its flags, its import path.

    ``modules`` are imported besides what every worker needs.

    Raises:
        BackendUnavailableError: There is no interpreter to start, or it would be this program.
    """
    if _starts_itself():
        return [sys.executable]
    interpreter = _interpreter()
    with undisturbed("subprocess"):
        from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]

    code = (
        f"import sys; sys.path[:] = {[os.path.abspath(p) for p in sys.path]!r}; "
        f"from {__name__} import main; main({fd}, {os.getpid()}, *{modules!r})"
    )
    return [interpreter, *_args_from_interpreter_flags(), "-P", "-c", code]


def environment(fd: int, *modules: str) -> dict[str, str]:
    """The variables with which ``command`` is started."""
    mark = {MARK: str(os.getpid())}
    if _starts_itself():
        return {**mark, START: json.dumps((fd, os.getpid(), *modules))}
    return mark


def become(told: str) -> None:
    """In a frozen program that ``command`` has started: be a forkserver, and end as one."""
    main(*json.loads(told))


def _starts_itself() -> bool:
    """Whether this program is frozen and becomes a forkserver when it is told to."""
    return bool(getattr(sys, "frozen", False)) and hasattr(sys, "_sharedtask_can_start")


def _interpreter() -> str:
    """This interpreter's program; for a program that embeds Python, the one of its installation."""
    if getattr(sys, "frozen", False) or MARK in os.environ:
        raise BackendUnavailableError(_OWN_PROGRAM.format(sys.executable))
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    roots = dict.fromkeys((sys.prefix, sys.base_prefix))
    places = [sys.executable or "", *(os.path.join(root, "bin", name) for root in roots)]
    # Not os.access for the first: a file that cannot be run fails with a text of its own.
    found = [p for p in places if os.path.basename(p).startswith(_NAMES) and os.path.exists(p)]
    if found or sys.executable:
        return next(iter(found), sys.executable)
    raise BackendUnavailableError(_NO_INTERPRETER)


# What the programs of interpreters are called: CPython, PyPy, GraalPy.
_NAMES = ("python", "pypy", "graalpy")

_OWN_PROGRAM = (
    "backend='process' starts Python by sys.executable, which is this program itself here ({}): "
    "it is frozen, or embeds Python. Use backend='thread', or run it with Python. "
    "PyInstaller finds the hook that this needs where sharedtask is installed by pip."
)
_NO_INTERPRETER = (
    "backend='process' starts Python by sys.executable, which is not set, nor is it in sys.prefix."
    " Set sys.executable to a Python with these packages, or use backend='thread'."
)
