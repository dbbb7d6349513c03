"""The messages to a worker and back, besides the payloads that travel next to them."""

from __future__ import annotations

import marshal
from typing import Any, NamedTuple, TypeAlias

from sharedtask.version import VERSION

# Outcome of a chunk.
RAN, UNREADABLE, MISSING, OTHER_VERSION = "ran", "unreadable", "missing", "other version"


class Message(NamedTuple):
    """A chunk for a worker.

    ``origin`` is the process whose tokens these are; ``small`` contains values inside the message,
    as (token, bytes, layout). The payloads after the message belong to ``tokens``; there are none
    if the worker should have decoded those values already, except those under ``stored``. Values
    under ``released`` are not needed any more. The first ``attachments`` payloads contain the large
    parts of constants and items. A chunk ends early after ``seconds``, unless that is 0. ``call``
    is the number of the call.
    """

    version: str
    origin: bytes
    number: int
    first: int
    items: int
    mode: int
    header: bytes
    body: bytes
    small: tuple[tuple[int, bytes, Any], ...]
    tokens: tuple[int, ...]
    stored: tuple[int, ...]
    released: tuple[int, ...]
    attachments: int
    seconds: float
    timeout: float
    call: int

    def dump(self) -> bytes:
        """As bytes, which the library that carries them does not pickle again."""
        return marshal.dumps(tuple(self))

    @classmethod
    def load(cls, data: bytes) -> Message | None:
        """The message from ``dump``; None if another version wrote it."""
        fields = marshal.loads(data)
        return cls(*fields) if fields[0] == VERSION else None


# A chunk returns so many records of what its tasks have logged.
MOST_LOGGED = 10_000

# Results of some items: mode, first item within the chunk, how many, ns, bytes, box.
Frame: TypeAlias = tuple[int, int, int, int, bytes, Any]


class Answer(NamedTuple):
    """The result of a chunk; ``worker`` is the worker's name, ``added`` a box of partial results.

    ``change`` has the fields of a ``Change``. ``logs`` are records that its tasks have logged, and
    ``dropped`` is how many more there were. ``trace``: see ``Report``.
    """

    status: str
    frames: list[Frame]
    worker: str = ""
    text: str = ""
    added: Any = None
    change: tuple[Any, ...] | None = None
    logs: tuple[bytes, ...] = ()
    dropped: int = 0
    trace: bytes = b""

    def dump(self) -> Any:
        """As bytes if there is no large part."""
        fields: Any = tuple(self)
        if self.added is not None or any(frame[5] is not None for frame in self.frames):
            return fields
        return marshal.dumps(fields)

    @classmethod
    def load(cls, data: Any) -> Answer:
        """The answer from ``dump``."""
        return cls(*(marshal.loads(data) if isinstance(data, bytes) else data))
