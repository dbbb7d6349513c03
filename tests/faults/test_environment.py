"""What surrounds the processes: streams, /proc, folders, what tasks change, leave and switch on."""

import bdb
import contextlib
import decimal
import faulthandler
import gc
import locale
import os
import pdb  # noqa: T100  a case under test
import random
import signal
import subprocess
import sys
import threading
import time
import trace
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import EVERYTHING

from sharedtask import Locked, Shared, TaskExitError, WorkerDiedError, parallel, shutdown, zeros
from sharedtask.testing import slowness

Run = Callable[..., str]


@pytest.fixture
def new_workers() -> Iterator[None]:
    """What the tasks of a test change for good goes with their workers."""
    yield
    shutdown()


def total(x: int, table: Shared[Any]) -> float:
    return float(table.sum()) + x


def all_is_well() -> None:
    """Shared values, results of any size and a death are what they should be."""
    table = np.ones(200_000)
    task = parallel(total).with_options(backend="process", workers=2, chunksize=1)
    assert [200_000.0 + x for x in range(6)] == task.map(range(6), table=table)
    large = parallel(np.ones).with_options(backend="process", workers=2, chunksize=2)
    assert [3, 300_000, 5] == [len(result) for result in large.map([3, 300_000, 5])]
    with pytest.raises(ZeroDivisionError):
        parallel(lambda x: 1 // x).with_options(backend="process").map([1, 0, 1])


def in_every_worker(function: Any) -> list[Any]:
    """Run ``function(x)`` until both workers have run it."""
    both: set[int] = set()
    results: list[Any] = []

    def run(x: int) -> Any:
        result = function(x)
        time.sleep(0.01)
        return os.getpid(), result

    task = parallel(run).with_options(backend="process", workers=2, chunksize=1)
    while len(both) < 2:
        for pid, result in task.map(range(4)):
            both.add(pid)
            results.append(result)
    return results


# ---------------------------------------------------------------- what a task may change

CHANGES: dict[str, Callable[[], object]] = {
    "folder": lambda: os.chdir("/"),
    "umask": lambda: os.umask(0o777),
    "variables": os.environ.clear,
    "recursion limit": lambda: sys.setrecursionlimit(200),
    "no collections": gc.disable,
    "collections all the time": lambda: gc.set_threshold(1),
    "decimal context": lambda: setattr(decimal.getcontext(), "prec", 1),
    "warnings are errors": lambda: warnings.simplefilter("error"),
    "seed": lambda: (random.seed(1), np.random.seed(1)),  # noqa: NPY002
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
    "switch interval": lambda: sys.setswitchinterval(1e-5),
    "path": sys.path.clear,
    "no faulthandler": faulthandler.disable,
    "signals blocked": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()),
    "SIGCHLD ignored": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    "SIGPIPE by default": lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    "numpy errors": lambda: np.seterr(all="raise"),
    "a session of its own": lambda: new_session(),  # noqa: PLW0108
    "niceness": lambda: os.nice(1),
    "stdout is nothing": lambda: setattr(sys, "stdout", None),
    "stdout is closed": lambda: sys.stdout.close(),  # noqa: PLW0108  that of the worker
    "stderr is closed": lambda: sys.stderr.close(),  # noqa: PLW0108
    "stdin is closed": lambda: sys.stdin.close(),  # noqa: PLW0108
    "descriptors 0, 1, 2 are closed": lambda: os.closerange(0, 3),
    "descriptors 0, 1, 2 are a broken pipe": lambda: broken_pipe(),  # noqa: PLW0108
}


def new_session() -> None:
    if os.getsid(0) != os.getpid():
        os.setsid()


def broken_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for number in range(3):
        os.dup2(writer, number)
    os.close(writer)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.usefixtures("new_workers")
def test_task_that_changes_its_process(name: str) -> None:
    """Whatever a task changes in its process, the tasks after it get what they should."""
    change = CHANGES[name]

    def task(x: int) -> None:
        change()

    in_every_worker(task)
    all_is_well()


@pytest.mark.usefixtures("new_workers")
def test_folder_is_the_callers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk begins in the caller's folder, wherever the last one went."""
    in_every_worker(lambda _: os.chdir("/"))
    where = parallel(lambda _: os.getcwd()).with_options(backend="process", chunksize=1)
    assert {os.getcwd()} == set(where.map(range(4)))
    monkeypatch.chdir(tmp_path)
    assert {str(tmp_path)} == set(where.map(range(4)))


def test_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller whose folder was removed maps as ever."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    all_is_well()


