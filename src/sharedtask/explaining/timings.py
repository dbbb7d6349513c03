"""Estimated waits of the first call and of the first task in a worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from sharedtask.memory import mapping, segments
from sharedtask.memory.payload import Payload
from sharedtask.memory.strided import Scattered
from sharedtask.serialization import codec
from sharedtask.serialization.codec import FAILURES

if TYPE_CHECKING:
    from .sizes import Weight

# Writing this much takes 2 to 15 ms.
_PROBE = 16 << 20
# Default without a measurement: fresh pages, filled by write(2).
BYTES_PER_SECOND = 2e9
# Python objects: measured with a dict of a million strings.
PICKLE_BYTES_PER_SECOND = 5e7
# A pickle up to this size, with its elements to gather, is decoded here once, to measure how long a
# worker will take.
DECODED_UP_TO = 64 << 20


def bandwidth(nbytes: int) -> float | None:
    """Bytes per second into new shared memory, measured; None if that is not worth it."""
    if nbytes < _PROBE:
        return None
    payload = Payload(b"", (np.ones(_PROBE, np.uint8),))
    began = time.perf_counter()
    try:
        segments.write(payload).close()
    except Exception:  # noqa: BLE001  no room, no descriptor: then it is not measured
        return None
    return _PROBE / (time.perf_counter() - began)


def put_seconds(weight: Weight, measured: float | None) -> float:
    """Seconds of encoding, and of copying into shared memory."""
    return weight.seconds + (weight.inside + weight.outside) / (measured or BYTES_PER_SECOND)


def decode_seconds(payload: Payload) -> float | None:
    """Seconds that a worker will unpickle; None if that is not tried, or fails."""
    gathered = sum(s.nbytes for s in payload.sources if isinstance(s, Scattered))
    if len(payload.head) + gathered > DECODED_UP_TO:
        return None
    buffers = [mapping.memory_of(buffer).toreadonly() for buffer in payload.buffers]
    began = time.perf_counter()
    try:
        codec.decode(payload.head, buffers)
    except FAILURES:
        return None
    return time.perf_counter() - began
