"""Packs a call of any function into an item, which may wait in a queue: see ``packed_calls``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.backends.worker import envelope, packed_calls
from sharedtask.serialization import codec, functions, unseen_writes
from sharedtask.serialization.composition import composition_of, same
from sharedtask.store.captured import is_read_only
from sharedtask.system import interrupts
from sharedtask.system.finalizers import Known
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from sharedtask.serialization.composition import Composition
    from sharedtask.serialization.functions import NamedFunction, Portable

# Larger ones have a session of their own: then what they have is not copied again on its way.
_MOST_BYTES = 1 << 17


class _ToShareError(Exception):
    """Raised within a pickling: an array is to be shared, which an item cannot do."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The encoding of a function, and what it was when it was made."""

    data: bytes
    named: NamedFunction | None
    composition: Composition | None

    def is_of(self, form: Portable) -> bool:
        """Whether the function is still the same."""
        if self.named is not None:
            return form.value is self.named
        return same(self.composition, form.composition)


_known: Known[_Encoded] = Known()


def pack(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    shared_from: int | None,
) -> bytes | None:
    """The call as an item; None if it is large, or has an array to share.

    Raises:
        Exception: What pickling raises, which runs user code.
    """
    refer = _refer(shared_from)
    try:
        encoded = _encoded(name, function, refer)
        arguments = packed_calls.plain(args, kwargs)
        given = codec.encode((args, dict(kwargs)), refer=refer) if arguments is None else arguments
    except _ToShareError:
        return None
    size = len(given) if isinstance(given, bytes) else given.nbytes
    return packed_calls.packed(encoded, given) if size + len(encoded) <= _MOST_BYTES else None


def _refer(shared_from: int | None) -> Callable[[npt.NDArray[Any]], Any] | None:
    if shared_from is None:
        return None

    def refer(array: npt.NDArray[Any]) -> None:
        if is_read_only(array, shared_from):
            raise _ToShareError

    return refer


def _encoded(
    name: str, function: Callable[..., Any], refer: Callable[[npt.NDArray[Any]], Any] | None
) -> bytes:
    """The function as bytes: encoded again only if it is another than at its last call."""
    form = functions.portable(function)
    known = _known.get(function)
    if known is not None and known.is_of(form):
        return known.data
    payload = codec.encode(form.value, by_value=form.by_value, refer=refer)
    if known is None or name in unseen_writes.failed:
        interrupts.exposed(unseen_writes.warn, name, function)
    named = form.value if isinstance(form.value, functions.NamedFunction) else None
    made = envelope.pack_inline(payload).data
    try:
        _known.put(function, _Encoded(made, named, composition_of(payload.functions, function)))
    except TypeError:  # it cannot be referred to weakly
        return made
    return made
