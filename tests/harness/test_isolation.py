"""Tests that hang or crash fail alone, and whole."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(100)

CONFTEST = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from isolation import Isolation

def pytest_configure(config):
    config.pluginmanager.register(Isolation(), "isolation")
"""

ODD = """
import os, re, signal, subprocess, sys, threading, time, warnings
import pytest

limit = pytest.mark.timeout(0.5)

def test_before():
    pass

@limit
def test_hang_in_c():
    print("before it hangs")
    re.match("(a+)+b", "a" * 60)  # does not release the interpreter lock

def test_between():
    pass

@limit
def test_hang_in_a_lock():
    lock = threading.Lock()
    threading.Thread(target=time.sleep, args=(60,), name="another").start()
    lock.acquire()
    lock.acquire()

@limit
def test_hang_in_a_child():
    if not os.fork():
        time.sleep(60)
    os.wait()

@limit
def test_hang_in_a_program():
    code = "import os, time; os.fork(); os.setsid(); time.sleep(60)"
    subprocess.Popen([sys.executable, "-c", code])
    subprocess.run([sys.executable, "-c", code])

@pytest.fixture
def odd():
    yield
    time.sleep(60)

@limit
def test_hang_in_teardown(odd):
    pass

def test_crash():
    os.kill(os.getpid(), signal.SIGKILL)

def test_exit():
    os._exit(3)

def test_failure():
    assert 1 == 2

@pytest.mark.skip
def test_skipped():
    pass

def test_warning(tmp_path):
    warnings.warn("look here")

def test_interrupt():
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)

def test_default_in_programs():
    code = "import signal; print(signal.getsignal(signal.SIGINT) == signal.default_int_handler)"
    assert b"True\\n" == subprocess.check_output([sys.executable, "-c", code])
"""

BAD = {
    "test_hang_in_c",
    "test_hang_in_a_lock",
    "test_hang_in_a_child",
    "test_hang_in_a_program",
    "test_hang_in_teardown",
    "test_crash",
    "test_exit",
    "test_failure",
}
GOOD = {
    "test_before",
    "test_between",
    "test_warning",
    "test_interrupt",
    "test_default_in_programs",
}


def run_pytest(folder: Path, *arguments: str, **how: Any) -> tuple[int, str]:
    """Run pytest on the odd tests; returns its exit status and what it printed."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_odd.py").write_text(ODD)
    command = [sys.executable, "-m", "pytest", "-rA", "--color=no", "test_odd.py", *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **how)
    assert "" == ran.stderr
    return ran.returncode, ran.stdout


def outcomes(printed: str, word: str) -> set[str]:
    """The tests that the summary lists with this outcome."""
    lines = [line.split() for line in printed.splitlines() if line.startswith(word + " ")]
    return {words[1].partition("::")[2] for words in lines}


def left_behind(folder: Path) -> list[str]:
    """The processes that work in this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(place / "cwd") == str(folder):
                found.append((place / "cmdline").read_text())
    return found


def test_hanging_tests_fail_alone(tmp_path: Path) -> None:
    """What hangs or crashes fails with stacks and output, the rest passes, nothing is left."""
    status, printed = run_pytest(tmp_path, "--junitxml=all.xml")
    assert pytest.ExitCode.TESTS_FAILED == status
    assert BAD == outcomes(printed, "FAILED")
    assert GOOD == outcomes(printed, "PASSED")
    assert "1 skipped, 1 warning in" in printed
    for told in (
        "in test_hang_in_c\n",
        "in test_hang_in_a_lock\n",
        "in run\n",  # the other thread
        "in test_hang_in_a_child\n",
        "in odd\n",
        "Captured stdout:\nbefore it hangs",
        "It ended with signal 9.",
        "It ended with exit code 3.",
        "UserWarning: look here",
        "time.sleep(60)",  # the command of the program
    ):
        assert told in printed
    assert [] == left_behind(tmp_path)
    assert f'tests="{len(BAD | GOOD) + 1}"' in (tmp_path / "all.xml").read_text()


def test_options_of_pytest_hold(tmp_path: Path) -> None:
    """``-x`` ends the run at a test that hangs, ``--lf`` runs it again, ``-k`` selects."""
    status, printed = run_pytest(tmp_path, "-x")
    assert pytest.ExitCode.TESTS_FAILED == status
    assert {"test_hang_in_c"} == outcomes(printed, "FAILED")
    assert {"test_before"} == outcomes(printed, "PASSED")
    status, printed = run_pytest(tmp_path, "--lf", "-k", "hang_in_c or before")
    assert {"test_hang_in_c"} == outcomes(printed, "FAILED")
    assert set() == outcomes(printed, "PASSED")
    status, printed = run_pytest(tmp_path, "-k", "before or between or interrupt")
    assert pytest.ExitCode.OK == status


def test_background_job(tmp_path: Path) -> None:
    """Where a shell has all signals ignored that it can, tests and programs have the defaults."""
    status, printed = run_pytest(tmp_path, "-k", "interrupt or programs", preexec_fn=ignore_signals)
    assert pytest.ExitCode.OK == status
    assert {"test_interrupt", "test_default_in_programs"} == outcomes(printed, "PASSED")


def ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def test_ctrl_c_ends_the_run(tmp_path: Path) -> None:
    """The run is interrupted, what the test tears down is torn down, and nothing is left."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_long.py").write_text(LONG)
    command = [sys.executable, "-m", "pytest", "test_long.py"]
    ran = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    ran.send_signal(signal.SIGINT)
    printed = ran.communicate(timeout=60)[0]
    assert pytest.ExitCode.INTERRUPTED == ran.returncode
    assert "KeyboardInterrupt" in printed
    assert (tmp_path / "torn down").exists()
    assert [] == left_behind(tmp_path)


LONG = """
import pathlib, time
import pytest

@pytest.fixture
def torn():
    yield
    pathlib.Path("torn down").touch()

def test_long(torn):
    pathlib.Path("began").touch()
    time.sleep(60)
"""
