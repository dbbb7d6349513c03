"""A call whose chunks another library carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sharedtask.backends.leased_session import LeasedSession

from .work_items import OpenCall, WorkItem

if TYPE_CHECKING:
    from sharedtask.backends.base import Chunk

    from .dispatcher import Dispatcher

C = TypeVar("C", bound=OpenCall)


class CarriedSession(LeasedSession[C]):
    """Open from the moment on when it has a ``_call``."""

    made: ClassVar[type[WorkItem[Any]]] = WorkItem
    _dispatcher: Dispatcher[Any]
    _is_open = False

    def submit(self, chunk: Chunk) -> None:
        try:
            work_item = self.made.encode(self._call, chunk)
        except Exception:  # noqa: BLE001  pickling runs user code
            work_item = self.made.encode_each(self._call, chunk)
        self._call.open_chunks.add(chunk.number)
        self._dispatcher.submit(work_item)

    def close(self, *, kill: bool = False) -> None:
        if not self._is_open or self._call.closed:
            return
        self._call.close()
        logs = self._call.logs
        if logs is not None and logs.is_open:
            self._dispatcher.leave(logs)
        if self._call.open_chunks:
            self._dispatcher.close_call(self._call, kill=kill)
        else:
            self._call.leases.release()

    def kill(self) -> None:
        """See ``Session``. Tasks have copies of the caller's arrays: there is no need to wait."""
        self.close(kill=True)
