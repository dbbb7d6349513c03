"""Gives chunks to the workers of loky, each to a free one: see ``carried/dispatcher.py``."""

from __future__ import annotations

import threading
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from sharedtask.backends.carried import dispatcher, recovery
from sharedtask.backends.carried.dispatcher import caused
from sharedtask.backends.carried.recovery import Recovery
from sharedtask.backends.worker.status_page import Word
from sharedtask.errors import BackendUnavailableError, ClosedError, SerializationError

from . import worker
from .files import Box
from .slots import Slot, end_all
from .work_items import WorkItem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .folder import Folder

_END_SECONDS = 15.0


class Dispatcher(dispatcher.Dispatcher[WorkItem]):
    """Owns the slots: as many as chunks were ever in flight at a time."""

    def __init__(self, backend: str, folder: Folder, sweep: Callable[[], bool]) -> None:
        self._named, self._folder, self._sweep_values = backend, folder, sweep
        self._slots: list[Slot] = []
        self._ended = threading.Event()
        super().__init__(backend, self._sweep_all)

    def end_and_wait(self, reason: str) -> None:
        """``end``, and wait until the workers have ended. From any thread but its own."""
        self.end(reason)
        self._ended.wait(_END_SECONDS)

    # ------------------------------------------------------------------------- workers

    def _start(self, work_item: WorkItem) -> Any:
        slot = work_item.ref = self._free_slot()
        if slot.is_started:
            try:
                return self._send(work_item, slot)
            except Exception:  # noqa: BLE001  its worker died between two chunks
                slot.discard()
        slot.start()
        try:
            return self._send(work_item, slot)
        except BaseException:  # such as of a thread that cannot be started: nothing would answer
            slot.discard()
            raise

    def _send(self, work_item: WorkItem, slot: Slot) -> Any:
        files, small = work_item.call.news(slot.known)
        boxes = [Box(payload) for payload in work_item.attachments()]
        message = work_item.message(slot.take_released(), tuple(files), len(boxes), small)
        future = slot.submit(worker.run_chunk, message.dump(), *boxes, *files.values())
        slot.known.update(files, (token for token, *_ in small))
        return future

    def _free_slot(self) -> Slot:
        """A slot without a chunk: one with a worker, or else the first."""
        free = self._idle()
        for slot in free:
            if slot.is_started:
                return slot
        if not free:
            free.append(Slot(self._folder, self._named, len(self._slots)))
            self._slots += free
        return free[0]

    def _idle(self) -> list[Slot]:
        taken = {id(each.ref) for each in self._flying.values()}
        return [slot for slot in self._slots if id(slot) not in taken]

    def _note_release(self, token: int) -> None:
        for slot in self._slots:
            slot.note_release(token)

    def _sweep_all(self) -> bool:
        """Release what is not used, here and in workers without a chunk."""
        keeps = self._sweep_values()
        for slot in self._idle():
            if slot.released:
                try:
                    slot.submit(worker.forget, slot.take_released())
                except Exception:  # noqa: BLE001  it has died
                    slot.discard()
        return keeps

    # ------------------------------------------------------------------------- answers

    def _failed(self, work_item: WorkItem, error: BaseException) -> None:
        slot = work_item.ref
        assert slot is not None  # noqa: S101  it was started
        if not isinstance(error, BrokenProcessPool):
            slot.known.clear()  # it may have failed to store one
            del self._flying[work_item.number]
            self._fail(work_item, error)
            return
        crash_report = slot.crash_report()
        slot.discard()
        begun = crash_report.words[Word.CHUNK] == work_item.number
        found = Recovery(again=True)
        if begun:
            found = recovery.recovery_of(work_item, crash_report, error)
        self._recover(work_item, found, error)

    def _translated(self, work_item: WorkItem, error: BaseException) -> BaseException:
        task, first = work_item.call.task, work_item.chunk.first
        if isinstance(error, BrokenProcessPool):
            msg = f"{task}(): loky could not start a worker: {error}"
            return caused(BackendUnavailableError(msg), error)
        if isinstance(error, (ClosedError, BackendUnavailableError)):
            return error
        msg = f"{task}(): the chunk from item {first} on failed outside of the task: {error!r}"
        return caused(SerializationError(msg), error)

    # ---------------------------------------------------------------------- ends

    def _end_chunks(self, work_items: Sequence[WorkItem], *, kill: bool) -> None:
        for work_item in work_items:
            slot = work_item.ref
            if slot is not None and kill:
                slot.kill()
            elif slot is not None:
                slot.ask_to_stop(work_item.number)

    def _abandon(self, work_items: Sequence[WorkItem]) -> None:
        self._end_chunks(work_items, kill=True)

    def _over(self) -> None:
        end_all(self._slots)
        self._ended.set()
