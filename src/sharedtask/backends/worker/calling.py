"""From the body of a CHUNK frame to calls of the function."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sharedtask.errors import SerializationError
from sharedtask.outcomes import RaisedError
from sharedtask.serialization import apart, codec
from sharedtask.system.records import dataclass
from sharedtask.writing import roles

from . import call_header, envelope, result_format
from .refusals import readonly_advice
from .status_page import Phase, Word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sharedtask.writing.handler import Part

    from .mutation_guard import Guard


def constants(
    header: call_header.CallHeader, data: memoryview, attachments: Iterator[Any]
) -> tuple[call_header.Constants, memoryview]:
    """The arguments of every item, decoded for each chunk, and the rest of the body: items."""
    none = call_header.NO_CONSTANTS.data
    if bytes(data[: len(none)]) == none:
        return call_header.Constants((), (), {}), data[len(none) :]
    received = envelope.unpack(data, attachments, private=True)
    try:
        found = call_header.Constants(*codec.decode(received.head, received.buffers))
    except BaseException as error:
        msg = f"{header.task}(): an argument cannot be unpickled in a worker: {error!r}"
        raise SerializationError(msg) from error
    return found, data[received.end :]


def unpacked(mode: int, data: memoryview, attachments: Iterator[Any]) -> Sequence[Any]:
    """The items of a chunk; unpickling errors propagate."""
    if mode == call_header.SCALARS:
        return result_format.load_items(data)
    received = envelope.unpack(data, attachments, private=False)
    items: Any = codec.decode(received.head, received.buffers)
    return apart.opened(*items) if mode == call_header.EACH else items


def call_unpacked(
    call: Callable[[Any], Any],
    words: memoryview,
    header: call_header.CallHeader,
    item: tuple[int, Any],
) -> Any:
    """Unpickle one item, then call the function for it."""
    return call(_unpacked_one(words, header, *item))


def _unpacked_one(words: memoryview, header: call_header.CallHeader, index: int, data: Any) -> Any:
    if isinstance(data, tuple):  # the caller could not pickle this one
        error = RaisedError(*data).unpacked()
        raise SerializationError(data[1]) if error is None else error
    words[Word.PHASE] = Phase.UNPACKING
    try:
        return data.decode()
    except BaseException as error:
        raise unreadable(header, index, error) from error
    finally:
        words[Word.PHASE] = Phase.RUNNING


def unreadable(
    header: call_header.CallHeader, index: int, error: BaseException
) -> SerializationError:
    """The error of an item that cannot be unpickled."""
    msg = f"{header.task}(): item {index} cannot be unpickled in a worker: {error!r}"
    problem = SerializationError(msg)
    problem.__cause__ = error
    return problem


@dataclass(frozen=True, slots=True)
class LoadedCall:
    """A call that is loaded in a worker: calls the function for an item.

    ``called`` is the function with its checks. ``renew`` makes the values that each item gets for
    itself; ``parts`` are those of the roles that tasks write; ``guard`` watches shared values, if
    requested.
    """

    header: call_header.CallHeader
    function: Callable[..., Any]
    called: Callable[..., Any]
    constants: call_header.Constants
    renew: Callable[[Any], dict[str, Any]] | None
    parts: Sequence[Part]
    items: memoryview
    guard: Guard | None

    def advised(self, error: BaseException) -> BaseException:
        """The error of an item, with advice if it wrote to read-only memory."""
        header = self.header
        return readonly_advice(
            error, header.task, header.readonly, self.function, self.constants.named
        )

    @property
    def call(self) -> Callable[[Any], Any]:
        """A function of the item alone, as direct as the case allows."""
        bound, args, kwargs = self.constants.parts()
        if self.renew is not None:
            call: Callable[[Any], Any] = self._call_renewed
        elif self.header.star or args:
            call = self._call_general
        elif bound or kwargs:
            call = functools.partial(self.called, *bound, **kwargs)
        else:
            call = self.called
        return roles.around(self.parts, call) if self.parts else call

    def _call_general(self, item: Any) -> Any:
        bound, args, kwargs = self.constants.parts()
        items = item if self.header.star else (item,)
        return self.called(*bound, *items, *args, **kwargs)

    def _call_renewed(self, item: Any) -> Any:
        assert self.renew is not None  # noqa: S101  chosen above
        bound, args, kwargs = self.constants.parts()
        own = self.renew(item)
        if self.header.bound_name in own:
            bound = (own.pop(self.header.bound_name),)
        items = item if self.header.star else (item,)
        return self.called(*bound, *items, *args, **{**kwargs, **own})
