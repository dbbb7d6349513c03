"""Runs the tests in a forked process, so that a test that hangs or crashes fails alone.

The parent collects and reports; the child runs one test after the other, as the parent tells it.
When a test exceeds its time limit, the parent writes the stacks into its report, ends the child and
all processes below it, and forks a new child for the remaining tests. The child is forked after
collection, so that neither costs a second collection.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

import pytest
from _pytest.runner import runtestprotocol

STACKS = signal.SIGRTMAX - 3  # no test and no library here uses this signal
PATIENCE_SECONDS = 30.0  # the child may tear its fixtures down this long
_DIED = (EOFError, ConnectionError)


def slowness() -> float:
    """How much longer than on an idle machine things take: processes that want a core, per core."""
    return min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0), 8.0)


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


class Isolation:
    """The plugin: the same object in the parent and, after the fork, in the child."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._to_parent: Connection | None = None
        self._limit: float | None = None

    @pytest.hookimpl
    def pytest_timeout_set_timer(self, settings: Any) -> bool:
        """The parent keeps the time limit that pytest-timeout found for the test."""
        self._limit = settings.timeout
        return True

    @pytest.hookimpl
    def pytest_timeout_cancel_timer(self) -> bool:
        """There is no timer to cancel."""
        self._limit = None
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test: the parent has the child do it."""
        if self._to_parent is not None:
            run_test(item, nextitem, self._to_parent)
            return True
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for kind, content in self._events(item, nextitem):
            if kind == "report":
                data = hook.pytest_report_from_serializable(config=item.config, data=content)
                hook.pytest_runtest_logreport(report=data)
            elif kind == "warning":
                hook.pytest_warning_recorded.call_historic(kwargs=content)
            elif kind == "exit":
                pytest.exit(content)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _events(self, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        """What the child tells of this test; a child that does not come back is replaced."""
        if self._child is None:
            self._child = Child.fork(self, item.session)
        began = time.monotonic()
        try:
            yield from self._child.run(item, nextitem, self._limit)
        except (TimeoutError, *_DIED) as error:
            child, self._child = self._child, None
            told = child.end_hung(error, self._limit, item)
            yield "report", failure(item, told, time.monotonic() - began)

    @pytest.hookimpl
    def pytest_warning_recorded(
        self, warning_message: Any, when: str, nodeid: str, location: Any
    ) -> None:
        """The child hands a warning on to the parent's summary."""
        if self._to_parent is not None:
            told = {"warning_message": warning_message, "when": when, "nodeid": nodeid}
            with contextlib.suppress(Exception):  # a warning that does not pickle
                self._to_parent.send(("warning", {**told, "location": location}))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """The child tears down what is left, and ends."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def become_child(self, session: pytest.Session, parent: Connection) -> None:
        """Run the tests that the parent names until it names no more."""
        self._to_parent = parent
        with contextlib.suppress(KeyboardInterrupt, *_DIED):
            while (names := parent.recv()) is not None:
                item, nextitem = (None if at is None else session.items[at] for at in names)
                assert item is not None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
                parent.send(("done", None))
        session._setupstate.teardown_exact(None)


def run_test(item: pytest.Item, nextitem: pytest.Item | None, parent: Connection) -> None:
    """Send the reports of one test."""
    try:
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    except pytest.exit.Exception as error:
        parent.send(("exit", str(error)))
        return
    for report in reports:
        hook = item.ihook
        data = hook.pytest_report_to_serializable(config=item.config, report=report)
        parent.send(("report", data))


def failure(item: pytest.Item, told: str, seconds: float) -> Any:
    """The report of a test that did not come back."""
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=told,
        when="call",
        duration=seconds,
    )
    return item.ihook.pytest_report_to_serializable(config=item.config, report=report)


@dataclass
class Child:
    """The process that runs tests, as its parent sees it."""

    pid: int
    pipe: Connection
    stacks: IO[str]

    @classmethod
    def fork(cls, plugin: Isolation, session: pytest.Session) -> "Child":
        """Fork it, with default signals and in a process group of its own.

        So a Ctrl-C at the terminal reaches the parent alone, which ends the child.
        """
        here, there = Pipe()
        stacks = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the child
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
            plugin.become_child(session, there)
            code = 0
        finally:
            atexit._run_exitfuncs()
            os._exit(code)

    def run(self, item: pytest.Item, nextitem: pytest.Item | None, limit: float | None) -> Any:
        """Yield what the child tells of a test, until it is done with it."""
        places = {id(each): at for at, each in enumerate(item.session.items)}
        self.pipe.send([places[id(item)], None if nextitem is None else places[id(nextitem)]])
        began = time.monotonic()
        while (event := self._next_event(began, limit)) != ("done", None):
            yield event

    def _next_event(self, began: float, limit: float | None) -> Any:
        """Wait longer while the machine is busy."""
        while not self.pipe.poll(1.0 if limit else None):
            if limit and time.monotonic() - began > limit * slowness():
                raise TimeoutError
        return self.pipe.recv()

    def end_hung(self, error: BaseException, limit: float | None, item: pytest.Item) -> str:
        """End it with all that runs below it; returns what there is to say about it."""
        out, err = _read_captured(item.config)
        if isinstance(error, TimeoutError):
            head = f"The test took more than {limit:g} seconds.\n\n{self._tell_stacks()}"
        else:
            head = f"The test ended its process: {self._wait_for_status()}."
        processes = "\n".join(_tell(pid) for pid in descendants(os.getpid()))
        end_all_below()
        self._close()
        parts = {"Processes": processes, "Captured stdout": out, "Captured stderr": err}
        return head + "".join(f"\n\n{name}:\n{text}" for name, text in parts.items() if text)

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
        limit = time.monotonic() + 5
        while self.pid not in _statuses and time.monotonic() < limit:
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(_statuses.get(self.pid, 0))
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """Let it tear down what is left; end it where that takes too long, and what is below it."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
            if not self._has_ended(1.0):
                os.kill(self.pid, signal.SIGINT)  # it may be in the middle of a test
                self._has_ended(PATIENCE_SECONDS)
        end_all_below()
        self._close()

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


# -------------------------------------------------------------------------------- processes

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


def _read_captured(config: pytest.Config) -> tuple[str, str]:
    """What the test has printed: parent and child capture into the same files."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None or not capture.is_globally_capturing():
        return "", ""
    return tuple(capture.read_global_capture())


def _wait_until_quiet(descriptor: int, size: int) -> None:
    """Until a process has written its stacks; one that blocks the signal writes none."""
    limit, last = time.monotonic() + 2 * slowness(), size
    while time.monotonic() < limit:
        time.sleep(0.2)
        now = os.fstat(descriptor).st_size
        if now == last > size:
            return
        last = now