def test_streams_closed_by_a_task_and_a_long_print(capsys: pytest.CaptureFixture[str]) -> None:
    """A task may close its descriptors 0, 1 and 2 and print a megabyte: it reaches the caller."""

    def closes(x: int) -> int:
        os.closerange(0, 3)
        print("x" * 1_000_000)
        print("y" * 1_000_000, file=sys.stderr)
        return x

    task = parallel(closes).with_options(backend="process", workers=2, chunksize=1)
    assert [0, 1, 2, 3] == task.map(range(4))
    captured = capsys.readouterr()
    assert (4_000_000, 4_000_000) == (captured.out.count("x"), captured.err.count("y"))
    shutdown()


@pytest.mark.parametrize("at", [0, 3])
def test_descriptors_closed_by_a_task(at: int) -> None:
    """A task that closes the descriptors from 3 on costs its worker, with an error that says so."""

    def close_all(x: int) -> int:
        if x == at:
            os.closerange(3, 256)
        return x

    task = parallel(close_all).with_options(
        backend="process", return_exceptions=True, workers=2, chunksize=4
    )
    results: Any = task.map(range(8))
    failed = [k for k, result in enumerate(results) if isinstance(result, WorkerDiedError)]
    assert len(failed) <= 1
    assert all(k == result for k, result in enumerate(results) if k not in failed)
    all_is_well()


def test_random_numbers_differ_between_workers() -> None:
    """Workers begin with random states of their own, after a fault too."""
    os.kill(in_every_worker(lambda _: os.getpid())[0], signal.SIGKILL)

    def draw(_: int) -> Any:
        return os.getpid(), random.random(), float(np.random.random())  # noqa: NPY002

    found = in_every_worker(draw)
    assert len(found) == len({first for _, first, _ in found})
    assert len(found) == len({second for _, _, second in found})


# ------------------------------------------------------------------- what a task may leave


def test_thread_that_a_task_leaves_behind(capsys: pytest.CaptureFixture[str]) -> None:
    """A thread that goes on printing when its task is over spoils no result that is sent."""

    def leave(x: int) -> Any:
        def noise() -> None:
            for _ in range(100):
                print("n" * 50_000)

        threading.Thread(target=noise).start()
        return np.full(3_000, x)

    task = parallel(leave).with_options(backend="process", workers=2, chunksize=1)
    for _ in range(3):
        results = task.map(range(8))
        assert list(range(8)) == [int(result[-1]) for result in results]
    in_every_worker(join_threads)
    assert "n" in capsys.readouterr().out


def join_threads(_: int) -> None:
    for thread in threading.enumerate()[1:]:
        if not thread.daemon:
            thread.join()


def test_program_that_a_task_starts_inherits_nothing() -> None:
    """Neither a segment nor a socket of ours is open in a program that a task starts."""

    def listed(x: int, table: Shared[Any]) -> list[str]:
        code = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in range(3, 40)"
        code += " if os.path.exists(f'/proc/self/fd/{n}') or os.path.islink(f'/proc/self/fd/{n}')])"
        ran = subprocess.run(
            [sys.executable, "-S", "-c", code], close_fds=False, capture_output=True, check=True
        )
        return [word for word in (b"memfd:sharedtask", b"socket:") if word in ran.stdout]  # type: ignore[misc]

    task = parallel(listed).with_options(backend="process", workers=2, chunksize=1)
    assert [[]] * 3 == task.map(range(3), table=np.ones(200_000))


def test_child_that_a_task_leaves_behind() -> None:
    """A process that a task has forked keeps neither its worker's death nor its memory secret."""

    def fork_and_die(x: int, table: Shared[Any]) -> Any:
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        if x == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return x

    task = parallel(fork_and_die).with_options(
        backend="process", return_exceptions=True, chunksize=1
    )
    began = time.monotonic()
    results = task.map(range(4), table=np.ones(200_000))
    assert 3 * slowness() > time.monotonic() - began
    assert [0, 2, 3] == [results[0], *results[2:]]
    assert isinstance(results[1], WorkerDiedError)


def write_and_fork(x: int, grid: Locked[Any], gate: Path) -> int:
    with grid.write(0) as row:
        row[...] += 1
        if x % 2 and os.fork() == 0:
            while not gate.exists():
                time.sleep(0.01)
            os._exit(0)
    return x


def test_lock_whose_holder_forks(tmp_path: Path) -> None:
    """A child that is forked within a locked block does not hold the lock when the block ends."""
    grid = zeros((2, 4))
    task = parallel(write_and_fork).with_options(backend="process", workers=2, chunksize=1)
    given: Any = grid
    task.map(range(6), grid=given, gate=tmp_path / "gate")
    assert [6.0] * 4 == grid[0].tolist()
    (tmp_path / "gate").touch()
    in_every_worker(reap)


def reap(_: int) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


# ---------------------------------------------------------------- what a task may switch on


