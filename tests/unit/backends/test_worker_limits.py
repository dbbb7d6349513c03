import os
from collections import Counter
from typing import Any

import numpy as np
import pytest

from sharedtask import MemoryLimitError, OptionsError, defaults, parallel
from sharedtask.options import check_options


def who(_x: int) -> int:
    return os.getpid()


def on_processes(function: Any, **options: Any) -> Any:
    return parallel(function).with_options(**{"backend": "process", **options})


@pytest.mark.parametrize("name", ["serial", "thread"])
def test_limits_are_for_workers_of_our_own(name: str) -> None:
    """Where there are no worker processes the limits change nothing."""
    with defaults(memory_limit=1, tasks_per_worker=1):
        pids = on_processes(who, backend=name).map(range(9))
    assert {os.getpid()} == set(pids)


def test_limits_are_not_for_workers_of_ray(ray_runtime: None) -> None:
    """Ray's workers are Ray's to limit."""
    with defaults(memory_limit=1, tasks_per_worker=1):
        pids = on_processes(who, backend="ray").map(range(9))
    assert 2 >= len(set(pids))


SIZES = [
    (1, 1),
    ("1", 1),
    ("512MB", 512_000_000),
    ("512 mb", 512_000_000),
    ("2GiB", 2 << 30),
    ("1.5 GiB", 3 << 29),
    ("64k", 64_000),
    ("64KiB", 65_536),
    ("1TB", 10**12),
    ("100B", 100),
    (np.int64(5), 5),
    (None, None),
]


@pytest.mark.parametrize(("given", "size"), SIZES)
def test_memory_limit_as_text(given: Any, size: Any) -> None:
    """Bytes are a whole number, or a text with a unit of 1000 or of 1024."""
    assert {"memory_limit": size} == check_options({"memory_limit": given}, "task()")


@pytest.mark.parametrize("given", [0, -1, 1.5, "", "MB", "2 houses", "-1MB", "0", "2iB", True, [1]])
def test_bad_memory_limit_is_refused(given: Any) -> None:
    """What is no size is refused, with an example of one."""
    with pytest.raises(OptionsError, match=r"memory_limit must be .* '512MB' or '2GiB'"):
        check_options({"memory_limit": given}, "task()")


def test_limits_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are read as the options are."""
    monkeypatch.setenv("SHAREDTASK_TASKS_PER_WORKER", "2")
    monkeypatch.setenv("SHAREDTASK_MEMORY_LIMIT", "1.5 GiB")
    assert 2 >= max(Counter(on_processes(who).map(range(9))).values())
    monkeypatch.setenv("SHAREDTASK_MEMORY_LIMIT", "1000")
    with pytest.raises(MemoryLimitError):
        on_processes(who).map(range(9))


@pytest.mark.parametrize("word", ["maxtasksperchild", "max_tasks_per_child", "worker_lifespan"])
def test_other_words_for_tasks_per_worker(word: str) -> None:
    """What others call the option leads to ours."""
    with pytest.raises(OptionsError, match="Did you mean tasks_per_worker="):
        check_options({word: 3}, "task()")
