"""The memory that control groups allow this process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .cgroups import MEMBERSHIP, MOUNT, named, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

UNLIMITED = 1 << 62

# By version of control groups: the files of the limit and of what is used, and the line of
# memory.stat that says how much of it is cached files, which are given up under pressure.
_FILES = (
    ("memory.max", "memory.current", b"inactive_file "),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file "),
)


def limit(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> int:
    """Return the lowest limit in bytes of this process's groups; ``UNLIMITED`` if there is none.

    Args:
        membership: File in the form of ``/proc/self/cgroup``.
        mount: Directory in the form of ``/sys/fs/cgroup``, version 1, 2 or hybrid.

    Source:
        ``cgroups(7)``: a limit holds for a group and for all groups below it.
    """
    return min((most for most, _ in _limits(membership, mount)), default=UNLIMITED)


def available(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> int:
    """Return the bytes that are left below the limits; ``UNLIMITED`` if there is none."""
    limits = _limits(membership, mount)
    return min((group.left_of(most) for most, group in limits), default=UNLIMITED)


class _Group(NamedTuple):
    """The files of a group that limits memory."""

    limit: Path
    used: Path
    details: Path
    cached: bytes

    def left_of(self, most: int) -> int:
        """How many bytes of so many are not in use, or are given up under pressure."""
        return max(most - _number(self.used), 0) + self._reclaimable()

    def _reclaimable(self) -> int:
        try:
            lines = self.details.read_bytes().splitlines()
            return next((int(line.split()[1]) for line in lines if line.startswith(self.cached)), 0)
        except (OSError, ValueError):
            return 0


def _limits(membership: Path, mount: Path) -> Iterator[tuple[int, _Group]]:
    """Yield the bytes of each limit: not "max" of version 2, nor the huge number of version 1."""
    for group in _groups(text_of(membership), mount):
        most = _number(group.limit, UNLIMITED)
        if most < UNLIMITED:
            yield most, group


@functools.lru_cache(maxsize=8)
def _groups(text: str, mount: Path) -> tuple[_Group, ...]:
    """The groups with limits of memory: the same as long as the process is in the same groups."""
    return tuple(
        _Group(directory / limit, directory / used, directory / "memory.stat", cached)
        for directory in dict.fromkeys(named(text, "memory", mount))
        for limit, used, cached in _FILES
        if (directory / limit).exists()
    )


def _number(file: Path, otherwise: int = 0) -> int:
    try:
        return int(file.read_bytes())
    except (OSError, ValueError):
        return otherwise
