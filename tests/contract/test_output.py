import contextlib
import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tqdm import tqdm

from sharedtask import parallel, shutdown
from sharedtask.backends.process.wire import Frame, Kind, Sender

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["serial", "thread", "process"])
def backend(request: pytest.FixtureRequest) -> str:
    """Where prints come through us; on Ray they come as Ray's log lines (see test_ray.py)."""
    name: str = request.param
    return name


def say(x: int) -> int:
    print(f"item {x}")
    return x


def complain(x: int) -> int:
    print(f"trouble {x}", file=sys.stderr)
    return x


def shout(n: int) -> int:
    print("x" * n)
    return n


def show(text: str) -> None:
    print(text)


def half_a_line(x: int) -> int:
    print("a", end="")
    print("b", end="", flush=True)
    print(f"c{x}")
    return x


@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
def test_prints_reach_the_caller(
    backend: Any, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What tasks print stands on the caller's stdout when the map is over, each line whole."""
    task = parallel(say).with_options(backend=backend)
    list(getattr(task, method)(range(20)))
    out = capsys.readouterr().out
    assert sorted(f"item {x}" for x in range(20)) == sorted(out.splitlines())


def test_print_of_a_submitted_item(backend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What a submitted task prints is there when its future is done."""
    parallel(say).with_options(backend=backend).submit(7).result(60)
    assert "item 7\n" == capsys.readouterr().out


def test_stderr_goes_to_stderr(backend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The two streams are kept apart."""
    parallel(complain).with_options(backend=backend).map(range(3))
    captured = capsys.readouterr()
    assert "" == captured.out
    assert ["trouble 0", "trouble 1", "trouble 2"] == sorted(captured.err.splitlines())


def test_redirected_stdout(backend: Any) -> None:
    """``contextlib.redirect_stdout`` in the caller takes what tasks print."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        parallel(say).with_options(backend=backend).map(range(5))
    assert sorted(f"item {x}" for x in range(5)) == sorted(text.getvalue().splitlines())


@pytest.mark.parametrize("size", [100, 70_000, 1_000_000, 5_000_000])
def test_long_print(backend: Any, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A print of megabytes arrives whole and blocks no one."""
    task = parallel(shout).with_options(backend=backend, chunksize=2)
    assert [size] * 3 == task.map([size] * 3)
    lines = capsys.readouterr().out.splitlines()
    assert 3 * size == sum(len(line) for line in lines)


def test_pieces_of_a_line_stay_together(capsys: pytest.CaptureFixture[str]) -> None:
    """A line that is printed in pieces by one task is one line in the order of its pieces."""
    parallel(half_a_line).with_options(backend="process", workers=1).map(range(5))
    assert [f"abc{x}" for x in range(5)] == capsys.readouterr().out.splitlines()


def test_print_without_a_newline(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line needs no newline to be seen."""
    parallel(lambda x: print(x, end="")).with_options(backend="process").map([5])
    assert "5" == capsys.readouterr().out


def test_other_alphabets(capsys: pytest.CaptureFixture[str]) -> None:
    """Any text can be printed, in pieces too; what UTF-8 cannot say is escaped."""
    texts = ["grün " * 20_000, "日本語\n" * 10_000, "\ud800 alone"]
    parallel(show).with_options(backend="process", workers=1).map(texts)
    out = capsys.readouterr().out
    assert "\ufffd" not in out
    assert 20_000 == out.count("grün ")
    assert 10_000 == out.count("日本語\n")
    assert "alone" in out


def test_print_before_a_death(capsys: pytest.CaptureFixture[str]) -> None:
    """What a task printed and flushed before its worker died is not lost."""

    def last_words(x: int) -> int:
        print("last words", flush=True)
        os._exit(1)

    task = parallel(last_words).with_options(backend="process", return_exceptions=True)
    assert 1 == len(task.map([1]))
    assert "last words\n" == capsys.readouterr().out


def test_binary_output(capsys: pytest.CaptureFixture[str]) -> None:
    """``sys.stdout.buffer`` and ``sys.stdout.write`` work in a task."""

    def write(x: int) -> int:
        sys.stdout.write("text ")
        sys.stdout.flush()
        sys.stdout.buffer.write(b"bytes\n")
        sys.stdout.buffer.flush()
        return x

    parallel(write).with_options(backend="process").map([1])
    assert "text bytes\n" == capsys.readouterr().out


def test_log_of_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    """A handler that a task sets up writes to the caller's stderr."""

    def log(x: int) -> int:
        logging.basicConfig(level=logging.INFO, force=True)
        logging.getLogger("task").info("logged %d", x)
        return x

    parallel(log).with_options(backend="process", workers=1).map([3])
    assert "INFO:task:logged 3\n" in capsys.readouterr().err


def test_output_of_native_code_and_children(capfd: pytest.CaptureFixture[str]) -> None:
    """What a child process or native code of a task writes reaches the caller's terminal."""
    shutdown()  # workers write where stdout led when they were started

    def echo(x: int) -> int:
        os.write(1, b"native\n")
        subprocess.run(["echo", "child"], check=True)
        return x

    parallel(echo).with_options(backend="process").map([1])
    out = capfd.readouterr().out
    assert {"native", "child"} <= set(out.splitlines())


def test_forked_child_of_a_task_prints(capfd: pytest.CaptureFixture[str]) -> None:
    """A process that a task forks may print without harming the worker's socket."""
    shutdown()

    def fork(x: int) -> int:
        pid = os.fork()
        if pid == 0:
            print("from the child", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        return x

    task = parallel(fork).with_options(backend="process")
    assert [0, 1, 2] == task.map(range(3))
    assert 3 == capfd.readouterr().out.count("from the child")


Run = Callable[..., str]


def test_order_in_a_script(run: Run) -> None:
    """In a script what tasks print stands before what is printed after the map."""
    out = run(
        """
from sharedtask import parallel
def say(x):
    print("task", x)
print("before")
parallel(say).map(range(3))
print("after")
"""
    )
    lines = out.splitlines()
    assert ("before", "after") == (lines[0], lines[-1])
    assert ["task 0", "task 1", "task 2"] == sorted(lines[1:-1])


def test_closed_streams(run: Run) -> None:
    """A caller without stdout, stderr or stdin maps as ever."""
    out = run(
        """
import os, sys
from sharedtask import parallel
report = os.fdopen(os.dup(1), "w")
sys.stdout.close(); sys.stderr.close(); sys.stdin and sys.stdin.close()
sys.stdout = sys.stderr = None
for fd in (0, 1, 2):
    try:
        os.close(fd)
    except OSError:
        pass
def say(x):
    print("x" * 100_000)
    print("y", file=sys.stderr)
    return x
def read(x):
    return sys.stdin.read() if sys.stdin else ""
found = parallel(say).map(range(4))
report.write(f"{found} {parallel(read).map([1])}\\n")
report.close()
"""
    )
    assert "[0, 1, 2, 3] ['']\n" == out


def test_stdin_of_a_task_is_empty(backend: Any) -> None:
    """A task that reads stdin gets an end of file, not the caller's input."""
    if backend != "process":
        pytest.skip("a task in this process has this process' stdin")

    def read(_x: int) -> Any:
        return sys.stdin.read()

    assert ["", ""] == parallel(read).with_options(backend="process").map(range(2))


def talk_while_sending(x: int) -> bytes:
    """Prints from another thread while the result is sent."""
    ends = threading.Event()

    def talk() -> None:
        while not ends.is_set():
            print("talk")

    threading.Thread(target=talk).start()
    threading.Timer(0.1, ends.set).start()
    return bytes((x,)) * 900_000  # in several pieces, for it does not fit the socket


def test_prints_do_not_break_into_results(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the threads of a task say while it sends a result, the result arrives whole."""
    task = parallel(talk_while_sending).with_options(backend="process")
    assert [bytes((x,)) * 900_000 for x in range(12)] == task.map(range(12))
    assert {"talk"} >= set(capsys.readouterr().out.split())
    shutdown()


class Interrupted:
    """A socket that takes ten bytes, and then a signal comes whose handler prints."""

    def __init__(self) -> None:
        self.sent = b""
        self.sender: Any = None

    def sendmsg(self, parts: list[memoryview], _rights: object, _flags: int) -> int:
        self.sent += parts[0][:10]
        if len(parts[0]) > 50:
            self.sender.send(Frame(Kind.OUTPUT, body=b"text"))
        return 10

    def sendall(self, data: memoryview, _flags: int) -> None:
        self.sent += data


def test_print_in_the_middle_of_a_send_waits_for_its_end() -> None:
    """A frame that is sent while its own thread is sending another one follows it."""
    large, small = Frame(Kind.RESULTS, body=b"x" * 100), Frame(Kind.OUTPUT, body=b"text")
    socket: Any = Interrupted()
    socket.sender = Sender(socket)
    socket.sender.send(large)
    frames = b"".join(frame.header() + bytes(frame.body) for frame in (large, small))
    assert frames == socket.sent


def screen(text: str) -> list[str]:
    """The lines that a terminal would show."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def say_slowly(x: int) -> int:
    print(f"item {x}")
    print("half ", end="", flush=True)
    time.sleep(0.05)
    print(f"of {x}")
    return x


@pytest.mark.parametrize("ours", [True, False])
def test_prints_stand_above_a_bar(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a bar of ours or of the program is shown, each printed line is one of its own."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    task = parallel(say_slowly).with_options(backend="process", workers=1, progress=ours)
    with contextlib.nullcontext() if ours else tqdm(total=1):
        assert [0, 1, 2] == task.map(range(3))
    shown = screen(terminal.getvalue())
    wanted = [line for x in range(3) for line in (f"item {x}", f"half of {x}")]
    assert wanted == [line for line in shown if line.startswith(("item", "half"))]
    assert not [line for line in shown if "%" in line and "item " in line]


def test_line_without_an_end_stands_above_a_bar_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is not ended is shown after a while, or when the bar is gone."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    with tqdm(total=1, file=sys.stdout):
        parallel(lambda x: print("no end", end="")).with_options(backend="process").map([1])
        while "no end" not in terminal.getvalue():
            time.sleep(0.01)
    assert "no end" in screen(terminal.getvalue())


def test_print_while_the_program_holds_the_lock_of_bars(capsys: pytest.CaptureFixture[str]) -> None:
    """The results do not wait for a program that holds tqdm's lock while it waits for them."""
    bars: Any = tqdm
    with tqdm(total=1), bars.get_lock():
        other = threading.Thread(
            target=parallel(say).with_options(backend="process").map, args=([7],)
        )
        other.start()
        other.join(30)
        assert not other.is_alive()
    while "item 7" not in capsys.readouterr().out:
        time.sleep(0.01)


def test_print_of_the_first_item_outlives_its_worker(capfd: pytest.CaptureFixture[str]) -> None:
    """Also without the end of a line: it goes along before the second item is begun."""

    def die(x: int) -> int:
        print("begin", x, end=" ")
        if x == 1:
            os._exit(3)
        return x

    task = parallel(backend="process", workers=1, chunksize=4, return_exceptions=True)(die)
    results: list[Any] = task.map(range(4))
    assert [0, 2, 3] == [each for each in results if isinstance(each, int)]
    sys.stdout.flush()
    assert "begin 0" in capfd.readouterr().out
