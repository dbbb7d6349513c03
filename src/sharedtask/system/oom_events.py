"""Detects workers that the kernel killed because memory ran out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import cgroups

if TYPE_CHECKING:
    from collections.abc import Iterator

_VMSTAT = Path("/proc/vmstat")


class OutOfMemoryKills:
    """Counts the processes of our control group that the kernel kills from now on.

    Source:
        ``oom_kill`` in ``memory.events`` of version 2 and in ``memory.oom_control`` of version 1:
        the processes of this very group that were killed for any shortage, also one of an enclosing
        group. Without a memory controller, that of ``/proc/vmstat``, for the whole machine.
    """

    def __init__(
        self,
        membership: Path = cgroups.MEMBERSHIP,
        mount: Path = cgroups.MOUNT,
        machine: Path = _VMSTAT,
    ) -> None:
        # Files are tried by reading: a group may be deleted, or a file lack the count.
        sources = (*_files(membership, mount), machine)
        self._file = next((file for file in sources if _count(file) is not None), None)
        self._known = self._now()

    def claim(self) -> bool:
        """Called for a killed worker: whether there is a kill not attributed to another."""
        if self._now() <= self._known:
            return False
        self._known += 1
        return True

    def _now(self) -> int:
        return (self._file and _count(self._file)) or 0


def _files(membership: Path, mount: Path) -> Iterator[Path]:
    for directory in cgroups.directories("memory", membership, mount):
        yield from (directory / "memory.events", directory / "memory.oom_control")


def _count(file: Path) -> int | None:
    try:
        fields = dict(line.split() for line in file.read_text("utf-8").splitlines())
        return int(fields["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None
