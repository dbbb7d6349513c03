"""How many waiting items go out together: many quick ones, and no slow one behind another."""

from __future__ import annotations

# Items that take longer than this are sent one by one.
QUICK_SECONDS = 0.0005
# A chunk of quick items takes about as long as this, and has no more items than that.
CHUNK_SECONDS, LARGEST = 0.002, 256
# Less work than this waits for the chunk in flight, instead of going to another worker.
WORTH_SECONDS = 0.0003
# Chunks in flight for each worker: one that runs, and one that waits in its socket.
AHEAD = 2
# While submits follow each other quickly, a chunk goes out no sooner than this after the last one.
GATHER_SECONDS = 0.003


def gathers(waiting: int, flying: int, since: float, seconds: float | None) -> bool:
    """Whether quick items wait for others: the last chunk was sent ``since`` seconds ago.

    Not a single one with no chunk in flight: its caller may wait for it before the next.
    """
    if not flying and waiting <= 1:
        return False
    if seconds is None or seconds > QUICK_SECONDS or since >= GATHER_SECONDS:
        return False
    return 0 < waiting < LARGEST and waiting * seconds < CHUNK_SECONDS


def next_size(waiting: int, flying: int, workers: int, seconds: float | None) -> int:
    """How many items the next chunk has; 0 if they are to wait for a report.

    ``flying`` chunks are in flight, and an item takes ``seconds``, None if that is unknown.
    """
    if not waiting:
        return 0
    if seconds is None:
        return int(flying < workers)
    if seconds > QUICK_SECONDS:
        return int(flying < workers * AHEAD)
    is_much = waiting >= LARGEST or waiting * seconds >= WORTH_SECONDS
    if flying and not (is_much and flying < workers * AHEAD):
        return 0
    most = min(int(CHUNK_SECONDS / max(seconds, 1e-6)), LARGEST)
    return min(waiting, max(most, 1))
