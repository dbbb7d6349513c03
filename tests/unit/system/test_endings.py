"""What the library ends when an object is freed, where something goes wrong with that."""

import os
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from sharedtask.system import finalizers
from sharedtask.system.descriptors import Descriptor
from sharedtask.system.finalizers import Known, Weak
from sharedtask.testing import until


def test_action_that_fails_is_reported_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread runs all actions: it outlives each of them."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *found: reported.append(found[1]))
    ran = threading.Event()

    def fail() -> None:
        raise OSError("no such descriptor")

    finalizers.post(fail)()
    finalizers.post(ran.set)()
    assert ran.wait(60)
    assert ["no such descriptor"] == [str(error) for error in reported]


class Owned:
    """What an action refers to."""

    def end(self) -> None:
        """Nothing is to do."""


def test_what_an_action_referred_to_is_freed() -> None:
    """The thread that waits for the next action keeps nothing of the last one."""
    owned = Owned()
    finalizers.post(owned.end)()
    freed = weakref.ref(owned)
    del owned
    until(lambda: freed() is None)


def test_forked_child_has_a_thread_of_its_own() -> None:
    """The fork takes place when the parent's thread is woken, and waits for the GIL."""
    ending = finalizers.Ending(owned := Owned(), int)
    finalizers.wait_until_idle()
    assert finalizers._thread.runs
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        finalizers.post(int)()
        began = time.monotonic()
        while time.monotonic() < began + 0.1:  # without giving the GIL back
            pass
        pid = os.fork()
    finally:
        sys.setswitchinterval(interval)
    if not pid:
        code = 1
        try:
            ran = threading.Event()
            finalizers.post(ran.set)()
            del owned  # from the parent
            until(lambda: ran.is_set() and id(ending) not in finalizers._waiting)
            code = 0
        finally:
            os._exit(code)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_action_runs_later_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next object that needs the thread has what is due done at once."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    finalizers.wait_until_idle()
    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr(finalizers._thread, "runs", False)
    due: SimpleQueue[Any] = SimpleQueue()  # the thread that there is waits at the other one
    monkeypatch.setattr(finalizers._thread, "due", due)
    monkeypatch.setattr(finalizers._Put, "__call__", staticmethod(due.put))
    ran: list[str] = []
    first = finalizers.post(lambda: ran.append("first"))
    first()
    assert [] == ran
    finalizers.post(lambda: ran.append("second"))
    assert ["first"] == ran


def test_descriptor_that_the_program_closes_at_that_moment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Between the look at a descriptor and its end the program may close it."""
    number = os.open(tmp_path, os.O_RDONLY)
    descriptor = Descriptor.of(number)

    def closed_since(_: Descriptor) -> bool:
        os.close(number)
        return True

    monkeypatch.setattr(Descriptor, "is_open", closed_since)
    descriptor.close()


def test_other_file_of_a_number_is_left_alone(tmp_path: Path) -> None:
    """The number of a file is unique on its device alone."""
    with open(tmp_path / "file", "wb") as file:
        found = Descriptor.of(file.fileno())
        assert found.is_open()
        for other in (replace(found, device=found.device + 1), replace(found, inode=0)):
            assert not other.is_open()
            other.close()
        assert found.is_open()


def test_tables_forget_what_is_freed() -> None:
    """An entry goes with its object, not at the next look."""
    owned = Owned()
    by_key: Weak[str, Owned] = Weak()
    known: Known[str] = Known()
    by_key.put("key", owned)
    known.put(owned, "data")
    assert (owned, "data", [owned]) == (by_key.get("key"), known.get(owned), by_key.values())
    del owned
    assert (None, []) == (by_key.get("key"), by_key.values())
    assert (0, 0) == (len(by_key._found), len(known._found))


def test_data_of_an_object_is_not_that_of_the_next_one_at_its_place() -> None:
    """Threads that run at once may meet an entry whose object was freed a moment ago."""
    known: Known[str] = Known()
    former, present = Owned(), Owned()
    known._found[id(present)] = weakref.ref(former), "former"
    assert known.get(present) is None
