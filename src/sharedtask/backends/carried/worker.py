"""The worker's side of chunks that another library carries."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from sharedtask.backends.worker import envelope, log_box
from sharedtask.backends.worker.job import Job
from sharedtask.backends.worker.log_hooks import LogHooks
from sharedtask.backends.worker.result_writer import Outbox
from sharedtask.backends.worker.runner import Runner
from sharedtask.backends.worker.status_page import Word
from sharedtask.memory.segments import Layout
from sharedtask.serialization import codec
from sharedtask.store.decoded import Values
from sharedtask.store.stores import ReceivedBytes

from .message import MISSING, MOST_LOGGED, RAN, UNREADABLE, Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from sharedtask.backends.worker.envelope import Envelope
    from sharedtask.backends.worker.process_settings import SettingsFollower
    from sharedtask.backends.worker.result_writer import ResultMessage
    from sharedtask.backends.worker.runner import Identity
    from sharedtask.memory.payload import Payload
    from sharedtask.outcomes import Change

    from .message import Frame, Message
    from .status_file import StatusFile

_LONGEST_TIMEOUT = 1e9  # in seconds, so that it can be counted in ns


class _StatusChannel:
    """Collects results to return them together, and logs them until then."""

    def __init__(self, status_file: StatusFile, box: Callable[[Payload], Any]) -> None:
        self._status_file = status_file
        self._box = box
        self.frames: list[Frame] = []
        self.is_full = False  # the chunk ends, to return results that could not be logged
        self.change: tuple[Any, ...] | None = None
        self.trace = b""

    def begin(self) -> None:
        self.frames, self.is_full, self.change, self.trace = [], False, None, b""
        self._status_file.begin()

    def pack(self, payload: Payload) -> Envelope:
        return envelope.pack_attached(payload)

    def report_change(self, chunk: int, change: Change) -> None:
        del chunk
        self.change = tuple(change)

    def send(self, message: ResultMessage) -> None:
        box = None
        if message.envelope is not None and message.envelope.payload is not None:
            box, self.is_full = self._box(message.envelope.payload), True
        elif not message.finished:
            fields = message.mode, message.first, message.items, message.elapsed, message.data
            self.is_full = not self._status_file.log(*fields) or self.is_full
        self.trace = message.trace
        if message.items:
            self.frames.append(
                (message.mode, message.first, message.items, message.elapsed, message.data, box)
            )


class _Logs:
    """Records of a chunk, kept in the status file and returned with its results."""

    def __init__(self, status_file: StatusFile, hooks: Callable[[Any], LogHooks]) -> None:
        self._words, self._ring = status_file.words, status_file.log_ring
        writer = log_box.LogWriter(self._words, self._ring, self._take)
        self.hooks = hooks(writer.write)
        self._found: list[bytes] = []
        self._dropped = 0

    def _take(self) -> None:
        for _, data in log_box.read(self._words, self._ring):
            if len(self._found) < MOST_LOGGED:
                self._found.append(data)
            else:
                self._dropped += 1

    @contextlib.contextmanager
    def hooked(self) -> Generator[None]:
        """Take what is logged within this block."""
        self.hooks.install()
        try:
            yield
        finally:
            self.hooks.remove()

    def taken(self) -> tuple[tuple[bytes, ...], int]:
        """The records since the last time, and how many more there were."""
        self._take()
        found, dropped = tuple(self._found), self._dropped
        self._found.clear()
        self._dropped = 0
        return found, dropped


class CallerWorker(ABC):
    """What a worker does for one caller, in one generation of the caller's modules."""

    def __init__(
        self,
        status_file: StatusFile,
        identity: Identity,
        follower: SettingsFollower,
        hooks: Callable[[Any], LogHooks],
        box: Callable[[Payload], Any],
        name: str,
    ) -> None:
        """``box`` makes an object that arrives as ``ReceivedPayload``."""
        self.used = time.monotonic()
        self.status_file = status_file
        self.values = Values()
        self._box, self._name = box, name
        self._channel = _StatusChannel(status_file, box)
        self._logs = _Logs(status_file, hooks)
        words = status_file.words
        outbox = Outbox(self._channel, words, status_file.outbox)
        self.runner = Runner(words, outbox, self.values, follower, self._logs.hooks, identity)
        self._until = self._seconds = self._timeout = 0.0

    @abstractmethod
    def receive(self, message: Message, values: Sequence[Any]) -> bool:
        """Store the values that came with a chunk, in the order of ``message.tokens``.

        False if one that it needs is missing.
        """

    def put_away(self) -> None:
        """The chunk is over."""

    def run(self, message: Message, payloads: Sequence[Any]) -> Answer:
        """Run a chunk, with the payloads that came next to its message."""
        attachments = payloads[: message.attachments]
        for token in message.released:
            self.runner.drop(token)
        for token, data, parts in message.small:
            if token not in self.values.stores:
                self.values.attach(token, ReceivedBytes(data, Layout(parts, len(data))))
        if not self.receive(message, payloads[message.attachments :]):
            return Answer(MISSING, [], self._name)
        # Another one in this process may have enabled it.
        faulthandler.enable(self.status_file.crash_log)
        self._channel.begin()
        self._until, self._seconds = 0.0, message.seconds
        self._timeout = min(message.timeout, _LONGEST_TIMEOUT)
        job = Job(
            message.number,
            message.first,
            message.items,
            message.mode,
            message.header,
            memoryview(message.body),
            iter(attachments),
            self._poll_cancel,
            within=message.call,
        )
        try:
            with self._logs.hooked():
                ran = self.runner.run(job)
        finally:
            if message.timeout:
                faulthandler.cancel_dump_traceback_later()
            self.put_away()
            self.used = time.monotonic()
        return self._answer(RAN if ran else UNREADABLE)

    def _answer(self, status: str) -> Answer:
        added, change = self._added(), self._channel.change
        logs, dropped = self._logs.taken()
        frames, trace = self._channel.frames, self._channel.trace
        return Answer(status, frames, self._name, "", added, change, logs, dropped, trace)

    def _added(self) -> Any:
        partial = self.runner.take_partial()
        return None if partial is None else self._box(codec.encode(partial, back=True))

    def _poll_cancel(self) -> bool:
        """Called between two items: whether the chunk ends here."""
        if self._channel.is_full or self.status_file.is_stopped:
            return True
        if self._seconds and self._is_time_up():
            return True
        if self._timeout:
            # Its own thread needs no GIL, so native code cannot delay it.
            faulthandler.dump_traceback_later(
                self._timeout, exit=True, file=self.status_file.crash_log
            )
        return False

    def _is_time_up(self) -> bool:
        """Whether items have run for the time of a chunk; loading is not counted."""
        now = time.monotonic()
        self._until = self._until or now + self._seconds
        words = self.status_file.words
        return now > self._until and words[Word.BASE] + words[Word.COUNT] > 0

    def close(self) -> None:
        """The caller has ended or uses other workers: drop all of its state."""
        self.runner.close()
        self.status_file.close()
