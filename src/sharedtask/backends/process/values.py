"""Published values in a worker: decoded once, then kept within a bound."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from sharedtask.sharing import functions, segments
from sharedtask.sharing.segments import Layout
from sharedtask.sharing.stores import BytesStore, SegmentStore, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from .wire import Frame

# Decoded values are kept while their pickled heads stay below this; arrays cost nothing here.
_KEEP_HEAD_BYTES = 1 << 29
_IN_USE = 2  # the function and the value that was just decoded


class Values:
    """Segments that are mapped here, and what was decoded from them: once, then kept."""

    def __init__(self) -> None:
        self._stores: dict[int, Store] = {}
        self._decoded: OrderedDict[int, Any] = OrderedDict()

    def attach(self, frame: Frame) -> None:
        """Map a segment; the descriptor stays open where private copies will be asked for."""
        layout, private, data = pickle.loads(frame.body)
        if data is not None:
            self._stores[frame.chunk] = BytesStore(data, Layout(*layout))
            return
        (fd,) = frame.fds
        segments.check(fd, layout[1], frozen=True)
        store = SegmentStore(fd, Layout(*layout))
        if not private:
            store.close_descriptor()
        self._stores[frame.chunk] = store

    def drop(self, token: int) -> None:
        """Forget a value; its memory goes when the last view of it does."""
        self._decoded.pop(token, None)
        store = self._stores.pop(token, None)
        if store is not None:
            store.close()

    def value(self, token: int) -> Any:
        """The value, decoded at its first use."""
        if token in self._decoded:
            self._decoded.move_to_end(token)
            return self._decoded[token]
        value = self._stores[token].value()
        self._decoded[token] = value
        self._trim()
        return value

    def function(self, token: int) -> Callable[..., Any]:
        """The function, imported or rebuilt at its first use."""
        loaded = self.value(token)
        if isinstance(loaded, functions.NamedFunction):
            loaded = self._decoded[token] = loaded.load()
        function: Callable[..., Any] = loaded
        return function

    def private_value(self, token: int) -> Any:
        """The value over copy-on-write pages that nobody else has."""
        return self._stores[token].private_value()

    def _trim(self) -> None:
        """Let go of the values used longest ago while their private parts are too large."""
        total = sum(self._head_bytes(token) for token in self._decoded)
        while total > _KEEP_HEAD_BYTES and len(self._decoded) > _IN_USE:
            token, _ = self._decoded.popitem(last=False)
            total -= self._head_bytes(token)

    def _head_bytes(self, token: int) -> int:
        return self._stores[token].layout.parts[-1][1]
