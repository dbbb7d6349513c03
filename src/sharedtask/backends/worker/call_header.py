"""The call header: all that a worker needs of a call besides the items, sent once per call."""

from __future__ import annotations

import functools
import pickle
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedtask.annotations import Role
from sharedtask.serialization import codec
from sharedtask.system.records import dataclass

from . import envelope

if TYPE_CHECKING:
    from sharedtask.options import Strict

    from .context_variables import Carried
    from .randomness import Randomness

# Mode, request slot, accumulator slot, length of the header, number of the call; see
# process/recycling.py for the rest.
PREFIX = struct.Struct("<BBHIQQIB")
# Format of a chunk's items, the first byte of its body.
SCALARS, TOGETHER, EACH = 0, 1, 2


class SharedParameter(NamedTuple):
    """A parameter whose value has a token; ``current`` if this call has verified it.

    A tuple, for it is a part of a key that is looked up at each call.
    """

    name: str
    token: int
    role: Role
    current: bool = True

    @property
    def private(self) -> bool:
        """Whether every item gets a value of its own."""
        return self.role is Role.COPY_ON_WRITE

    @property
    def is_readonly(self) -> bool:
        """Whether all items see the same value, which none may change."""
        return self.role is Role.SHARED


class _Fields(NamedTuple):
    """See ``CallHeader``."""

    task: str
    function: int
    shared: tuple[SharedParameter, ...]
    star: bool
    timed: bool
    fail_fast: bool  # ends the chunk at the first item that raises
    of_submits: bool  # its items are submits: each begins as a call does
    strict: Strict  # a change of a shared value is an error, or a warning
    bound_name: str | None
    blas_threads: int
    randomness: Randomness | None
    settings: int  # the token of the caller's settings: see process_settings.py
    cwd: str  # where relative paths start
    workers: int  # how many items of the call may run at once
    retries: bool  # failed items are tried again
    logs: bool = True  # what tasks log is handled in the caller
    traced: bool = False  # a chunk tells its times with its last results


class CallHeader(_Fields):
    """One call of a task. ``bound_name`` is "self" if the bound object itself is shared.

    A tuple, for it is hashed at each call: most are equal to the one before. A worker loads it
    once, and asks for what follows from it at each chunk.
    """

    @functools.cached_property
    def recipes(self) -> list[SharedParameter]:
        """What a worker makes or runs for itself before its first item."""
        return [shared for shared in self.shared if shared.role is Role.PER_WORKER]

    @functools.cached_property
    def readonly(self) -> list[str]:
        """The parameters whose arrays a task must not write."""
        return [shared.name for shared in self.shared if shared.is_readonly]

    @functools.cached_property
    def watched(self) -> list[SharedParameter]:
        """The parameters whose values are checked after chunks."""
        return [s for s in self.shared if s.is_readonly] if self.strict == "auto" else []

    @functools.cached_property
    def by_age(self) -> list[int]:
        """Tokens of function and shared values, first those that may be older than this call."""
        old = [shared.token for shared in self.shared if not shared.current]
        return [*old, self.function, *(s.token for s in self.shared if s.current)]


@functools.lru_cache(maxsize=256)
def dump_header(header: CallHeader) -> bytes:
    """The header as bytes."""
    return pickle.dumps(header, pickle.HIGHEST_PROTOCOL)


def load_header(data: bytes) -> CallHeader:
    """The header from ``dump_header``."""
    header: CallHeader = pickle.loads(data)
    return header


_MAX_LOADED = 64


class Headers:
    """The call headers that a worker has loaded, by their bytes."""

    def __init__(self) -> None:
        self._loaded: dict[bytes, CallHeader] = {}

    def get(self, data: bytes) -> CallHeader:
        """The call header from ``data``."""
        header = self._loaded.get(data)
        if header is None:
            if len(self._loaded) > _MAX_LOADED:  # the end of a call is not reported
                self._loaded.clear()
            header = self._loaded[data] = load_header(data)
        return header


@dataclass(frozen=True, slots=True)
class Constants:
    """The arguments of every item: ``function(*bound, item, *args, **kwargs)``.

    ``variables`` are the context variables that a worker sets for it.
    """

    bound: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    variables: tuple[Carried, ...] = ()

    def parts(self) -> tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function besides the item."""
        return self.bound, self.args, self.kwargs

    def sent(self) -> tuple[Any, ...]:
        """As a plain container, which pickles without a class; the call takes it apart."""
        return (*self.parts(), self.variables) if self.variables else self.parts()

    def named(self) -> dict[str, Any]:
        """Each by its name in messages."""
        by_place = {f"argument {k + 1}": value for k, value in enumerate(self.args)}
        by_name = {repr(name): value for name, value in self.kwargs.items()}
        return {**dict(zip(["'self'"], self.bound, strict=False)), **by_place, **by_name}


# Most calls have none; their envelope is recognised by its bytes and not unpickled.
NO_CONSTANTS = envelope.pack(codec.encode(Constants((), (), {}).sent()), frozen=True)
