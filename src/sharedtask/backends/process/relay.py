"""What a task prints, on its way to the caller."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from . import wire
from .wire import Frame, Kind


def redirect_prints(sender: wire.Sender) -> None:
    """From now on ``print`` in this process reaches the caller's streams."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        buffer = io.BufferedWriter(Relay(sender, number))
        stream = io.TextIOWrapper(buffer, "utf-8", "backslashreplace", line_buffering=True)
        setattr(sys, name, stream)


class Relay(io.RawIOBase):
    """Sends what is printed to the caller, which may be a notebook or a captured stream."""

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
        if os.getpid() != self._pid:  # a process that the task forked: the socket is not its own
            return os.write(self._number, text)
        self._sender.send(Frame(Kind.OUTPUT, first=self._number, body=text))
        return len(text)


def show(frame: Frame) -> None:
    """What a worker printed, to where the caller prints: a terminal, a cell, a captured stream."""
    stream = sys.stdout if frame.first == 1 else sys.stderr
    with contextlib.suppress(Exception):
        stream.write(bytes(frame.body).decode("utf-8", "replace"))
        stream.flush()
