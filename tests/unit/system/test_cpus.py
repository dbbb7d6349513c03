"""CPUs that this process may use: affinity, and quotas of control groups."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sharedtask.system.cpus import available_cpus, cpu_quota


def test_available_cpus_is_a_count() -> None:
    """At least one CPU is available, and no more than the affinity mask holds."""
    assert 1 <= available_cpus()


@pytest.mark.parametrize(("affinity", "quota", "cpus"), [(8, 2.5, 3), (8, 0.1, 1), (2, 64.0, 2)])
def test_smaller_of_affinity_and_quota_counts(affinity: Any, quota: Any, cpus: Any) -> None:
    """The quota is rounded up and never gives less than one CPU."""
    with (
        mock.patch("os.sched_getaffinity", return_value=set(range(affinity))),
        mock.patch("sharedtask.system.cpus._quota_of_this_process", return_value=quota),
    ):
        assert cpus == available_cpus()


def group(root: Path, path: str, **files: str) -> None:
    directory = root / "mount" / path
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("_DOT_", ".")).write_text(text)


@pytest.mark.parametrize(
    ("membership", "groups", "quota"),
    [
        pytest.param("0::/", {"": {"cpu_DOT_max": "150000 100000\n"}}, 1.5, id="v2 root"),
        pytest.param("0::/", {"": {"cpu_DOT_max": "max 100000\n"}}, None, id="v2 no limit"),
        pytest.param("0::/a/b", {"a": {"cpu_DOT_max": "200000 100000"}}, 2.0, id="v2 parent"),
        pytest.param(
            "0::/a/b",
            {"a": {"cpu_DOT_max": "200000 100000"}, "a/b": {"cpu_DOT_max": "50000 100000"}},
            0.5,
            id="v2 tightest",
        ),
        pytest.param(
            "4:cpu,cpuacct:/docker/1\n3:memory:/docker/1",
            {
                "cpu,cpuacct": {
                    "cpu_DOT_cfs_quota_us": "300000",
                    "cpu_DOT_cfs_period_us": "100000",
                }
            },
            3.0,
            id="v1 in a container",
        ),
        pytest.param(
            "4:cpu:/",
            {"cpu": {"cpu_DOT_cfs_quota_us": "-1", "cpu_DOT_cfs_period_us": "100000"}},
            None,
            id="v1 no limit",
        ),
        pytest.param("4:cpuset:/", {"cpuset": {"cpu_DOT_max": "1 1"}}, None, id="other controller"),
        pytest.param("0::/", {"": {"cpu_DOT_max": "what is this"}}, None, id="unreadable"),
        pytest.param("", {}, None, id="no groups"),
    ],
)
def test_cpu_quota(tmp_path: Any, membership: Any, groups: Any, quota: Any) -> None:
    """The tightest limit on the way up to the root counts, for both versions."""
    (tmp_path / "cgroup").write_text(membership)
    for path, files in groups.items():
        group(tmp_path, path, **files)
    assert quota == cpu_quota(tmp_path / "cgroup", tmp_path / "mount")


def test_cpu_quota_without_control_groups(tmp_path: Any) -> None:
    """Where the system has no control groups there is no limit."""
    assert cpu_quota(tmp_path / "absent", tmp_path) is None
