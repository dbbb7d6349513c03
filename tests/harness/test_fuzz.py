"""The fuzzer runs: a little each time, and a minute on each backend where long tests run.

``SHAREDTASK_TEST_FUZZ`` says how many seconds that is.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def fuzz(backend: str, seed: int, seconds: float) -> "subprocess.Popen[str]":
    """Start the fuzzer in a process of its own, with programs of all kinds."""
    given = ("--backend", backend, "--seed", seed, "--seconds", seconds)
    command = [sys.executable, "-m", "tests.fuzz", *map(str, given)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def complaints(backends: Iterable[str], *, seed: int, seconds: float) -> list[str]:
    """What it printed where a program failed; on all these backends at the same time."""
    running = {backend: fuzz(backend, seed, seconds) for backend in backends}
    printed = {backend: each.communicate()[0] for backend, each in running.items()}
    right = "# [0-9]+ programs on {}, 0 failed\n"
    return [said for name, said in printed.items() if not re.fullmatch(right.format(name), said)]


@pytest.mark.skipif("CI" in os.environ, reason="test_programs_for_longer is run there")
def test_programs_of_some_seconds() -> None:
    """Random programs give what a plain loop gives."""
    assert [] == complaints(("thread", "process"), seed=0, seconds=3)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backends", [("serial", "thread", "process"), ("ray",)], ids="+".join)
def test_programs_for_longer(backends: tuple[str, ...]) -> None:
    """The same for longer, with other programs: mostly they wait, so several run at once.

    Ray starts by itself: beside others it may take longer than Ray allows.
    """
    seconds = float(os.environ.get("SHAREDTASK_TEST_FUZZ", "30"))
    assert [] == complaints(backends, seed=1000, seconds=seconds)


# Results are returned in the wrong order.
WRONG = """
import sharedtask.task.task
collect = sharedtask.task.task.collect
sharedtask.task.task.collect = lambda *given: collect(*given)[::-1]
"""


def test_failing_program_is_found_and_shortened(tmp_path: Path) -> None:
    """A fault of the library is found, and told as a short program that runs by itself."""
    (tmp_path / "sitecustomize.py").write_text(WRONG)
    how: dict[str, Any] = {
        "env": {**os.environ, "PYTHONPATH": str(tmp_path)},
        "capture_output": True,
        "text": True,
    }
    command = [sys.executable, "-m", "tests.fuzz", "--backend", "serial", "--kinds", "values"]
    ran = subprocess.run(command, cwd=ROOT, check=False, **how)
    assert 1 == ran.returncode
    assert "fails on serial: Mismatch" in ran.stdout
    program = tmp_path / "program.py"
    program.write_text(ran.stdout.partition("in a new process: again\n")[2])
    alone = subprocess.run([sys.executable, program], check=False, **how)
    assert "Mismatch: " in alone.stderr
    assert len(program.read_text().partition("# seed")[2].splitlines()) < 60
