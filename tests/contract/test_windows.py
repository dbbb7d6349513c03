"""Windows as we simulate it (tests/simulated): what needs POSIX is not there."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from simulated import environment

pytest.importorskip("loky", reason="it is an optional dependency")

CONTRACT = Path(__file__).parents[1] / "simulated" / "contract.py"

# Of each part of the contract what touches memory and processes. `make systems` runs all.
SAMPLE = (
    "death_is or death_ends or error_in_place or read_only or change_is_seen or private_copy"
    " or large_result or block_is_written or cancelled_future or sum_of_all or killed or refused"
)


@pytest.fixture
def on_windows() -> dict[str, str]:
    """The environment in which a program finds what Windows has."""
    return environment("windows")


PROGRAM = """
import os
import numpy as np
from sharedtask import Locked, OptionsError, Partitioned, Reduced, Shared, parallel, share, zeros

@parallel
def use(x, table: Shared, part: Partitioned, total: Reduced):
    total += x
    part *= 2
    return float(table.sum()), table.flags.writeable, os.getpid()

table = np.ones(50_000)
for backend in ("serial", "thread", "process", "auto"):
    task = use.with_options(backend=backend, workers=2)
    part, total = zeros(4) + 1, np.zeros(1)
    table[0] += 1
    with share(table) as handle:
        for given in (table, handle):
            found = task.map(range(4), table=given, part=part, total=total)
            assert {each[:2] for each in found} == {(float(table.sum()), False)}, (backend, found)
    assert part.tolist() == [4] * 4, (backend, part)
    assert total[0] == 12, (backend, total)
    print(backend, "processes" if os.getpid() not in {each[2] for each in found} else "here")

@parallel
def lock(x, grid: Locked):
    pass

for backend in ("thread", "process"):
    try:
        lock.with_options(backend=backend).map([1], grid=part)
    except OptionsError as error:
        print(error)
"""


def test_program(run: Callable[..., str], on_windows: dict[str, str]) -> None:
    """Threads and processes run without POSIX, and what has no locks is refused by name."""
    *ran, threads, processes = run(PROGRAM, **on_windows).splitlines()
    assert ["serial here", "thread here", "process processes", "auto processes"] == ran
    assert threads.startswith("lock(): 'grid' is Locked, which needs file locks")
    assert processes.startswith("lock(): 'grid' is Locked, and workers that loky starts")


WITHOUT_LOKY = """
import sys
import importlib.util
from sharedtask import BackendUnavailableError, parallel

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "loky" else find(name, *rest)
for name in [name for name in sys.modules if name.partition(".")[0] == "loky"]:
    del sys.modules[name]
sys.modules["loky"] = None
print(parallel(abs).map([-1]))
try:
    parallel(abs).with_options(backend="process").map([1])
except BackendUnavailableError as error:
    print(error)
"""


def test_without_loky(run: Callable[..., str], on_windows: dict[str, str]) -> None:
    """Threads run what names no backend, and "process" says what to install."""
    found, told = run(WITHOUT_LOKY, **on_windows).splitlines()
    assert "[1]" == found
    assert "needs os.fork, which this system does not have, or the package loky: pip" in told
    assert 'backend="thread"' in told


@pytest.mark.long
def test_process_part_of_the_contract(on_windows: dict[str, str]) -> None:
    """What the contract promises holds without fork, descriptors of memory, locks and so on."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest"),
            *("-k", f"[process and ({SAMPLE})", str(CONTRACT)),
        ],
        env=on_windows,
        cwd=CONTRACT.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == ran.returncode, ran.stdout
    assert " passed" in ran.stdout
