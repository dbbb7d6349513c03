"""Output of tasks, forwarded to the caller's streams."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections import deque
from typing import Any

from sharedtask.system import background, critical_sections

from . import wire
from .wire import Frame, Kind


def redirect_prints(sender: wire.Sender) -> None:
    """From now on ``print`` in this process reaches the caller's streams."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        buffer = io.BufferedWriter(Relay(sender, number))
        stream = io.TextIOWrapper(buffer, "utf-8", "backslashreplace", line_buffering=True)
        setattr(sys, name, stream)


class Relay(io.RawIOBase):
    """Stream that sends output to the caller, whose own may be a notebook's or captured."""

    def __init__(self, sender: wire.Sender, number: int) -> None:
        self._sender = sender
        self._number = number
        self._pid = os.getpid()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def write(self, data: Any) -> int:
        text = bytes(data)
        if os.getpid() != self._pid:  # forked by the task: the socket is not its own
            return os.write(self._number, text)
        self._sender.send(Frame(Kind.OUTPUT, first=self._number, body=text))
        return len(text)


class Prints:
    """Output of workers, written to the caller's streams.

    A terminal or a file is written at once. Another stream may run user code, as a notebook's does:
    it is written by a background thread, in order, and results that came later wait for it, up to a
    time limit. So it is while tqdm shows bars: lines are written above them, whole.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, str]] = deque()
        self._begun: dict[int, tuple[Any, str]] = {}  # by stream: lines without an end, below a bar
        self._lock = critical_sections.object_lock()
        self._writer = 0  # the thread that writes
        self._since = 0.0
        self.pending = False

    def show(self, frame: Frame) -> None:
        """Write a worker's output, or queue it for the background thread."""
        stream = sys.stdout if frame.first == 1 else sys.stderr
        text = bytes(frame.body).decode("utf-8", "replace")
        if _is_plain(stream) and not (self.pending or self._begun or _bars()):
            _write(stream, text)
            return
        self._waiting.append((stream, text))
        with self._lock:
            if self.pending:
                return
            self.pending, self._since = True, time.monotonic()
        background.put(self._write_all)

    def _write_all(self) -> None:
        self._writer = threading.get_ident()
        while self._has_more():
            self._since = time.monotonic()
            with contextlib.suppress(BaseException):  # errors of the stream must not end the thread
                self._write_lines(*self._waiting.popleft())
        if self._begun:
            self._end_lines()

    def _write_lines(self, stream: Any, text: str) -> None:
        """Write text; while there is a bar, a line that has begun waits for its end."""
        text = self._begun.pop(id(stream), (stream, ""))[1] + text
        lines, end, begun = text.rpartition("\n")
        if begun and "\r" not in begun and _bars():  # else it is a bar of the task's own
            self._begun[id(stream)] = stream, begun
            text = lines + end
        if text:
            _write(stream, text)

    def _end_lines(self) -> None:
        """Write the lines that have begun when the bars are gone, or if no more of them comes."""
        until = time.monotonic() + _LINE_SECONDS
        while _bars() and time.monotonic() < until:
            if self.pending:
                return
            time.sleep(_LOOK_SECONDS)
        end = "\n" if _bars() else ""
        while self._begun and not self.pending:
            stream, begun = self._begun.popitem()[1]
            _write(stream, begun + end)

    def _has_more(self) -> bool:
        with self._lock:
            self.pending = bool(self._waiting)
            if not self.pending:
                self._writer = 0
            return self.pending

    def wait(self) -> None:
        """Wait until it is written, up to the time limit of a write; not inside a write."""
        if self._begun and not self.pending and not _bars():
            self._end_lines()
        while self.pending and self._writer != threading.get_ident():
            if time.monotonic() > self._since + _WRITE_SECONDS:
                return
            time.sleep(_LOOK_SECONDS)


# A stream that takes longer may itself wait for the results: avoid that deadlock.
_WRITE_SECONDS = 0.25
_LOOK_SECONDS = 0.0005
_LINE_SECONDS = 1.0


def _is_plain(stream: Any) -> bool:
    """Whether a stream is of Python's own classes throughout, so that no user code runs."""
    if type(stream) is not io.TextIOWrapper or not _NAMES.isdisjoint(vars(stream)):
        return stream is None
    raw = getattr(stream.buffer, "raw", stream.buffer)
    return type(stream.buffer) in _BUFFERS and type(raw) is io.FileIO


_NAMES = {"write", "flush"}
_BUFFERS = {io.BufferedWriter, io.FileIO}


def _bars() -> Any:
    """The class of the bars that tqdm shows now; None if there are none."""
    module = sys.modules.get("tqdm.std")
    bars = getattr(module, "tqdm", None)
    return bars if len(getattr(bars, "_instances", ())) else None


def _write(stream: Any, text: str) -> None:
    bars = _bars()
    # It takes a lock of tqdm's, which the user's threads take too.
    above = contextlib.nullcontext() if bars is None else bars.external_write_mode(stream)
    with contextlib.suppress(Exception), above:
        stream.write(text)
        stream.flush()
