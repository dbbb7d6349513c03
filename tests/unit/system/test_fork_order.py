"""The order of what the library does around a fork."""

import os
from typing import Any

import pytest

from sharedtask.system import forks
from sharedtask.system.forks import Step


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of the library that have registered themselves are left out."""
    monkeypatch.setattr(forks, "_before", [])
    monkeypatch.setattr(forks, "_calls", {})
    monkeypatch.setattr(forks.Known, "pid", forks.Known.pid)


def test_calls_before_a_fork_are_in_the_order_of_their_registration() -> None:
    """A part that relies on another one is imported, and so registers itself, after it."""
    ran: list[int] = []
    for number in range(3):
        forks.before(lambda number=number: ran.append(number))  # type: ignore[misc]
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    assert [0, 1, 2] == ran


def test_steps_of_a_child_are_in_their_order() -> None:
    """Within a step, calls are in the order of their registration."""
    ran: list[str] = []
    for step in (Step.HELD, Step.LOCKS, Step.HELD, Step.SIGNALS):
        forks.in_child(step, lambda step=step: ran.append(f"{step.name} {len(ran)}"))  # type: ignore[misc]
    forks.enter_child()
    assert ["SIGNALS 0", "LOCKS 1", "HELD 2", "HELD 3"] == ran


def test_all_steps_are_taken_whatever_one_raises() -> None:
    """The first error is raised at the end, for the interpreter to print."""
    ran: list[str] = []

    def fail(text: str) -> None:
        ran.append(text)
        raise OSError(text)

    forks.in_child(Step.LOCKS, lambda: fail("first"))
    forks.in_child(Step.HELD, lambda: fail("second"))
    forks.in_child(Step.OUTCOMES, lambda: ran.append("last"))
    with pytest.raises(OSError, match="first"):
        forks.enter_child()
    assert ["first", "second", "last"] == ran


def test_process_that_c_has_forked_is_known_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that Python has forked has taken the steps, and is known."""
    monkeypatch.setattr(forks.Known, "pid", 1)
    forks.enter_child()
    assert os.getpid() == forks.Known.pid


class Heir:
    """It holds something of the parent."""

    def __init__(self, ran: list[Any]) -> None:
        self._ran = ran

    def abandon(self) -> None:
        self._ran.append("abandoned")


def test_object_that_was_freed_has_nothing_to_abandon() -> None:
    """Its entry goes with it, so that a program that makes many has no more of them."""
    ran: list[Any] = []
    heir = Heir(ran)
    forks.abandon_in_child(heir)
    forks.enter_child()
    assert ["abandoned"] == ran
    del heir
    assert {} == forks._calls
    forks.enter_child()
    assert ["abandoned"] == ran
