"""Ends the workers that the library started."""

from __future__ import annotations

from sharedtask.backends import registry
from sharedtask.system import interrupts


@interrupts.shielded
def shutdown() -> None:
    """End all workers and free all shared memory that no handle or result uses.

    Not needed at the end of a program. The next call starts new workers; a call that is still
    running elsewhere gets ``ClosedError``.

    Examples:
        >>> import sharedtask
        >>> sharedtask.shutdown()
    """
    for backend in registry.running():
        backend.close()
