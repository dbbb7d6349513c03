"""Which program is started as Python, also from a program that is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharedtask.backends.process import forkserver
from sharedtask.errors import BackendUnavailableError


def test_interpreter_is_this_one() -> None:
    """Workers run on the interpreter of the caller."""
    assert sys.executable == forkserver.command(9)[0]


def test_frozen_program_does_not_start_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a frozen program sys.executable is the program: it would run again and again."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BackendUnavailableError, match="this program itself") as caught:
        forkserver.command(9)
    assert sys.executable in str(caught.value)
    assert "Use backend='thread'" in str(caught.value)


@pytest.mark.parametrize("executable", ["uwsgi", "copyist", "", None])
def test_program_that_embeds_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, executable: str | None
) -> None:
    """The interpreter of the installation is found beside its library."""
    own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    program = executable and str(tmp_path / executable)
    if program:
        Path(program).touch()
    monkeypatch.setattr(sys, "executable", program)
    assert str(Path(sys.prefix, "bin", own)) == forkserver.command(9)[0]


def test_no_interpreter_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without one, the error says what to set."""
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(BackendUnavailableError, match=r"Set sys\.executable to a Python"):
        forkserver.command(9)


PROGRAM = """
import os, sys
with open(os.environ["RUNS"], "a") as file:
    file.write("x")
    if file.tell() > 20:
        sys.exit("started again and again")
sys.executable = os.environ["APP"]
sys.prefix = sys.base_prefix = os.path.dirname(os.environ["APP"])
from sharedtask import parallel
try:
    parallel(abs).with_options(backend="process", workers=2).map(range(3))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_program_in_the_place_of_python_is_not_started_without_end(tmp_path: Path) -> None:
    """Where the library does not know that sys.executable is the program, it ends at the second."""
    script, app, runs = tmp_path / "script.py", tmp_path / "app", tmp_path / "runs"
    script.write_text(PROGRAM, "utf-8")
    app.write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n", "utf-8")
    app.chmod(0o700)
    ran = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "APP": str(app), "RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = sorted(line.partition(" ")[0] for line in ran.stdout.splitlines())
    # The forkserver is tried a few times; none of those that ran in its place tries again.
    assert ["WorkerDiedError"] == [name for name in said if name != "BackendUnavailableError"]
    assert runs.stat().st_size == len(said) <= 9
    assert "this program itself here" in ran.stdout
