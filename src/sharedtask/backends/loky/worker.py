"""A worker that loky started: one process, which serves one caller."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedtask import context
from sharedtask.backends.carried.message import OTHER_VERSION, Answer, Message
from sharedtask.backends.carried.status_file import StatusFile
from sharedtask.backends.carried.worker import CallerWorker
from sharedtask.backends.worker import import_path
from sharedtask.backends.worker.log_hooks import LogHooks
from sharedtask.backends.worker.process_settings import SettingsFollower
from sharedtask.backends.worker.runner import Identity
from sharedtask.memory.segments import Layout
from sharedtask.version import VERSION

from .files import Box, FileStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

_LOOK_SECONDS = 1.0


class Birth(NamedTuple):
    """What a worker learns at its start: its backend and number, and where its status file is."""

    backend: str
    number: int
    status: str
    version: str = VERSION


class FileValue(NamedTuple):
    """Where a value is, in a message."""

    path: str
    parts: tuple[tuple[int, int], ...]
    size: int


class _Here:
    """This process as a worker."""

    birth: Birth
    origin = b""
    worker: _CallerWorker | None = None


def begin(birth: Birth, caller: Connection) -> None:
    """Called once, before the first chunk. ``caller`` is closed when the caller's process ends."""
    context.enter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what Ctrl-C ends
    _Here.birth = birth
    threading.Thread(target=_follow, args=(caller, os.getppid()), daemon=True).start()
    atexit.register(_close)
    StatusFile(Path(birth.status)).close()  # which has the process id from now on


def _follow(caller: Connection, parent: int) -> None:
    """End with the caller, in the middle of a task as well.

    A child of the caller may keep the other end open. Where a process changes its parent when that
    ends, this tells too.
    """
    with contextlib.suppress(OSError):
        while not caller.poll(_LOOK_SECONDS) and os.getppid() == parent:
            pass
    os._exit(1)


def run_chunk(data: bytes, *payloads: Any) -> Any:
    """Run a chunk."""
    message = Message.load(data)
    if message is None:
        return Answer(OTHER_VERSION, [], text=VERSION).dump()
    return _worker_for(message.origin).run(message, payloads).dump()


def forget(tokens: tuple[int, ...]) -> None:
    """Between two chunks: these values are not needed any more."""
    if _Here.worker is not None:
        for token in tokens:
            _Here.worker.runner.drop(token)


def _worker_for(origin: bytes) -> _CallerWorker:
    if _Here.worker is None or _Here.origin != origin:
        if _Here.worker is not None:  # the caller's modules may be in other folders now
            _close()
            import_path.forget_modules()
        _Here.worker, _Here.origin = _CallerWorker(_Here.birth), origin
    return _Here.worker


def _close() -> None:
    """Close what tasks have made."""
    worker, _Here.worker = _Here.worker, None
    if worker is not None:
        worker.close()


class _CallerWorker(CallerWorker):
    def __init__(self, birth: Birth) -> None:
        name = multiprocessing.current_process().name
        super().__init__(
            StatusFile(Path(birth.status)),
            Identity(birth.backend, birth.number),
            SettingsFollower(),
            lambda write: LogHooks(write, birth.number, name, apart="loky"),
            Box,
            name,
        )

    def receive(self, message: Message, values: Sequence[FileValue]) -> bool:
        known = self.values
        known.held = frozenset(message.tokens)
        for token, value in zip(message.tokens, values, strict=True):
            if token not in known.stores:
                known.attach(token, FileStore(value.path, Layout(value.parts, value.size)))
        self.runner.check_earlier(self.runner.header(message.header), message.call)
        return True
