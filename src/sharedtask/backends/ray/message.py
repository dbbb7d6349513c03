"""What travels to a Ray task and back, besides the boxes that Ray carries as arguments."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

# What became of a chunk.
RAN, UNREADABLE, MISSING, OTHER_VERSION = "ran", "unreadable", "missing", "other version"


class Message(NamedTuple):
    """A chunk for a worker.

    ``origin`` is the process whose tokens these are; ``small`` holds values that travel inside the
    message, as (token, bytes, layout). The boxes beside it belong to ``tokens``; there are none
    where the worker should have made something of those values already. Values under ``released``
    are needed no more. A chunk ends early after ``seconds``, where that is not 0.
    """

    version: str
    origin: bytes
    number: int
    first: int
    items: int
    mode: int
    head: bytes
    body: bytes
    small: tuple[tuple[int, bytes, Any], ...]
    tokens: tuple[int, ...]
    released: tuple[int, ...]
    seconds: float
    timeout: float


# Results of some items: mode, first item within the chunk, how many, ns, bytes, box.
Frame: TypeAlias = tuple[int, int, int, int, bytes, Any]


class Answer(NamedTuple):
    """What a worker returns for a chunk; ``worker`` is its name."""

    status: str
    frames: list[Frame]
    worker: str = ""
    text: str = ""
