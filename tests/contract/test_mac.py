"""macOS as we simulate it (tests/simulated): what needs Linux is not there."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import ALL
from simulated import environment

from sharedtask.testing import until

HERE = Path(__file__).parent

# Of each part of the contract what touches memory, processes and sockets. `make systems` runs all.
SAMPLE = (
    "equals_serial or error_in_place or read_only or change_is_seen or private_copy"
    " or large_result or block_is_written or dead or cancelled_future or sum_of_all or order"
)


@pytest.fixture
def on_mac() -> dict[str, str]:
    """The environment in which a program finds what a Mac has."""
    return environment("mac")


def test_process_part_of_the_contract(on_mac: dict[str, str]) -> None:
    """What the contract promises holds on processes without memfd, PDEATHSIG, /proc and so on."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-k", f"TestBackend and [process and ({SAMPLE})"),
            str(HERE / "test_conformance.py"),
        ],
        env=on_mac,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == ran.returncode, ran.stdout
    assert " passed" in ran.stdout


def test_program(run: Callable[..., str], on_mac: dict[str, str]) -> None:
    """Values are shared and compared, deaths and time limits are told, nothing is left."""
    assert "OK\n" == run(ALL, **on_mac)


LIMITED = """
import numpy as np
from sharedtask import MemoryLimitError, parallel

def fill(megabytes):
    return np.ones(megabytes << 17).sum()

task = parallel(fill).with_options(
    backend="process", workers=1, memory_limit="300MB", return_exceptions=True
)
print([type(found).__name__ for found in task.map([1, 900, 1])])
"""


def test_memory_limit(run: Callable[..., str], on_mac: dict[str, str]) -> None:
    """The memory of a worker is asked of the system's own call."""
    assert "['float64', 'MemoryLimitError', 'float64']\n" == run(LIMITED, **on_mac)


ORPHANED = """
import os, signal, sys, time
from pathlib import Path
from sharedtask import parallel

def busy(path):
    Path(path).write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(120)

parallel(busy).with_options(backend="process", workers=1).map([sys.argv[1]])
"""


@pytest.mark.parametrize("whose", ["caller", "forkserver"])
def test_busy_worker_ends_with(
    whose: str, script: Callable[..., Any], on_mac: dict[str, str], tmp_path: Path
) -> None:
    """A worker in the middle of a task ends with its caller, and with the forkserver."""
    told = tmp_path / "told"
    started = script(ORPHANED, told, **on_mac)
    worker, forkserver = until(lambda: told.exists() and told.read_text().split())
    os.kill(started.pid if whose == "caller" else int(forkserver), 9)
    until(lambda: not os.path.exists(f"/proc/{worker}/fd/0"), told="the worker lives")
    started.end()


INHERITED = """
import os
from sharedtask import Shared, parallel
import numpy as np

def inheritable(_, table: Shared):
    return [fd for fd in map(int, os.listdir("/dev/fd")) if fd > 2 and is_inheritable(fd)]

def is_inheritable(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:  # that of the list itself
        return False

print(parallel(inheritable).with_options(backend="process").map([0], np.ones(300_000)))
"""


def test_programs_of_a_task_inherit_no_descriptor(
    run: Callable[..., str], on_mac: dict[str, str]
) -> None:
    """Descriptors that a worker was sent are its own, though they cannot be received so."""
    assert "[[]]\n" == run(INHERITED, **on_mac)
