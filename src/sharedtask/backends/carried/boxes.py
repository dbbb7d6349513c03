"""A payload that travels next to a message."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sharedtask.backends.worker import envelope
from sharedtask.memory.payload import Payload


class ReceivedPayload(NamedTuple):
    """A payload as it arrived: views, which keep its memory allocated."""

    head: memoryview
    buffers: list[memoryview]

    def own(self) -> list[Any]:
        """The buffers as memory of the receiver, which it may write."""
        return list(map(envelope.copied, self.buffers))

    def payload(self) -> Payload:
        """The same as a payload, which can be stored elsewhere."""
        return Payload(bytes(self.head), tuple(np.frombuffer(b, np.uint8) for b in self.buffers))
