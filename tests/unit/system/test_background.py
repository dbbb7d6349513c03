"""Work that is put in the background, where no thread can be started."""

import threading
from typing import Any

import pytest

from sharedtask.system.background import Background


def refuse(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def start(_thread: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_limit_of_threads_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of the user in this thread could wait for what this one delivers."""
    refuse(monkeypatch, "can't start new thread")
    with pytest.raises(RuntimeError, match="start new thread"):
        Background().put(pytest.fail)


def test_work_is_done_at_once_while_the_program_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of Python start no thread then: results still arrive."""
    done: list[int] = []
    refuse(monkeypatch, "can't create new thread at interpreter shutdown")
    background = Background()
    background.put(lambda: done.append(threading.get_ident()))
    assert [threading.get_ident()] == done
