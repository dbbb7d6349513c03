from pathlib import Path

import pytest

from sharedtask.memory import capacity
from sharedtask.system import group_memory

MIB = 1 << 20
V2, V1 = (
    ("max", "current", "inactive_file"),
    ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
)


class Groups:
    """Files like those of the kernel, in a folder."""

    def __init__(self, folder: Path, membership: str) -> None:
        self.membership, self.mount = folder / "cgroup", folder / "mount"
        self.membership.write_text(membership)

    def add(
        self, path: str, names: tuple[str, str, str], limit: object, used: int, cached: int = 0
    ) -> None:
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"memory.{names[0]}").write_text(f"{limit}\n")
        (folder / f"memory.{names[1]}").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_anon 7\n{names[2]} {cached}\n")

    def found(self) -> tuple[int, int]:
        where = self.membership, self.mount
        return group_memory.limit(*where), group_memory.available(*where)


def test_limit_of_version_2(tmp_path: Path) -> None:
    """The own group counts, with what is used less what is only cached."""
    groups = Groups(tmp_path, "0::/app/own\n")
    groups.add("app/own", V2, 256 * MIB, 100 * MIB, 30 * MIB)
    groups.add("app", V2, "max", 500 * MIB)
    assert (256 * MIB, 186 * MIB) == groups.found()


def test_limit_of_version_1(tmp_path: Path) -> None:
    """Version 1 has other names, and a folder for its controller."""
    groups = Groups(tmp_path, "5:cpu:/x\n4:memory:/docker/1\n0::/\n")
    groups.add("memory/docker/1", V1, 256 * MIB, 100 * MIB, 30 * MIB)
    groups.add("memory", V1, 9223372036854771712, 3 << 30)
    assert (256 * MIB, 186 * MIB) == groups.found()


@pytest.mark.parametrize(("names", "root"), [(V2, ""), (V1, "memory/")])
def test_group_above_is_tighter(tmp_path: Path, names: tuple[str, str, str], root: str) -> None:
    """The least of all that is left on the way up, which need not be below the lowest limit."""
    groups = Groups(tmp_path, "0::/a/b/c\n" if names is V2 else "4:memory:/a/b/c\n")
    groups.add(f"{root}a/b/c", names, 300 * MIB, 10 * MIB)
    groups.add(f"{root}a/b", names, 400 * MIB, 350 * MIB)
    groups.add(f"{root}a", names, 1000 * MIB, 900 * MIB)
    assert (300 * MIB, 50 * MIB) == groups.found()


def test_limit_of_a_container(tmp_path: Path) -> None:
    """A container sees its group as the root, while the path may be the host's."""
    groups = Groups(tmp_path, "0::/kubepods/pod7/abc\n")
    groups.add("", V2, 256 * MIB, 0)
    assert (256 * MIB, 256 * MIB) == groups.found()


def test_changed_limit_is_seen(tmp_path: Path) -> None:
    """A limit that is lowered while the process runs counts at the next look."""
    groups = Groups(tmp_path, "0::/own\n")
    groups.add("own", V2, "max", 0)
    assert (group_memory.UNLIMITED,) * 2 == groups.found()
    groups.add("own", V2, 100 * MIB, 160 * MIB)
    assert (100 * MIB, 0) == groups.found()
    groups.membership.write_text("0::/other\n")
    groups.add("other", V2, 50 * MIB, 0)
    assert (50 * MIB, 50 * MIB) == groups.found()


@pytest.mark.parametrize("membership", ["", "0::/own\n", "nonsense\n"])
def test_no_limit(tmp_path: Path, membership: str) -> None:
    """Without control groups, or with files that cannot be read, there is no limit."""
    groups = Groups(tmp_path, membership)
    groups.add("own", V2, "what is this", 5)
    assert (group_memory.UNLIMITED,) * 2 == groups.found()


def test_machine_bounds_what_groups_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is available is the least of the machine's memory and that of the groups."""
    assert 0 < capacity.available() <= capacity.total() < group_memory.UNLIMITED
    monkeypatch.setattr(group_memory, "available", lambda: 5 * MIB)
    monkeypatch.setattr(group_memory, "limit", lambda: 7 * MIB)
    assert (5 * MIB, 7 * MIB) == (capacity.available(), capacity.total())
