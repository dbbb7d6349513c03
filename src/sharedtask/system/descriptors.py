"""Descriptors that check the identity of their file.

A program may close all descriptors that it did not open itself, as daemons do at their start, and
files that it opens next get the same numbers. So an object that keeps a descriptor checks that it
is still the same file, and never closes another's.
"""

from __future__ import annotations

import contextlib
import os

from .finalizers import Ending
from .records import dataclass


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The number of an open file, and which file that is."""

    number: int
    device: int
    inode: int

    @classmethod
    def of(cls, number: int) -> Descriptor:
        """The file behind the number now."""
        status = os.fstat(number)
        return cls(number, status.st_dev, status.st_ino)

    def is_open(self) -> bool:
        """Whether the number still means this file."""
        try:
            status = os.fstat(self.number)
        except OSError:
            return False
        return status.st_ino == self.inode and status.st_dev == self.device

    def close(self) -> None:
        """Close it, unless it was closed already."""
        if self.is_open():
            with contextlib.suppress(OSError):  # the program has closed it since the look
                os.close(self.number)


def closing(owner: object, descriptor: Descriptor) -> Ending:
    """Close a descriptor soon after its owner is freed, or by ``now()``."""
    return Ending(owner, descriptor.close)
