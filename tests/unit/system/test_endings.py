"""What the library ends when an object is freed, where something goes wrong with that."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sharedtask.system import finalizers
from sharedtask.system.descriptors import Descriptor


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
