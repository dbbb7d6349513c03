"""Descriptors that know which file they are of.

A number says little: a program may close all that it did not open itself, as daemons do when they
start, and what it opens next gets the same numbers. So whoever keeps a descriptor for longer looks
whether it is still the same file, and closes nothing that is another's by now.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .finalizers import Ending


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The number of an open file, and which file that is."""

    number: int
    device: int
    inode: int

    @classmethod
    def of(cls, number: int) -> Descriptor:
        """What stands behind the number now."""
        status = os.fstat(number)
        return cls(number, status.st_dev, status.st_ino)

    def is_open(self) -> bool:
        """Whether the number still stands for this file."""
        try:
            status = os.fstat(self.number)
        except OSError:
            return False
        return status.st_ino == self.inode and status.st_dev == self.device

    def close(self) -> None:
        """Close it, where nobody else has done that."""
        if self.is_open():
            os.close(self.number)


def closing(owner: object, descriptor: Descriptor) -> Ending:
    """Close a descriptor soon after its owner is gone, or by ``now()``."""
    return Ending(owner, descriptor.close)
