"""The trace of a whole program, which does not know of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from sharedtask import parallel, trace
task = parallel(backend="serial")(abs)
print(task.map([-1, -2]), sys.argv[1:], __name__, "SHAREDTASK_TRACE" in os.environ)
if "own" in sys.argv:
    with trace() as run:
        task.map([-3])
    print(len(run.calls))
"""


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_traces_a_program(tmp_path: Path) -> None:
    """It runs as it would by itself, with its arguments; the file is there when it has ended."""
    command = ("-m", "sharedtask", "trace", "-o", "run.json", "program.py", "-x", "own")
    told = run(tmp_path, *command)

    assert "[1, 2] ['-x', 'own'] __main__ False\n1\n" == told.stdout
    assert "1 call of 2 items" in told.stderr
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    assert any(event["name"].startswith("abs") for event in events)


def test_the_variable_traces_a_program(tmp_path: Path) -> None:
    """The end of the name says the format."""
    told = run(tmp_path, "program.py", SHAREDTASK_TRACE="run.txt")

    assert "[1, 2] [] __main__ False\n" == told.stdout
    assert "1 call of 2 items" in (tmp_path / "run.txt").read_text()


def test_a_page_is_written_for_html(tmp_path: Path) -> None:
    """One file, which a browser shows."""
    run(tmp_path, "program.py", SHAREDTASK_TRACE="run.html")

    assert "<html" in (tmp_path / "run.html").read_text()


def test_a_variable_that_names_no_file_changes_nothing(tmp_path: Path) -> None:
    """The program runs, and standard error says what is wrong."""
    told = run(tmp_path, "program.py", SHAREDTASK_TRACE="there/run.txt")

    assert "[1, 2] [] __main__ False\n" == told.stdout
    assert 0 == told.returncode
    assert "there is no folder" in told.stderr


def test_a_name_without_a_format_is_refused(tmp_path: Path) -> None:
    """Before the program runs."""
    told = run(tmp_path, "-m", "sharedtask", "trace", "-o", "run.x", "program.py")

    assert 1 == told.returncode
    assert not told.stdout
    assert "run.x: the end of the name says the format" in told.stderr
