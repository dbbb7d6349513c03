"""A payload that travels next to a message."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sharedtask.memory.payload import Payload


class ReceivedPayload(NamedTuple):
    """A payload as it arrived: views, which keep its memory allocated."""

    head: memoryview
    buffers: list[memoryview]

    def payload(self) -> Payload:
        """The same as a payload, which can be stored elsewhere."""
        return Payload(bytes(self.head), tuple(np.frombuffer(b, np.uint8) for b in self.buffers))
