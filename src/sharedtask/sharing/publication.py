"""A published value: a sealed segment, and what is needed to tell whether it is still right."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.sharing import freshness, mapping, stores
from sharedtask.sharing.codec import Payload

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from sharedtask.sharing.stores import Store

_tokens = itertools.count(1)


class Publication:
    """A payload that workers can have, under a token that is never used again in this process."""

    def __init__(
        self,
        payload: Payload,
        *,
        watched: bool,
        keep: Callable[[Payload], Store] = stores.keep,
    ) -> None:
        self.token = next(_tokens)
        # Protect, then copy: see freshness.py.
        self._checks = [_Check(buffer, watched=watched) for buffer in payload.buffers]
        try:
            self.store = keep(payload)
        except BaseException:
            self._release_checks()
            raise
        self._holders: list[weakref.WeakMethod[Callable[[int], None]]] = []
        self.released = False

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the value takes."""
        return self.store.nbytes

    def matches(self, payload: Payload) -> bool:
        """True where ``payload`` is byte for byte what was published, and that is still there."""
        try:
            head, buffers = self.store.parts()
        except LookupError:  # a store on other machines may lose it
            return False
        return (
            len(payload.buffers) == len(buffers)
            and all(
                check.passes(new, old)
                for check, new, old in zip(self._checks, payload.buffers, buffers, strict=True)
            )
            and _same_bytes(payload.head, head)
        )

    def payload(self) -> Payload:
        """What was published, over the memory where it is."""
        head, buffers = self.store.parts()
        return Payload(bytes(head), tuple(np.frombuffer(buffer, np.uint8) for buffer in buffers))

    def value(self) -> Any:
        """The value as every worker sees it, read-only."""
        return self.store.value()

    def private_value(self) -> Any:
        """The value over memory of its own."""
        return self.store.private_value()

    def tell_on_release(self, holder: Callable[[int], None]) -> None:
        """Call the bound method ``holder(token)`` when the memory is given back."""
        reference = weakref.WeakMethod(holder)
        if reference not in self._holders:
            self._holders.append(reference)

    def release(self) -> None:
        """Give the memory back; what is mapped elsewhere stays valid until it is dropped."""
        if self.released:
            return
        self.released = True
        self._release_checks()
        self.store.close()
        for reference in self._holders:
            holder = reference()
            if holder is not None:
                holder(self.token)

    def _release_checks(self) -> None:
        for check in self._checks:
            check.release()


class _Check:
    """Tells whether one buffer of a value still holds the bytes that were published."""

    def __init__(self, buffer: npt.NDArray[np.uint8], *, watched: bool) -> None:
        self._address, self._nbytes = mapping.address_of(buffer), buffer.nbytes
        self._watch = freshness.watch(self._address, buffer.nbytes) if watched else None

    def passes(self, new: npt.NDArray[np.uint8], old: memoryview) -> bool:
        if new.nbytes != old.nbytes:
            return False
        address, published = mapping.address_of(new), _address(old)
        if address == self._address and self._watch is not None:
            if self._untouched(self._watch, published):
                return True
            # Written, perhaps with what was there before: comparing tells. Protect, then compare.
            self.release()
            self._watch = freshness.watch(address, new.nbytes)
        return freshness.same_bytes(address, published, new.nbytes)

    def _untouched(self, watch: freshness.Watch, published: int) -> bool:
        before = watch.start - self._address  # a part of a page at either end is not watched
        after = before + watch.length
        return (
            watch.unchanged()
            and freshness.same_bytes(self._address, published, before)
            and freshness.same_bytes(self._address + after, published + after, self._nbytes - after)
        )

    def release(self) -> None:
        if self._watch is not None:
            self._watch.release()
            self._watch = None


def _same_bytes(left: bytes, right: memoryview) -> bool:
    if len(left) != len(right):
        return False
    return freshness.same_bytes(_address(memoryview(left)), _address(right), len(left))


def _address(view: memoryview) -> int:
    return mapping.address_of(np.frombuffer(view, np.uint8)) if view.nbytes else 0
