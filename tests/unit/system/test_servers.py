"""Servers that fork in C."""

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from sharedtask.system import servers


def within(monkeypatch: pytest.MonkeyPatch, worker: int, master: int, processes: int) -> None:
    """What uWSGI has in ``sys.modules``."""
    uwsgi = SimpleNamespace(worker_id=lambda: worker, masterpid=lambda: master, numproc=processes)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)


@pytest.mark.parametrize(("master", "processes"), [(os.getpid, 1), (os.getpid, 2), (int, 2)])
def test_call_before_uwsgi_forks_is_warned_of(
    master: object, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the master, or where there is none, in the process that becomes the first worker."""
    assert callable(master)
    within(monkeypatch, 0, master(), processes)
    with pytest.warns(RuntimeWarning, match="--lazy-apps"):
        servers.warn_before_fork()


@pytest.mark.parametrize(
    ("worker", "master", "processes"),
    [(1, 1, 2), (1, 0, 2), (0, 1, 2), (0, 0, 1)],
    ids=["worker", "worker without a master", "mule", "one process"],
)
def test_process_of_uwsgi_that_does_not_fork(
    worker: int, master: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers, mules and a lone process are not warned."""
    within(monkeypatch, worker, master, processes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        servers.warn_before_fork()


PROGRAM = """
import os, sys, types
sys.modules["uwsgi"] = types.SimpleNamespace(worker_id=int, masterpid=os.getpid, numproc=2)
from sharedtask import parallel
print(parallel(abs).with_options(backend="thread").map([-1]))
"""


def test_first_call_of_a_master_is_the_one() -> None:
    """The program goes on; the warning names its line."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert ("[1]\n", True) == (ran.stdout, "<string>:5: RuntimeWarning: uWSGI forks" in ran.stderr)
