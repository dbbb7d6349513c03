"""Frozen programs: one file that has no Python beside it and starts itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharedtask.system.freezing import hook_directories

SCRIPT = """
import os, sys
import numpy as np
from sharedtask import Shared, parallel

with open(os.environ["RUNS"], "a") as file:
    file.write("x")
    if file.tell() > 5:
        sys.exit("started again and again")

def use(x, table: Shared):
    return float(table.sum()) + x

@parallel(backend="process", workers=2)
def marked(x, table: Shared):
    return use(x, table)

if __name__ == "__main__":
    table = np.ones(300_000)
    print(parallel(use).with_options(backend="process", workers=2).map(range(3), table=table))
    print(marked.map(range(3), table=table), sys.frozen)
"""
SAID = "[300000.0, 300001.0, 300002.0]\n"

# What the loader of a frozen program does: the hook runs before the script.
LOADER = """
import os, runpy, sys
sys.frozen, sys.executable = True, os.environ["APP"]
runpy.run_path(os.environ["HOOK"])
sys.path.insert(0, os.path.dirname(os.environ["SCRIPT"]))
runpy.run_path(os.environ["SCRIPT"], run_name="__main__")
"""


def ran(command: list[str], tmp_path: Path, **env: str) -> str:
    """What a program prints that ends well, with nothing on stderr; its script is run once."""
    runs = tmp_path / "runs"
    ended = subprocess.run(
        command,
        env={**os.environ, "RUNS": str(runs), **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ("", 0) == (ended.stderr, ended.returncode)
    assert "x" == runs.read_text()
    return ended.stdout


def test_program_with_the_hook_becomes_a_forkserver(tmp_path: Path) -> None:
    """The program is started as a forkserver once, and its script is not run there."""
    loader, script, app = tmp_path / "loader.py", tmp_path / "script.py", tmp_path / "app"
    loader.write_text(LOADER)
    script.write_text(SCRIPT)
    app.write_text(f"#!/bin/sh\nexec {sys.executable} {loader}\n")
    app.chmod(0o700)
    hook = Path(hook_directories()[0], "rthooks", "pyi_rth_sharedtask.py")
    said = ran([str(app)], tmp_path, APP=str(app), HOOK=str(hook), SCRIPT=str(script))
    assert f"{SAID}{SAID.strip()} True\n" == said


# Libraries that the environment of the tests has, and that others import where they are found.
LEFT_OUT = (
    *("IPython", "setuptools", "pkg_resources", "distutils", "tkinter", "pytest", "hypothesis"),
    *("torch", "pandas", "polars", "pyarrow", "scipy", "matplotlib", "ray", "dask", "sklearn"),
)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_one_file_of_pyinstaller(tmp_path: Path) -> None:
    """PyInstaller finds the hook by itself, and a program of one file has workers."""
    pytest.importorskip("PyInstaller", reason="pyinstaller is not installed")
    (tmp_path / "app.py").write_text(SCRIPT)
    left_out = [f"--exclude-module={name}" for name in LEFT_OUT]
    build = [sys.executable, "-m", "PyInstaller", "--onefile", "--log-level", "ERROR"]
    subprocess.run(
        [*build, *left_out, "app.py"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    said = ran([str(tmp_path / "dist" / "app")], tmp_path)
    assert f"{SAID}{SAID.strip()} True\n" == said
