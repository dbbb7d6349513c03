"""The ring of log records between a worker and its caller."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedtask.backends.worker import log_box
from sharedtask.backends.worker.log_box import LogWriter
from sharedtask.backends.worker.status_page import LOG_SIZE, Word


def ring(**started: int) -> tuple[memoryview, memoryview]:
    """The words and the memory of a worker that has written, and had read, so many bytes."""
    words = memoryview(bytearray(8 * 64)).cast("Q")
    words[Word.LOGGED] = words[Word.LOG_READ] = started.get("at", 0)
    return words, memoryview(bytearray(LOG_SIZE))


@given(
    st.integers(0, 3 * LOG_SIZE),
    st.lists(st.lists(st.binary(max_size=60_000), max_size=6), max_size=6),
)
def test_what_is_written_is_read(at: int, rounds: list[list[bytes]]) -> None:
    """Records arrive whole and in order, with their chunk, wherever the ring begins again."""
    words, memory = ring(at=at)
    writer = LogWriter(words, memory)
    for number, records in enumerate(rounds):
        words[Word.CHUNK] = number
        for record in records:
            writer.write(record)
        assert bool(records) == log_box.has_news(words)
        assert [(number, record) for record in records] == log_box.read(words, memory)
        assert not log_box.has_news(words)
    assert 0 == words[Word.LOG_DROPPED]


def test_what_finds_no_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full ring keeps what it has; what comes then is counted, and later ones are written."""
    monkeypatch.setattr(log_box, "_MOST_SECONDS", 0.01)
    words, memory = ring()
    writer = LogWriter(words, memory)
    for _ in range(20):
        writer.write(b"x" * 100_000)
    kept = log_box.read(words, memory)
    assert 20 == len(kept) + words[Word.LOG_DROPPED]
    assert 5 == len(kept)
    writer.write(b"later")
    assert [(0, b"later")] == log_box.read(words, memory)


def test_reader_is_called_when_half_is_taken() -> None:
    """A caller that reads when it is asked to has room for all."""
    words, memory = ring()
    found: list[Any] = []
    writer = LogWriter(words, memory, lambda: found.extend(log_box.read(words, memory)))
    for k in range(50):
        writer.write(b"%d" % k + b"x" * 50_000)
    found += log_box.read(words, memory)
    assert [b"%d" % k + b"x" * 50_000 for k in range(50)] == [data for _, data in found]


def test_record_in_the_middle_of_another_follows_it() -> None:
    """A signal handler that logs while its thread writes a record is heard after it."""
    words, memory = ring()
    written: list[int] = []

    def interrupted() -> None:
        if not written:
            written.append(1)
            writer.write(b"inner")

    writer = LogWriter(words, memory, interrupted)
    large = b"x" * (LOG_SIZE // 4)
    for _ in range(3):
        writer.write(large)
    assert [large, large, b"inner", large] == [data for _, data in log_box.read(words, memory)]


@pytest.mark.parametrize(("end", "start"), [(1 << 63, 0), (5, 9), (LOG_SIZE + 1, 0), (100, 0)])
def test_overwritten_memory_is_left_out(end: int, start: int) -> None:
    """Numbers that a crash has overwritten lead to no record, and to no error."""
    words, memory = ring()
    memory[:16] = b"\xff" * 16
    words[Word.LOGGED], words[Word.LOG_READ] = end, start
    assert [] == log_box.read(words, memory)
    assert not log_box.has_news(words)
