"""Gives chunks to Ray as its tasks: see ``carried/dispatcher.py``."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions

from sharedtask.backends.carried import dispatcher
from sharedtask.backends.carried.dispatcher import caused
from sharedtask.backends.carried.message import MISSING
from sharedtask.backends.carried.recovery import Recovery
from sharedtask.errors import (
    BackendUnavailableError,
    ClosedError,
    SerializationError,
    StoreFullError,
)
from sharedtask.system import critical_sections

from . import deaths, runtime
from .locality import Holders
from .objects import RayPayload
from .runtime import SHUT_DOWN
from .work_items import WorkItem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sharedtask.backends.carried.message import Answer

_RELEASED_KEPT = 256

_LOST = (
    ray.exceptions.ObjectLostError,
    ray.exceptions.ObjectFetchTimedOutError,
    ray.exceptions.ReferenceCountingAssertionError,
)
_CRASHED = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
)


class Dispatcher(dispatcher.Dispatcher[WorkItem]):
    """Knows which workers have which values, and puts lost values again."""

    def __init__(self, sweep: Callable[[], bool]) -> None:
        self._holders = Holders()
        self._stopper = deaths.Stopper()
        self._putting = critical_sections.object_lock()
        self._released: deque[int] = deque(maxlen=_RELEASED_KEPT)
        super().__init__("ray", sweep)

    def in_flight(self) -> list[Any]:
        """References of the tasks that Ray has now. From any thread."""
        return [t.ref for t in list(self._flying.values()) if t.ref is not None]

    def _start(self, work_item: WorkItem) -> Any:
        """One Ray task. The values are arguments, so that Ray transfers them to its node.

        They are left out if enough workers have decoded them already.
        """
        call = work_item.call
        if not call.is_alive:  # Ray would restart by itself
            raise ClosedError(SHUT_DOWN)
        stores = call.stores()
        work_item.arguments = {token: store.ref for token, store in stores.items()}
        work_item.nodes = call.alive_nodes()
        attachments = [RayPayload(payload) for payload in work_item.attachments()]
        message = work_item.message(
            tuple(self._released), tuple(stores), len(attachments), call.small()
        )
        lean = not work_item.brings_values and self._holders.enough_have(stores, len(self._flying))
        given = () if lean else work_item.arguments.values()
        work_item.ref = call.remote.remote(message.dump(), *attachments, *given)
        return work_item.ref.future()

    # ------------------------------------------------------------------------- answers

    def _note_release(self, token: int) -> None:
        self._released.append(token)
        self._holders.forget(token)

    def _answer_came(self, work_item: WorkItem, answer: Answer) -> bool:
        if answer.status == MISSING:
            self._holders.note_missing(answer.worker, work_item.arguments)
            if not work_item.call.closed:
                self._queue.appendleft(work_item.with_values())
            return False
        if answer.worker:
            self._holders.note(answer.worker, work_item.arguments)
        return True

    def _see(self, work_item: WorkItem) -> None:
        """Mark the error as retrieved; Ray prints the others."""
        with contextlib.suppress(BaseException):
            ray.get(work_item.ref, timeout=0)

    def _failed(self, work_item: WorkItem, error: BaseException) -> None:
        """The task did not return: another thread does whatever takes time."""
        if isinstance(error, _CRASHED):
            self._holders.forget_workers()
            self._investigate(work_item, lambda: self._died(work_item, error))
        elif isinstance(error, _LOST) and _is_argument(work_item, error):
            self._investigate(work_item, lambda: self._put_again(work_item, error))
        elif isinstance(error, _LOST):
            self._investigate(work_item, lambda: self._died(work_item, error))
        else:
            del self._flying[work_item.number]
            self._fail(work_item, error)

    def _died(self, work_item: WorkItem, error: BaseException) -> Callable[[], None]:
        recovery = deaths.recover_or_fail(work_item, error)
        return lambda: self._recover(work_item, recovery, error)

    def _put_again(self, work_item: WorkItem, error: BaseException) -> Callable[[], None]:
        """A shared value was lost from the object store: the caller still has it."""
        call = work_item.call
        with self._putting:  # several chunks may report the same loss
            for token, store in call.stores().items():
                lost = work_item.arguments[token]
                if lost.hex() in str(error) and store.ref == lost:
                    store.put_again(call.again[token]())
        recovery = Recovery(again=True)
        return lambda: self._recover(work_item, recovery, error)

    def _translated(self, work_item: WorkItem, error: BaseException) -> BaseException:
        return translated(work_item, error)

    # ---------------------------------------------------------------------- ends

    def _tick(self) -> None:
        for work_item in list(self._flying.values()):
            if not work_item.call.is_alive:
                del self._flying[work_item.number]
                runtime.keep_alive(work_item.ref, *work_item.arguments.values())
                self._fail(work_item, ClosedError(SHUT_DOWN))
        super()._tick()

    def _end_chunks(self, work_items: Sequence[WorkItem], *, kill: bool) -> None:
        numbers = tuple(work_item.number for work_item in work_items)
        self._stopper.stop(work_items[0].call.origin, numbers, kill=kill)

    def _abandon(self, work_items: Sequence[WorkItem]) -> None:
        """A cluster that we did not start goes on after us: cancel our tasks there."""
        running = [t for t in work_items if t.call.runtime.outlives_us]
        if running:
            with contextlib.suppress(BaseException):  # Ray may end at the same moment
                self._end_chunks(running, kill=True)
        for work_item in work_items:
            if not work_item.call.is_alive:
                runtime.keep_alive(work_item.ref, *work_item.arguments.values())


def _is_argument(work_item: WorkItem, error: BaseException) -> bool:
    return any(ref.hex() in str(error) for ref in work_item.arguments.values())


def translated(work_item: WorkItem, error: BaseException) -> BaseException:
    """Ray's error as one of ours."""
    task, first = work_item.call.task, work_item.chunk.first
    if isinstance(error, (ClosedError, BackendUnavailableError)):
        return error
    text = str(error)
    if "No module named 'sharedtask'" in text:
        return caused(BackendUnavailableError(_NOT_INSTALLED), error)
    if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
        msg = f"{task}(): Ray cannot set up the environment of its workers: {text}"
        return caused(BackendUnavailableError(msg), error)
    if isinstance(error, (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)):
        msg = f"{task}(): Ray's object store is full; see object_store_memory= of ray.init. {text}"
        return caused(StoreFullError(msg), error)
    if isinstance(error, (SystemExit, ray.exceptions.RaySystemError)):
        return caused(ClosedError(f"{SHUT_DOWN} {text}"), error)
    if isinstance(error, ray.exceptions.RayTaskError):
        msg = f"{task}(): the chunk from item {first} on failed outside of the task: {text}"
        return caused(SerializationError(msg), error)
    if isinstance(error, ray.exceptions.RayError):
        msg = f"{task}(): Ray could not run the chunk from item {first} on: {text}"
        return caused(BackendUnavailableError(msg), error)
    return error


_NOT_INSTALLED = (
    "sharedtask is not installed on a node of the Ray cluster. Install it there, or have Ray do "
    'it: ray.init(runtime_env={"pip": ["sharedtask"]}).'
)
