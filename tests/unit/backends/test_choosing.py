"""What ``backend="auto"`` means: by the interpreter, by the system, and by what is asked for."""

import importlib.util
import os
from typing import Any

import pytest

from sharedtask import Executor, TaskTimeoutError, WorkerDiedError, parallel
from sharedtask.backends import registry
from sharedtask.options import Options


def thread_of(_: int) -> int:
    """The process that runs an item."""
    return os.getpid()


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter whose threads run Python code at the same time."""
    monkeypatch.setattr(registry, "_has_gil", lambda: False)


# What threads do not have, and what they do as well.
NEEDS: tuple[dict[str, Any], ...] = (
    {"timeout": 60},
    {"memory_limit": "1GiB"},
    {"tasks_per_worker": 5},
    {"retries": 1},
    {"retries": 1, "retry_on": (KeyError, WorkerDiedError)},
)
NEEDS_NOT: tuple[dict[str, Any], ...] = (
    {},
    {"retry_on": RuntimeError},
    {"retries": 1, "retry_on": (KeyError, TaskTimeoutError)},
    {"workers": 3, "strict": True, "seed": 7, "return_exceptions": True},
)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("options", NEEDS, ids=str)
def test_what_threads_lack_takes_processes(options: dict[str, Any]) -> None:
    """Without a GIL, limits and retries after a death still run in processes."""
    assert "process" == registry.of(Options(**options)).name


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("options", NEEDS_NOT, ids=str)
def test_free_threads_take_all_else(options: dict[str, Any]) -> None:
    """Without a GIL, threads run what nothing binds to processes."""
    assert "thread" == registry.of(Options(**options)).name


@pytest.mark.parametrize("options", [*NEEDS, *NEEDS_NOT], ids=str)
def test_with_a_gil_processes_run_it(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a GIL, also one that an extension has turned on, everything runs in processes."""
    monkeypatch.setattr(registry, "_has_gil", lambda: True)
    assert "process" == registry.of(Options(**options)).name


@pytest.mark.parametrize("options", [*NEEDS, *NEEDS_NOT], ids=str)
def test_without_fork_threads_run_it(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system without fork and loky has no worker processes: threads run what names no backend."""
    monkeypatch.setattr(registry, "_has_processes", lambda: False)
    assert "thread" == registry.of(Options(**options)).name


@pytest.mark.parametrize("has_loky", [True, False])
def test_without_fork_loky_has_the_processes(
    has_loky: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is installed."""
    monkeypatch.delattr(os, "fork")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if has_loky else None)
    assert has_loky == registry._has_processes.__wrapped__()


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("name", ["process", "serial", "thread"])
def test_a_backend_that_is_named_is_taken(name: Any) -> None:
    """Only "auto" is decided by the interpreter."""
    assert name == registry.of(Options(backend=name)).name


@pytest.mark.usefixtures("free")
def test_ray_that_the_program_uses_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has initialised Ray means Ray."""
    monkeypatch.setattr(registry, "_ray_is_initialized", lambda: True)
    monkeypatch.setattr(registry, "_load", lambda name: name)
    monkeypatch.setattr(registry, "_made", {})
    assert "ray" == registry.of(Options())  # type: ignore[comparison-overlap]


@pytest.mark.usefixtures("free")
def test_every_way_of_calling_asks_the_options() -> None:
    """Maps, submits and executors run in this process, unless an option asks for processes."""
    task, here = parallel(thread_of), os.getpid()
    timed = task.with_options(timeout=60)
    with Executor() as executor:
        found = [
            *task.map([0]),
            *task.imap([0]),
            task.submit(0).result(),
            executor.submit(thread_of, 0).result(),
            *executor.map(thread_of, [0]),
        ]
    assert [here] * 5 == found
    assert here not in {*timed.map([0]), timed.submit(0).result()}
