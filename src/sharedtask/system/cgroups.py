"""Where the files of a process's control groups are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def directories(controller: str, membership: Path, mount: Path) -> Iterator[Path]:
    """Yield the directories that may hold files of a controller: the own group first, then up.

    Args:
        controller: Such as "cpu" or "memory".
        membership: File in the form of ``/proc/self/cgroup``.
        mount: Directory in the form of ``/sys/fs/cgroup``, version 1, 2 or hybrid.
    """
    yield from named(text_of(membership), controller, mount)


def text_of(membership: Path) -> str:
    """Return the text that says which groups a process is in; "" where there is none."""
    try:
        return membership.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def named(text: str, controller: str, mount: Path) -> Iterator[Path]:
    """Yield the directories of the groups that such a text names."""
    for line in text.splitlines():
        yield from _of_line(line, controller, mount)


def _of_line(line: str, controller: str, mount: Path) -> Iterator[Path]:
    """For one line "id:controllers:path"."""
    _, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    if controllers and controller not in controllers.split(","):
        return
    roots = [mount / controllers, mount / controller] if controllers else [mount, mount / "unified"]
    group = Path(path.lstrip("/"))
    # A container sees its own group as the root of the mount while the path may be the host's,
    # so directories that do not exist are common and the root always counts.
    for root in roots:
        yield from (root / part for part in (group, *group.parents))
