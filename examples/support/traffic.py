"""How many bytes pass between this process and its workers, counted where they are sent.

Two places are watched: the connections of ``multiprocessing``, through which its queues, pipes and
pools send, and the sockets of sharedtask's workers. Small results of sharedtask do not pass either:
workers write them into memory that they share with the caller.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from sharedtask.backends.process import wire


@dataclass(slots=True)
class Traffic:
    """Bytes that this process has sent to its workers, and received from them."""

    sent: int = 0
    received: int = 0

    @property
    def total(self) -> int:
        """Both directions."""
        return self.sent + self.received


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count what passes inside the block."""
    traffic = Traffic()
    send, receive = Connection._send_bytes, Connection._recv_bytes
    header, cut = wire.Frame.header, wire.Reader._cut

    def send_counted(self: Connection, content: Any) -> None:
        traffic.sent += len(content)
        send(self, content)

    def receive_counted(self: Connection, maxsize: int | None = None) -> Any:
        content = receive(self, maxsize)
        traffic.received += content.tell()
        return content

    def header_counted(self: wire.Frame) -> bytes:
        packed = header(self)
        traffic.sent += len(packed) + len(self.body)
        return packed

    def cut_counted(self: wire.Reader) -> wire.Frame | None:
        frame = cut(self)
        if frame is not None:
            traffic.received += len(header(frame)) + len(frame.body)
        return frame

    with ExitStack() as stack:
        for place, name, watched in (
            (Connection, "_send_bytes", send_counted),
            (Connection, "_recv_bytes", receive_counted),
            (wire.Frame, "header", header_counted),
            (wire.Reader, "_cut", cut_counted),
        ):
            stack.enter_context(mock.patch.object(place, name, watched))
        yield traffic
