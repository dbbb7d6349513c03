"""Values of handles, published once more where a library carries chunks to its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.memory.payload import Payload
    from sharedtask.store.cache import Lease, ShareCache
    from sharedtask.store.handles import Handle


class HandleLeases:
    """Leases of handles from the cache of a backend; a value goes with its handle."""

    def __init__(
        self,
        cache: ShareCache,
        encode: Callable[[Any], Payload],
        note_release: Callable[[int], None],
    ) -> None:
        """``note_release`` is a method, called with the token of a value that is over."""
        self._cache, self._encode, self._note_release = cache, encode, note_release
        self._tokens: dict[int, int] = {}

    def lease(self, handle: Handle[Any]) -> Lease:
        """Publish the value of a handle, once."""
        publication = handle.publication
        lease = self._cache.lease(publication, verify="identity", encode=self.payload_of)
        self._tokens[publication.token] = lease.publication.token
        publication.call_on_release(self._drop)
        lease.publication.call_on_release(self._note_release)
        return lease

    def payload_of(self, publication: Any) -> Payload:
        """The payload of a handle; memory of this machine is included by its contents."""
        if publication.is_in_place:
            return self._encode(publication.value())
        payload: Payload = publication.payload()
        return payload

    def _drop(self, token: int) -> None:
        ours = self._tokens.pop(token, None)
        if ours is not None:
            self._cache.forget([ours])
