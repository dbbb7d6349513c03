"""Packed calls: a function and its arguments as one string of bytes, the item of a submit.

    caller   packed(function, arguments) -> bytes          worker   run(bytes) -> the result

So calls of different functions wait in one queue, and are sent and run as its items.
"""

from __future__ import annotations

import marshal
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedtask.errors import SerializationError
from sharedtask.serialization import classes, codec, functions

from . import envelope
from .result_format import PLAIN_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sharedtask.memory.payload import Payload

# Whether marshal has written the arguments, and the length of the function.
_HEAD = struct.Struct("<?I")
_MOST_FUNCTIONS = 64


def plain(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | None:
    """Arguments that are numbers, strings and the like, as bytes; None for others."""
    given = (*args, *kwargs.values()) if kwargs else args
    if not PLAIN_TYPES.issuperset(map(type, given)):
        return None
    return marshal.dumps((args, dict(kwargs)))


def packed(function: bytes, arguments: bytes | Payload) -> bytes:
    """A call as bytes. The arguments are from ``plain``, or from the codec."""
    if isinstance(arguments, bytes):
        return b"".join((_HEAD.pack(True, len(function)), function, arguments))
    data = envelope.pack_inline(arguments).data
    return b"".join((_HEAD.pack(False, len(function)), function, data))


# -------------------------------------------------------------------------------- in a worker


def run(data: bytes) -> Any:
    """Run a packed call."""
    is_plain, length = _HEAD.unpack_from(data)
    at = _HEAD.size + length
    function = _function(data[_HEAD.size : at])
    args, kwargs = marshal.loads(data[at:]) if is_plain else _arguments(memoryview(data)[at:])
    del data
    return function(*args, **kwargs)


def _arguments(data: memoryview) -> Sequence[Any]:
    try:
        found: Sequence[Any] = _decoded(data)
    except BaseException as error:
        msg = f"an argument cannot be unpickled in a worker: {error!r}"
        raise SerializationError(msg) from error
    return found


def _decoded(data: memoryview) -> Any:
    received = envelope.unpack(data, iter(()), private=True)
    return codec.decode(received.head, received.buffers)


class _Loaded(NamedTuple):
    """A function, and the classes that came with it, in their states."""

    function: Callable[..., Any]
    classes: Sequence[tuple[type, classes.State]]


_loaded: dict[bytes, _Loaded] = {}


def _function(data: bytes) -> Callable[..., Any]:
    """The function, imported or rebuilt at its first use, as that of a task is."""
    found = _loaded.get(data)
    if found is None:
        if len(_loaded) >= _MOST_FUNCTIONS:
            _loaded.clear()
        found = _loaded[data] = _load(data)
    for cls, state in found.classes:  # others of them may have come since
        classes.renew(cls, state)
    return found.function


def _load(data: bytes) -> _Loaded:
    with classes.collected_states() as notes:
        value = _decoded(memoryview(data))
    function = value.load() if isinstance(value, functions.NamedFunction) else value
    return _Loaded(function, notes)
