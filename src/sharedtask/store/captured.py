"""Large arrays that come along unmarked: captured by the function, or in the object it is bound to.

Pickled with the function or with the arguments they would be stored again whenever anything beside
them changes, and for every call. So each is published by itself, under the same rules as a shared
value, and a reference stands in its place.

    encode   array -> lease -> (fetch, token)          decode   (fetch, token) -> array, read-only
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

from sharedtask.memory import locations
from sharedtask.serialization import codec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from sharedtask.memory.payload import Payload

    from .cache import Lease, ShareCache, Verify
    from .decoded import Values


def is_read_only(array: npt.NDArray[Any], least: int) -> bool:
    """Whether tasks may not write what comes along unmarked: nobody would see what they write.

    An array of ``least`` bytes is meant to be used from where it is, and so is one that was born in
    shared memory.
    """
    if array.dtype.hasobject:
        return False
    return array.nbytes >= least or (array.base is not None and locations.find(array) is not None)


class Captures:
    """The captured arrays of one call, leased as they are met.

    Args:
        cache: Where they are published.
        least: Arrays of at least so many bytes; None for none.
        verify: How a change since they were published is looked for.
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
        self._found: dict[int, tuple[weakref.ref[npt.NDArray[Any]], Lease]] = {}

    @property
    def leases(self) -> list[Lease]:
        """What was leased."""
        return [lease for _, lease in self._found.values()]

    def arrays(self) -> list[tuple[Lease, Callable[[], Any]]]:
        """What was leased, and how to find the array again."""
        return [(lease, reference) for reference, lease in self._found.values()]

    def lease_of(self, array: npt.NDArray[Any]) -> Lease | None:
        """The lease of an array, if it was leased."""
        known = self._found.get(id(array))
        return known[1] if known is not None and known[0]() is array else None

    def encoder(self, by_value: Sequence[object] = ()) -> Callable[[Any], Payload]:
        """An ``encode`` that leaves them out."""
        refer = None if self._least is None else self._refer
        return functools.partial(codec.encode, refer=refer, by_value=by_value)

    def _refer(self, array: npt.NDArray[Any]) -> Any:
        if not is_read_only(array, self._least or 0):
            return None
        key = id(array)
        known = self._found.get(key)
        if known is None or known[0]() is not array:
            lease = self._cache.lease(array, verify=self._verify, encode=self._encode)
            self._found[key] = known = weakref.ref(array), lease
        return fetch, (known[1].publication.token,)

    def release(self) -> None:
        """End all uses."""
        for _, lease in self._found.values():
            lease.release()


# ------------------------------------------------------------------------------ in a worker

_values: list[Values] = []


def use(values: Values) -> None:
    """What is decoded from now on finds its arrays there."""
    _values[:] = [values]


def fetch(token: int) -> Any:
    """The array in whose place this stands."""
    (values,) = _values
    return values.value(token)