@pytest.mark.usefixtures("new_workers")
def test_debugger_in_a_task() -> None:
    """A debugger finds no terminal in a task: that is an error of the item, not a hang."""

    def debugged(x: int) -> int:
        if x == 1:
            pdb.set_trace()  # noqa: T100
        return x

    task = parallel(debugged).with_options(backend="process", return_exceptions=True, chunksize=3)
    results: Any = task.map(range(3))
    assert [0, 2] == [results[0], results[2]]
    ended = bdb.BdbQuit if sys.version_info < (3, 14) else TaskExitError
    assert isinstance(results[1], ended)


@pytest.mark.usefixtures("new_workers")
def test_tracing_in_a_task() -> None:
    """Tasks that are traced, as for coverage, give the same results."""

    def traced(x: int) -> Any:
        tracer = trace.Trace(count=True, trace=False)
        result = tracer.runfunc(lambda: [k * k for k in range(x)])
        sys.settrace(lambda *_: None)
        sys.setprofile(lambda *_: None)
        return result

    in_every_worker(traced)
    all_is_well()


@pytest.mark.usefixtures("new_workers")
def test_stacks_dumped_in_a_task(capfd: pytest.CaptureFixture[str]) -> None:
    """A task may use faulthandler as any program does."""

    def dump(x: int) -> int:
        faulthandler.dump_traceback_later(0.05, file=open(os.devnull, "w"))  # noqa: SIM115
        faulthandler.dump_traceback(file=open(os.devnull, "w"))  # noqa: SIM115
        time.sleep(0.1)
        faulthandler.cancel_dump_traceback_later()
        return x

    warnings.simplefilter("ignore", ResourceWarning)
    task = parallel(dump).with_options(backend="process", chunksize=1)
    assert [0, 1, 2, 3] == task.map(range(4))
    all_is_well()


# -------------------------------------------------------------------- what is not there

MACHINE = """
C = ctypes.CDLL(None, use_errno=True)

def need(result):
    if result != 0:
        print("SKIP", os.strerror(ctypes.get_errno()))
        sys.exit(0)

def without_capabilities(*numbers):
    for number in numbers:
        C.prctl(24, number, 0, 0, 0)
    header = ctypes.create_string_buffer((0x20080522).to_bytes(4, "little") + bytes(4))
    sets = (ctypes.c_uint * 6)()
    need(C.capget(header, sets))
    for number in numbers:
        for k in range(3):
            sets[k] &= ~(1 << number)
    need(C.capset(header, sets))

def own_mounts():
    need(C.unshare(0x20000))
    need(C.mount(b"none", b"/", None, 16384 | 1 << 18, None))
"""

PLACES = {
    # PR_SET_DUMPABLE, and none of the capabilities of root that make up for it
    "not dumpable": "without_capabilities(1, 2, 19); need(C.prctl(4, 0, 0, 0, 0))",
    "no /proc": "own_mounts(); need(C.mount(b'none', b'/proc', b'tmpfs', 0, None))",
    "hidden processes": "own_mounts(); need(C.mount(b'proc', b'/proc', b'proc', 0, b'hidepid=2'));"
    " without_capabilities(1, 2, 19)",
    "another PID namespace": "need(C.unshare(0x20000000)); child = os.fork();"
    " child and sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
}


@pytest.mark.parametrize("place", PLACES)
def test_place_where_processes_do_not_see_each_other(run: Run, place: str) -> None:
    """Values, items and results need neither /proc nor the right to look into a process."""
    out = run(f"{EVERYTHING}\n{MACHINE}\n{PLACES[place]}\neverything()\n")
    if out.startswith("SKIP"):
        pytest.skip(out)
    assert "OK\n" == out


WATCH = """
import os, sys
if os.environ.get("SHAREDTASK_TEST_WATCH"):
    def hook(event, args):
        if event == "open" and isinstance(args[0], str):
            wants = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if wants and not args[0].startswith(("/proc/", "/dev/null")):
                os.write(2, f"WRITES {args[0]}\\n".encode())
        if event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "tempfile.mkstemp"):
            os.write(2, f"{event} {args}\\n".encode())
    sys.addaudithook(hook)
"""


def test_no_file_is_written(run: Run, tmp_path: Path) -> None:
    """Neither HOME nor a temporary folder is needed: no file is opened for writing anywhere."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join([str(tmp_path / "watch"), *filter(None, sys.path)])
    places = dict.fromkeys(("HOME", "TMPDIR", "TMP", "TEMP", "XDG_RUNTIME_DIR"), "/nowhere")
    text = f"{EVERYTHING}\nos.chdir('/')\neverything()\n"
    assert "OK\n" == run(text, PYTHONPATH=path, SHAREDTASK_TEST_WATCH="1", **places)


def test_no_home_at_all(run: Run) -> None:
    """Nothing asks for the user's home, name or settings."""
    text = f"""
import os
for name in ("HOME", "USER", "LOGNAME", "TMPDIR", "LANG", "LC_ALL", "PATH"):
    os.environ.pop(name, None)
{EVERYTHING}
everything()
"""
    assert "OK\n" == run(text)
