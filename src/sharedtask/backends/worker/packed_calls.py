"""Packed calls: a function and its arguments as one string of bytes, the item of a submit.

    caller   packed(function, arguments) -> bytes          worker   run(bytes) -> the result

So calls of different functions wait in one queue, and are sent and run as its items.
"""

from __future__ import annotations

import marshal
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedtask.errors import InitializerError, SerializationError
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
    # It names no function of this module: each submit checks what it names.
    is_plain, length = _HEAD.unpack_from(data)
    at = _HEAD.size + length
    function = _received.function(data[_HEAD.size : at])
    args, kwargs = marshal.loads(data[at:]) if is_plain else _received.arguments(data[at:])
    del data
    return function(*args, **kwargs)


def initialize(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Call the initializer of an executor.

    Raises:
        InitializerError: It raised. The log has it, as in other executors.
    """
    try:
        function(*args)
    except Exception as error:
        import logging  # a worker has it only where it is needed

        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        name = getattr(function, "__qualname__", type(function).__qualname__)
        named = name.rpartition("<locals>.")[2]
        raise InitializerError(named, type(error).__name__, str(error)) from error


class _Loaded(NamedTuple):
    """A function, and the classes that came with it, in their states."""

    function: Callable[..., Any]
    classes: Sequence[tuple[type, classes.State]]


class _Received:
    """What packed calls bring: arguments, and functions, which are kept."""

    def __init__(self) -> None:
        self._loaded: dict[bytes, _Loaded] = {}

    def function(self, data: bytes) -> Callable[..., Any]:
        """The function, imported or rebuilt at its first use, as that of a task is."""
        found = self._loaded.get(data)
        if found is None:
            if len(self._loaded) >= _MOST_FUNCTIONS:
                self._loaded.clear()
            found = self._loaded[data] = _load(data)
        for cls, state in found.classes:  # others of them may have come since
            classes.renew(cls, state)
        return found.function

    def arguments(self, data: bytes) -> Sequence[Any]:
        """The arguments, as private as those of a task.

        Raises:
            SerializationError: They cannot be unpickled.
        """
        try:
            found: Sequence[Any] = _decoded(data)
        except BaseException as error:
            msg = f"an argument cannot be unpickled in a worker: {error!r}"
            raise SerializationError(msg) from error
        return found


_received = _Received()


def _load(data: bytes) -> _Loaded:
    with classes.collected_states() as states:
        value = _decoded(data)
    function = value.load() if isinstance(value, functions.NamedFunction) else value
    return _Loaded(function, states)


def _decoded(data: bytes) -> Any:
    received = envelope.unpack(memoryview(data), iter(()), private=True)
    return codec.decode(received.head, received.buffers)
