"""Items and constants, encoded by the caller for a worker."""

from __future__ import annotations

import functools
from itertools import chain
from typing import TYPE_CHECKING, Any

from sharedtask.backends.worker import call_header, context_variables, result_format
from sharedtask.backends.worker.envelope import SEGMENT_FROM, Envelope
from sharedtask.errors import SerializationError, StoreFullError
from sharedtask.memory.room import needed_for
from sharedtask.outcomes import RaisedError, remote_text
from sharedtask.serialization import apart, codec
from sharedtask.serialization.filled import why_object
from sharedtask.serialization.unpicklable import culprit, encodes
from sharedtask.store.captured import is_read_only

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sharedtask.memory.payload import Payload
    from sharedtask.store.captured import Captures

    from .base import Call
    from .leasing import Leases


def pack_items(items: Sequence[Any], pack: Callable[[Payload], Envelope]) -> tuple[int, Envelope]:
    """Encode items in one piece and return the format; pickling errors propagate."""
    data = result_format.dump_items(items)
    if data is not None and len(data) < SEGMENT_FROM:
        return call_header.SCALARS, Envelope(data)
    return call_header.TOGETHER, pack(codec.encode(items))


def packer_of(call: Call) -> Callable[..., tuple[int, Envelope]]:
    """How chunks of a call are encoded: see ``Call.apart``."""
    return functools.partial(_pack_apart, call.capture_from) if call.apart else pack_items


def _pack_apart(
    least: int | None, items: Sequence[Any], pack: Callable[[Payload], Envelope]
) -> tuple[int, Envelope]:
    """As ``pack_items``, but no two items get one object, which one of them may change."""
    if type(items) is range or _are_immutable(items):
        return pack_items(items, pack)
    is_common = functools.partial(is_read_only, least=least) if least is not None else _is_none
    return call_header.EACH, pack(codec.encode(apart.encoded(items, is_common)))


def _is_none(_: object) -> bool:
    return False


_NESTED = frozenset((tuple, frozenset))
_IMMUTABLE = result_format.FIXED_TYPES | _NESTED
_DEPTH = 4


def _are_immutable(items: Sequence[Any]) -> bool:
    """True for numbers, strings and tuples of such; says False of tuples that are nested deeply."""
    values = items
    for _ in range(_DEPTH):
        kinds = set(map(type, values))
        if not kinds <= _IMMUTABLE:
            return False
        if not kinds & _NESTED:
            return True
        values = list(chain.from_iterable(each for each in values if type(each) in _NESTED))
    return False


def pack_each(
    task: str, first: int, items: Sequence[Any], pack: Callable[[Payload], Envelope]
) -> tuple[int, Envelope]:
    """Encode every item on its own, so that the bad one can be named.

    An item that cannot be pickled is replaced by its error, which the worker sends back in place.
    """
    encoded = [_item_or_error(task, first + k, item) for k, item in enumerate(items)]
    return call_header.EACH, pack(codec.encode(([], encoded)))


def pack_small(
    task: str,
    first: int,
    items: Sequence[Any],
    pack: Callable[[Payload], Envelope],
    full: StoreFullError,
) -> tuple[int, Envelope]:
    """As ``pack_each``, but without the large items, which get ``full`` as their error.

    Raises:
        StoreFullError: The others do not fit either.
    """
    encoded = [_item_or_error(task, first + k, item) for k, item in enumerate(items)]
    for k, data in enumerate(encoded):
        if len(data) >= SEGMENT_FROM:
            problem = StoreFullError(f"{task}(): item {first + k} does not fit: {full}")
            encoded[k] = _encoded_error(problem, full)
    return call_header.EACH, pack(codec.encode(([], encoded)))


def _item_or_error(task: str, index: int, item: Any) -> Any:
    try:
        return codec.encode_inband(item)
    except Exception as error:  # noqa: BLE001  pickling runs user code
        where = culprit(item, f"item {index}")
        text = f"{task}(): item {index} cannot be pickled: {where}. ({error})"
        return _encoded_error(SerializationError(text), error)


def _encoded_error(problem: Exception, cause: Exception) -> tuple[Any, ...]:
    """The substitute for an item that is not sent: see ``RaisedError``."""
    raised = RaisedError.of(problem)
    return raised.class_name, raised.text, remote_text(cause), raised.pickled


def pack_first(call: Call, pack: Callable[[Payload], Envelope], leases: Leases) -> Envelope:
    """``pack_constants`` of a call that begins; if that fails, its leases are released."""
    try:
        constants = pack_constants(call, pack, leases.captures)
        if leases.captures.leases:
            leases.captures.note_names(call.unmarked())
    except BaseException:
        leases.release()
        raise
    return constants


def pack_constants(call: Call, pack: Callable[[Payload], Envelope], captures: Captures) -> Envelope:
    """Encode the arguments that every item of a call gets besides the shared values."""
    variables = context_variables.carried(call.task, call.function)
    if not (call.bound or call.args or call.kwargs or variables):
        return call_header.NO_CONSTANTS
    constants = call_header.Constants(call.bound, call.args, dict(call.kwargs), variables)
    with needed_for(call.task, lambda: f"{_largest(call)} does not fit"):
        return pack(_encoded(call, constants, captures))


def _encoded(call: Call, constants: call_header.Constants, captures: Captures) -> Payload:
    try:
        return captures.encoder()(constants.sent())
    except MemoryError:
        raise
    except Exception as error:
        why = next((why_object(v, n) for n, v in call.unmarked() if not encodes(v)), None)
        place = "" if why is None else f" {why}"
        msg = f"{call.task}(): an argument cannot be sent to a worker:{place} ({error})"
        raise SerializationError(msg) from error


def _largest(call: Call) -> str:
    """The name of the argument that takes the most room."""
    sizes = {name: codec.encode(value).nbytes for name, value in call.unmarked()}
    name = max(sizes, key=sizes.__getitem__)
    return repr(name) if name.isidentifier() else name
