"""Work that is put in the background."""

import threading
from typing import Any

import pytest

from sharedtask.system.background import Background


def test_work_is_done_at_once_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some versions of Python start none while the program ends: results still arrive."""

    def refuse(_thread: Any) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    done: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    background = Background()
    background.put(lambda: done.append(threading.get_ident()))
    assert [threading.get_ident()] == done
