"""The caller's end of the way out: items and constants, encoded for a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.errors import SerializationError
from sharedtask.outcomes import RaisedError, remote_text
from sharedtask.sharing import codec
from sharedtask.sharing.culprit import culprit, encodes

from . import calls, results
from .parcels import SEGMENT_FROM, Parcel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sharedtask.backends.base import Call
    from sharedtask.sharing.payload import Payload

    from .captured import Captures


def pack_items(items: Sequence[Any], pack: Callable[[Payload], Parcel]) -> tuple[int, Parcel]:
    """Encode items in one piece and say how; raises what pickling one of them raises."""
    data = results.dump_items(items)
    if data is not None and len(data) < SEGMENT_FROM:
        return calls.SCALARS, Parcel(data)
    return calls.TOGETHER, pack(codec.encode(items))


def pack_each(
    task: str, first: int, items: Sequence[Any], pack: Callable[[Payload], Parcel]
) -> tuple[int, Parcel]:
    """Encode every item on its own, so that a bad one can be told from its neighbours.

    An item that cannot be pickled is replaced by its error, which the worker sends back in place.
    """
    encoded = [_item_or_error(task, first + k, item) for k, item in enumerate(items)]
    return calls.EACH, pack(codec.encode(encoded))


def _item_or_error(task: str, index: int, item: Any) -> Any:
    try:
        return codec.encode_inband(item)
    except Exception as error:  # noqa: BLE001  pickling runs user code
        where = culprit(item, f"item {index}")
        text = f"{task}(): item {index} cannot be pickled: {where}. ({error})"
        raised = RaisedError.of(SerializationError(text))
        return raised.class_name, raised.text, remote_text(error), raised.pickled


def pack_constants(call: Call, pack: Callable[[Payload], Parcel], captures: Captures) -> Parcel:
    """Encode what every item of a call gets besides the shared values."""
    if not (call.bound or call.args or call.kwargs):
        return calls.NO_CONSTANTS
    constants = calls.Constants(call.bound, call.args, dict(call.kwargs))
    try:
        payload = captures.encoder(private=True)(constants.parts())
    except Exception as error:
        where = next((culprit(v, n) for n, v in _named(call) if not encodes(v)), str(error))
        msg = f"{call.task}(): an argument cannot be sent to a worker: {where}. ({error})"
        raise SerializationError(msg) from error
    return pack(payload)


def _named(call: Call) -> Iterator[tuple[str, Any]]:
    yield from call.kwargs.items()
    yield from ((f"argument {k + 1}", v) for k, v in enumerate(call.args))
    yield from (("self", value) for value in call.bound)
