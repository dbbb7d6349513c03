"""What a worker must know of a call besides the items, said once per call."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any

PREFIX = struct.Struct("<BBI")
# How the items of a chunk are written, the first byte of its body.
SCALARS, TOGETHER, EACH = 0, 1, 2


@dataclass(frozen=True, slots=True)
class SharedParameter:
    """A parameter whose value stands under a token; ``private`` gives every item its own."""

    name: str
    token: int
    private: bool


@dataclass(frozen=True, slots=True)
class CallHead:
    """One call of a task. ``bound_name`` is "self" where the bound object itself is shared."""

    task: str
    function: int
    shared: tuple[SharedParameter, ...]
    star: bool
    timed: bool
    stops: bool  # at the first item that raises
    bound_name: str | None
    blas_threads: int
    path: tuple[str, ...]

    def dump(self) -> bytes:
        """As bytes, the same for every chunk of the call."""
        fields = (
            self.task,
            self.function,
            [(s.name, s.token, s.private) for s in self.shared],
            self.star,
            self.timed,
            self.stops,
            self.bound_name,
            self.blas_threads,
            self.path,
        )
        return pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def load(cls, data: bytes | memoryview) -> CallHead:
        """What ``dump`` wrote."""
        task, function, shared, *rest = pickle.loads(data)
        return cls(task, function, tuple(SharedParameter(*s) for s in shared), *rest)


@dataclass(frozen=True, slots=True)
class Constants:
    """The values that every item gets besides itself: ``function(*bound, item, *args, **kwargs)``."""

    bound: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def parts(self) -> tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any]]:
        """As plain containers, which pickle without a class."""
        return self.bound, self.args, self.kwargs
