"""The barrier between caller and worker, of which tests on x86 cannot see whether it is one."""

from typing import Any

import pytest

from sharedtask.backends.worker import log_box, status_page
from sharedtask.backends.worker.status_page import Word


def test_a_fence_takes_its_lock_again_after_giving_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a release followed by an acquisition orders a store before a load on every machine."""
    told: list[str] = []

    class Lock:
        def __enter__(self) -> None:
            told.append("take")

        def __exit__(self, *_: object) -> None:
            told.append("give back")

    monkeypatch.setattr(status_page, "_fence", Lock())
    status_page.fence()
    assert ["take", "give back"] * 2 == told


def test_records_are_read_before_their_room_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are read, then a fence, then the word that lets the worker overwrite them."""
    words: Any = memoryview(bytearray(8 * 32)).cast("Q")
    words[Word.LOGGED] = 24
    seen: list[int] = []
    monkeypatch.setattr(log_box, "fence", lambda: seen.append(words[Word.LOG_READ]))
    log_box.read(words, memoryview(bytearray(status_page.LOG_SIZE)))
    assert [0, 0] == seen
    assert 24 == words[Word.LOG_READ]
