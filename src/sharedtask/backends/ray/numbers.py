"""Numbers of Ray workers: unique among those of one caller on one node.

A worker binds a socket to a name with its number, and so claims it until it ends. Names of this
kind are no files: the kernel removes them with the process.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket

_claims: dict[bytes, tuple[int, socket.socket]] = {}


def claim(origin: bytes) -> int:
    """The number of this process among the workers of a caller: at first the lowest free one."""
    if origin not in _claims:
        _claims[origin] = _claimed(origin)
    return _claims[origin][0]


def _claimed(origin: bytes) -> tuple[int, socket.socket]:
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for number in itertools.count():
        try:
            held.bind(f"\0sharedtask-{os.getuid()}-{origin.hex()}-{number}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return number, held
    raise AssertionError
