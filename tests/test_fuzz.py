"""The fuzzer runs: a little each time, and longer on each backend where long tests run.

``SHAREDTASK_TEST_FUZZ`` says how many seconds that is.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BACKENDS = ("serial", "thread", "process", "ray")
KINDS = ("classes", "exceptions")


def fuzz(*arguments: object, seconds: float) -> str:
    """Run the fuzzer in a process of its own; fails with the program that failed."""
    command = [sys.executable, "-m", "tests.fuzz", *map(str, arguments), "--seconds", str(seconds)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == ran.returncode, f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}"
    assert "" == ran.stderr
    return ran.stdout


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_programs_of_some_seconds(backend: str) -> None:
    """Random programs give what a plain loop gives."""
    printed = fuzz("--backend", backend, "--kinds", *KINDS, seconds=3)
    assert f"programs on {backend}, 0 failed" in printed


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_for_longer(backend: str) -> None:
    """The same for longer, with other programs."""
    seconds = float(os.environ.get("SHAREDTASK_TEST_FUZZ", "15"))
    printed = fuzz("--backend", backend, "--kinds", *KINDS, "--seed", 1000, seconds=seconds)
    assert f"programs on {backend}, 0 failed" in printed


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
