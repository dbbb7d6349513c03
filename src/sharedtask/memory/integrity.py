"""Marks identify a sealed segment, before a byte of it is used.

A descriptor is only a number. The publishing process may have lost the file behind it to code that
closes descriptors which it did not open, and a file may be changed if segments are files. So the
publisher sends, with the descriptor, the identity of the file and its contents' mark, and the
receiver compares: the inode, 16 random bytes, a checksum of the head.
"""

from __future__ import annotations

import os
import zlib
from typing import NamedTuple

from sharedtask.errors import SharedTaskError

NONCE_BYTES = 16


class Mark(NamedTuple):
    """The file of a segment, its ``nonce`` and the offset ``at`` of that, its head's checksum.

    The head is checked because it will be unpickled. The buffers are not: reading a large array
    completely costs more than the rest of attaching it.
    """

    device: int
    inode: int
    at: int
    nonce: bytes
    checksum: int

    @classmethod
    def of(cls, fd: int, at: int, nonce: bytes, head: bytes | memoryview) -> Mark:
        """The mark of a segment that was just written."""
        status = os.fstat(fd)
        return cls(status.st_dev, status.st_ino, at, nonce, zlib.crc32(head))

    def require_file(self, status: os.stat_result) -> None:
        """Refuse another file, before it is mapped.

        Raises:
            SharedTaskError: It is another one.
        """
        if (status.st_dev, status.st_ino) != (self.device, self.inode):
            raise refused("its descriptor means another file by now")

    def require_content(self, whole: memoryview, head: bytes | memoryview) -> None:
        """Refuse other contents, before anything is unpickled.

        Raises:
            SharedTaskError: They are not the published ones.
        """
        if whole[self.at : self.at + NONCE_BYTES].tobytes() != self.nonce:
            raise refused("it does not carry the mark of the value")
        if zlib.crc32(head) != self.checksum:
            raise refused("its head was damaged")


def refused(reason: str) -> SharedTaskError:
    """The error for memory that is not the expected segment."""
    msg = f"shared memory is refused: {reason}. Share the value again. {_CAUSE}"
    return SharedTaskError(msg)


_CAUSE = "Look for code that closes files which it did not open, or that writes where it must not."
