"""The library on disk is replaced while a program runs that has imported it."""

from __future__ import annotations

from typing import Any

from sharedtask.backends.process import worker_death
from sharedtask.backends.process.worker_death import Deaths
from sharedtask.backends.worker.status_page import Phase, Word

SCRIPT = """
from sharedtask import WorkerDiedError, parallel
from sharedtask.backends.process import child

child.Birth.__dataclass_fields__["version"].default = "0.0.1"  # what this program has imported

@parallel(workers=2, backend="process")
def square(x):
    return x * x

if __name__ == "__main__":
    try:
        square.map(range(4))
    except WorkerDiedError as error:
        print("died", "before its first item" in str(error))
        print("because", "imported 0.0.1: start it again" in str(error.__cause__))
"""


def test_worker_of_another_version_says_so(script: Any) -> None:
    """The call ends with an error, whose cause has the versions and the cure."""
    ran = script(SCRIPT)
    assert 0 == ran.end(30)
    assert "died True" in ran.out
    assert "because True" in ran.out
    assert "" == ran.err


class _Page:
    """What a page says that is laid out in another way: it names no chunk that is known."""

    words = {Word.PHASE: Phase.IDLE}  # noqa: RUF012

    def crash(self) -> str:
        return ""


class _Worker:
    status_page = _Page()
    ran, kill_reason, exit, pid = 1, None, (1, None, 1), 1

    def __init__(self, work_item: Any) -> None:
        self.work_items = [work_item]

    def in_hand(self) -> int:
        return 12345


class _Ticket:
    number, cancelled, restarts = 1, False, 0
    call = chunk = None

    def all_failed(self, error_at: Any) -> Any:
        return "failed"


def test_chunk_does_not_go_round_for_ever() -> None:
    """A chunk that worker after worker dies with, however it looks, fails in the end."""
    ends: Any = Deaths().ends
    work_item = _Ticket()
    for _ in range(worker_death._MAX_RESTARTS):
        (end,) = ends(_Worker(work_item))
        assert work_item is end.again
    (end,) = ends(_Worker(work_item))
    assert ("failed",) == end.reports
    assert end.again is None
