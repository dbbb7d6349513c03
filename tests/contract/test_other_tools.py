"""Tools that look into a program, or change the standard library under it."""

import json
import selectors
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sharedtask.backends.process import event_loop

Run = Callable[..., str]

JOBS = """
def odd(x):
    if x % 2:
        return 1
    return 0

def never(x):
    return x
"""

COVERED = """
import jobs
from sharedtask import parallel
print(sum(parallel(jobs.odd).with_options(backend="process", workers=2).map(range(100))))
"""


def test_coverage_of_tasks(run: Run, tmp_path: Path) -> None:
    """Workers end as programs do, so what coverage has counted in them is written down."""
    pytest.importorskip("coverage", reason="coverage is not installed")
    (tmp_path / "jobs.py").write_text(JOBS)
    settings = tmp_path / "coveragerc"
    settings.write_text(f"[run]\nsource = {tmp_path}\nparallel = True\n")
    start = tmp_path / "start"
    start.mkdir()
    (start / "sitecustomize.py").write_text("import coverage\ncoverage.process_startup()\n")
    env = {"COVERAGE_PROCESS_START": str(settings), "PYTHONPATH": f"{start}:{tmp_path}"}
    assert "50\n" == run(COVERED, **env)
    for command in (["combine", "-q"], ["json", "-q", "-o", "told.json"]):
        subprocess.run(
            [sys.executable, "-m", "coverage", *command, f"--rcfile={settings}"],
            cwd=tmp_path,
            check=True,
        )
    told = json.loads((tmp_path / "told.json").read_text())
    assert [8] == told["files"]["jobs.py"]["missing_lines"]


EVENTLET = """
import eventlet
eventlet.monkey_patch()
import numpy as np
from sharedtask import Shared, parallel

def use(x, table: Shared):
    return float(table[x]) + x

def one(backend):
    return parallel(use).with_options(backend=backend, workers=2).map(range(4), np.ones(300_000))

found = list(eventlet.GreenPool().imap(one, ["process", "thread", "serial"]))
assert found == [[1.0, 2.0, 3.0, 4.0]] * 3, found
assert parallel(use).with_options(backend="process").submit(3, np.ones(5)).result() == 4.0
print("OK")
"""


def test_eventlet(run: Run) -> None:
    """After ``monkey_patch()`` each backend gives what it gave before."""
    pytest.importorskip("eventlet", reason="eventlet is not installed")
    assert "OK\n" == run(f"import warnings\nwarnings.simplefilter('ignore')\n{EVENTLET}")


def test_waiting_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library has taken poll(2) away, sockets are waited for by select(2)."""
    monkeypatch.delattr(selectors, "PollSelector")
    with event_loop._new_selector() as selector:
        assert isinstance(selector, selectors.SelectSelector)
