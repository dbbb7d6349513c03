"""Both type checkers agree with typing/api.py and find every mistake in typing/mistakes.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = "tests/typing"

# Their settings stand in pyproject.toml: an ignore comment that is not needed is an error in both.
COMMANDS = {
    "mypy": ["mypy", FOLDER],
    "pyright": ["pyright", "--project", ".", "--pythonpath", sys.executable, FOLDER],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", COMMANDS)
def test_checker_agrees(checker: str) -> None:
    """Every ``assert_type`` holds, and every mistake is found where it is marked."""
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed; it comes with sharedtask[lint]")
    ran = subprocess.run(
        [sys.executable, "-m", *COMMANDS[checker]],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert 0 == ran.returncode, ran.stdout + ran.stderr
