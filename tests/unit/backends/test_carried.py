"""The dispatcher of chunks that another library carries, beside a library that never answers."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from sharedtask.backends.carried import dispatcher
from sharedtask.backends.carried.dispatcher import Dispatcher
from sharedtask.testing import until


class Silent(Dispatcher[Any]):
    """Notes which chunks are to end, and how."""

    def __init__(self) -> None:
        self.ends: list[tuple[bool, float]] = []
        super().__init__("silent", lambda: False)

    def _start(self, work_item: Any) -> Any:
        del work_item
        return Future[bytes]()

    def _failed(self, work_item: Any, error: BaseException) -> None:
        raise NotImplementedError

    def _end_chunks(self, work_items: Sequence[Any], *, kill: bool) -> None:
        assert work_items
        self.ends.append((kill, time.monotonic()))

    def _translated(self, work_item: Any, error: BaseException) -> BaseException:
        del work_item
        return error


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    """It looks at all chunks once in an hour."""
    monkeypatch.setattr(dispatcher, "_TICK_SECONDS", 3600.0)
    made = Silent()
    yield made
    made.end("over")


def a_call() -> Any:
    return SimpleNamespace(
        closed=False,
        team=object(),
        limit=lambda: 1,
        sink=SimpleNamespace(begun=lambda _: True),
        leases=SimpleNamespace(release=lambda: None),
        report=lambda _: None,
    )


def a_chunk(call: Any) -> Any:
    return SimpleNamespace(
        call=call,
        number=1,
        chunk=SimpleNamespace(number=1),
        give_up_at=None,
        is_stopped=False,
        all_failed=lambda _: None,
    )


@pytest.mark.parametrize("kill", [False, True])
def test_given_up_chunk_ends_when_it_is_due(silent: Silent, kill: bool) -> None:
    """It is asked to end, then killed, and killed again while it goes on: no look is waited for."""
    call = a_call()
    silent.submit(a_chunk(call))
    until(lambda: silent._flying)
    silent.close_call(call, kill=kill)
    until(lambda: len(silent.ends) > 2)
    assert [kill, True, True] == [killed for killed, _ in silent.ends[:3]]
    assert silent.ends[1][1] - silent.ends[0][1] >= dispatcher._GRACE_SECONDS


def test_call_without_chunks_leaves_nothing_to_end(silent: Silent) -> None:
    """Nothing is due then, and the thread rests."""
    call = a_call()
    silent.submit(a_chunk(call))
    until(lambda: silent._flying)
    silent.close_call(a_call())
    silent.wake()
    until(silent._inbox.empty)
    assert silent._end_at == float("inf")
    assert [] == silent.ends
