"""Processes that serve a parent and may hang: how they start, what they tell, how they end."""

import atexit
import contextlib
import ctypes
import faulthandler
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

STACKS = signal.SIGRTMAX - 3  # no test and no library here uses this signal
PATIENCE_SECONDS = 30.0  # an orderly end may take this long
GONE = (EOFError, ConnectionError)


def slowness() -> float:
    """As that of sharedtask.testing, which is not imported here: what runs tests needs no library.

    A fork of a process in which a library has threads would be told as a warning, too.
    """
    average, _, _, now, _ = Path("/proc/loadavg").read_text().split()
    wanting = max(float(average), float(now.partition("/")[0]))
    return min(max(wanting / (os.cpu_count() or 1), 1.0), 8.0)


def default_signals() -> None:
    """Give programs that this process starts default dispositions.

    A shell starts background jobs with SIGINT ignored, ``nohup`` ignores SIGHUP, and both are
    inherited. A handler is not: in a program that is started, its signal has the default again.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python ignores these
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@dataclass
class Server:
    """A forked process that answers its parent, as the parent sees it."""

    pid: int
    pipe: Connection
    stacks: IO[str]

    @classmethod
    def fork(cls, serve: Callable[[Connection], None]) -> "Server":
        """Fork it, with default signals and in a process group of its own.

        So a Ctrl-C at the terminal reaches the parent alone, which ends the child.
        """
        here, there = Pipe()
        stacks = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed when the process is ended
        _call_prctl(_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGCHLD, _reap)
        _statuses.clear()
        pid = os.fork()
        if pid:
            there.close()
            return cls(pid, here, stacks)
        code = 1
        try:
            here.close()
            _prepare_child(stacks)
            with contextlib.suppress(KeyboardInterrupt, *GONE):
                serve(there)
                code = 0
        finally:
            atexit._run_exitfuncs()
            os._exit(code)

    def receive(self, seconds: float | None) -> Any:
        """What it sends next; TimeoutError after this time, which is longer on a busy machine."""
        began = time.monotonic()
        while not self.pipe.poll(min(seconds, 1.0) if seconds else None):
            if seconds and time.monotonic() - began > seconds * slowness():
                raise TimeoutError
        return self.pipe.recv()

    def end_now(self, *, hangs: bool) -> str:
        """End it with all that runs below it; returns what there is to say about it."""
        told = self._tell_stacks() if hangs else f"It ended with {self._wait_for_status()}."
        processes = [_tell(pid) for pid in descendants(os.getpid())]
        end_all_below()
        self._close()
        return "\n".join([told, *(["", "Processes:", *processes] if processes else [])])

    def end(self) -> None:
        """Let it end by itself; end it where that takes too long, and what is below it."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
            if not self._has_ended(1.0):
                os.kill(self.pid, signal.SIGINT)  # it may be in the middle of something
                self._has_ended(PATIENCE_SECONDS)
        end_all_below()
        self._close()

    def _tell_stacks(self) -> str:
        """The stacks of all threads, of each process that was forked and runs no other program."""
        found = []
        for pid in descendants(os.getpid()):
            if _handles_stacks(pid):
                began = os.fstat(self.stacks.fileno()).st_size
                os.kill(pid, STACKS)
                _wait_until_quiet(self.stacks.fileno(), began)
                self.stacks.seek(began)
                lines = [line for line in self.stacks if not _is_of_pytest(line)]
                found.append(f"Stacks of process {pid}:\n{''.join(lines)}")
        return "\n".join(found)

    def _wait_for_status(self) -> str:
        self._has_ended(5.0)
        code = os.waitstatus_to_exitcode(_statuses.get(self.pid, 0))
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _has_ended(self, seconds: float) -> bool:
        limit = time.monotonic() + seconds
        while self.pid not in _statuses and time.monotonic() < limit:
            time.sleep(0.005)
        return self.pid in _statuses

    def _close(self) -> None:
        self.pipe.close()
        self.stacks.close()


def _prepare_child(stacks: IO[str]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _call_prctl(_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
    default_signals()
    faulthandler.register(STACKS, file=stacks, all_threads=True)


_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_statuses: dict[int, int] = {}


def _call_prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _reap(*_: object) -> None:
    """Orphans of tests become children of the parent, which takes the place of init."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            _statuses[found[0]] = found[1]


def descendants(root: int) -> list[int]:
    """The processes below this one, parents first."""
    parents: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            rest = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(rest[1]), []).append(int(name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found[1:]


def end_all_below() -> None:
    """Kill what runs below this process, and what that starts meanwhile, until nothing is left."""
    limit = time.monotonic() + 10
    while (pids := descendants(os.getpid())) and time.monotonic() < limit:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _tell(pid: int) -> str:
    """One line: what it is and where it waits."""
    with contextlib.suppress(OSError):
        place = Path("/proc", str(pid))
        command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        state = (place / "stat").read_text().rpartition(")")[2].split()[0]
        return f"{pid} {state} {(place / 'wchan').read_text() or '-':20} {command[:200]}"
    return f"{pid} has ended"


def _handles_stacks(pid: int) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        caught = Path("/proc", str(pid), "status").read_text().split("SigCgt:")[1].split()[0]
        return bool(int(caught, 16) >> (STACKS - 1) & 1)
    return False


def _is_of_pytest(line: str) -> bool:
    return any(part in line for part in ("/_pytest/", "/pluggy/", "/pytest/", "<frozen runpy>"))


def _wait_until_quiet(descriptor: int, size: int) -> None:
    """Until a process has written its stacks; one that blocks the signal writes none."""
    limit, last = time.monotonic() + 2 * slowness(), size
    while time.monotonic() < limit:
        time.sleep(0.2)
        now = os.fstat(descriptor).st_size
        if now == last > size:
            return
        last = now
