"""Large unmarked arrays: captured by the function, or in the object that it is bound to.

Pickled with the function or with the arguments, they would be stored again at each call and
whenever anything else in them changes. So each is published by itself, under the same rules as a
shared value, and a reference replaces it in the pickle.

    encode   array -> lease -> (fetch, token)          decode   (fetch, token) -> array, read-only
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

from sharedtask.memory import locations
from sharedtask.serialization import codec
from sharedtask.system import interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from sharedtask.memory.payload import Payload

    from .cache import Lease, ShareCache, Verify
    from .decoded import Values


def is_read_only(array: npt.NDArray[Any], least: int) -> bool:
    """Whether an unmarked array is read-only in tasks, whose writes the caller would not see.

    That holds for an array of ``least`` bytes, which is used in place, and for one that was created
    in shared memory.
    """
    if array.dtype.hasobject:
        return False
    return array.nbytes >= least or (array.base is not None and locations.find(array) is not None)


class Captures:
    """The captured arrays of one call, leased as they are met.

    Args:
        cache: The cache in which they are published.
        least: Arrays of at least so many bytes; None for none.
        verify: How a change since their publication is detected.
        encode: How an array is encoded.
    """

    def __init__(
        self,
        cache: ShareCache,
        least: int | None,
        *,
        verify: Verify,
        encode: Callable[[Any], Payload],
    ) -> None:
        self._cache, self._least = cache, least
        self._verify: Verify = verify
        self._encode = encode
        self.leases: list[Lease] = []
        self.names: list[str] = []
        self._found: dict[int, tuple[weakref.ref[npt.NDArray[Any]], Lease]] = {}

    def arrays(self) -> list[tuple[Lease, Callable[[], Any]]]:
        """The leases, each with a function that returns its array."""
        return [(lease, reference) for reference, lease in self._found.values()]

    def lease_of(self, array: npt.NDArray[Any]) -> Lease | None:
        """The lease of an array, if it was leased."""
        known = self._found.get(id(array))
        return known[1] if known is not None and known[0]() is array else None

    def note_names(self, given: Iterable[tuple[str, Any]]) -> None:
        """Remember which arguments are such arrays, for a message."""
        for name, value in given:
            if self.lease_of(value) is not None:
                self.names.append(repr(name) if name.isidentifier() else name)
        if len(self.names) < len(self.leases):
            self.names.append("an array that an argument contains or the function captures")

    def encoder(self, by_value: Sequence[object] = ()) -> Callable[[Any], Payload]:
        """An ``encode`` that replaces them by references."""
        refer = None if self._least is None else self._refer
        return functools.partial(codec.encode, refer=refer, by_value=by_value)

    def _refer(self, array: npt.NDArray[Any]) -> Any:
        if not is_read_only(array, self._least or 0):
            return None
        key = id(array)
        known = self._found.get(key)
        if known is None or known[0]() is not array:
            known = self._lease(array)
        return fetch, (known[1].publication.token,)

    @interrupts.shielded  # called in the middle of a pickling, which may be interrupted anywhere
    def _lease(self, array: npt.NDArray[Any]) -> tuple[weakref.ref[npt.NDArray[Any]], Lease]:
        lease = self._cache.lease(array, verify=self._verify, encode=self._encode)
        self.leases.append(lease)
        self._found[id(array)] = found = weakref.ref(array), lease
        return found

    def release(self) -> None:
        """End all uses."""
        for lease in self.leases:
            lease.release()


# ------------------------------------------------------------------------------ in a worker

_values: list[Values] = []


def use(values: Values) -> None:
    """Set the values in which ``fetch`` looks up arrays."""
    _values[:] = [values]


def fetch(token: int) -> Any:
    """The array behind a reference."""
    (values,) = _values
    return values.value(token)
