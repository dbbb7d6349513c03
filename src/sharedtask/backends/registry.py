"""Backends by name: loaded when first asked for, one of each for the whole process."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING

from sharedtask import context, observing
from sharedtask.errors import BackendUnavailableError, WorkerDiedError
from sharedtask.system import critical_sections, forks, loading, servers

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.base import Backend
    from sharedtask.options import Options

_CLASSES = MappingProxyType(
    {
        "ray": "sharedtask.backends.ray.backend:RayBackend",
        "loky": "sharedtask.backends.loky.backend:LokyBackend",
        "process": "sharedtask.backends.process.backend:ProcessBackend",
        "process without fork": "sharedtask.backends.loky.backend:ProcessBackend",
        "thread": "sharedtask.backends.local:ThreadBackend",
        "serial": "sharedtask.backends.local:SerialBackend",
    }
)

_made: dict[str, Backend] = {}
_lock = critical_sections.table_lock()


def get(name: str) -> Backend:
    """The backend of this name. Inside a task every backend is "serial".

    The same holds in a signal handler or a finalizer that interrupted the library while it changed
    its tables. In a child that was forked by C, the parent's workers are given up first.

    Raises:
        BackendUnavailableError: The backend cannot run here; the text says what to do.
    """
    if forks.Known.pid != os.getpid():
        forks.enter_child()
    if not _made:
        _begin_trace()
    if context.a_task() or critical_sections.is_held():
        name = "serial"
    with _lock:
        if name not in _made:
            _made[name] = _load(name)
        found = _made[name]
    if observing.recorder is None:
        return found
    traced: Backend = observing.recorder.traced(found)
    return traced


def of(options: Options) -> Backend:
    """The backend of a call with these options; see ``get``."""
    name = options.backend
    return get(_automatic(options) if name == "auto" else name)


def _automatic(options: Options) -> str:
    """What "auto" means: Ray where the program uses it, threads where they run Python in parallel.

    Threads as well where there are no processes: without fork, these need loky.
    """
    if _ray_is_initialized():
        return "ray"
    threads_do = not _has_gil() and not _needs_processes(options)
    return "thread" if threads_do or not _has_processes() else "process"


@functools.cache
def _has_processes() -> bool:
    return hasattr(os, "fork") or importlib.util.find_spec("loky") is not None


# Of free-threaded builds. The import of an extension that needs the GIL turns it on at any time.
_has_gil: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)


def _needs_processes(options: Options) -> bool:
    """Whether an option asks for what threads do not have: they cannot be ended from outside.

    Nor do items outlive the death of a thread, so a retry after one needs processes.
    """
    retries = options.retries and any(issubclass(WorkerDiedError, e) for e in options.retry_on)
    limits = (options.timeout, options.memory_limit, options.tasks_per_worker)
    return bool(retries) or limits != (None, None, None)


def _begin_trace() -> None:
    """Before the first call: trace this program if the user's environment says so."""
    if "SHAREDTASK_TRACE" in os.environ and not context.a_worker():
        home = "sharedtask.tracing.program"  # above us
        with loading.undisturbed(home):
            importlib.import_module(home).begin_from_environment()


def running() -> list[Backend]:
    """The backends that have been used."""
    with _lock:
        return list(_made.values())


def _ray_is_initialized() -> bool:
    """Whether the user's program did; a Ray that we started is used only by name."""
    ray = sys.modules.get("ray")  # importing it takes half a second, and would be in vain
    if ray is None or not getattr(ray, "is_initialized", bool)():
        return False
    return "ray" not in _made or not _made["ray"].started_its_runtime


def _load(name: str) -> Backend:
    package = name
    if name == "process" and not hasattr(os, "fork"):
        name, package = "process without fork", "loky"
    if name != "serial":
        servers.warn_before_fork()
    module, _, attribute = _CLASSES[name].partition(":")
    try:
        with loading.undisturbed(module):
            made = getattr(importlib.import_module(module), attribute)
        backend: Backend = made()
    except ImportError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise BackendUnavailableError(_missing(name, package)) from error
    return backend


def _missing(name: str, package: str) -> str:
    """What a backend lacks, and the cure."""
    install = f'pip install "sharedtask[{package}]"'
    if name == "process without fork":
        return (
            'backend="process" needs os.fork, which this system does not have, or the package loky:'
            f' {install}. backend="thread" and backend="serial" need neither'
        )
    also = '. backend="process" needs no package' if name == "loky" and hasattr(os, "fork") else ""
    return f"backend={name!r} needs a package that is not installed: {install}{also}"
