"""Backends by name: loaded when first asked for, one of each for the whole process."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING

from sharedtask import inside
from sharedtask.errors import BackendUnavailableError

if TYPE_CHECKING:
    from sharedtask.backends.base import Backend

_CLASSES = MappingProxyType(
    {
        "process": "sharedtask.backends.process.backend:ProcessBackend",
        "thread": "sharedtask.backends.local:ThreadBackend",
        "serial": "sharedtask.backends.local:SerialBackend",
    }
)

_made: dict[str, Backend] = {}
_lock = threading.Lock()


def get(name: str) -> Backend:
    """The backend of this name; "auto" is "process". Inside a task every backend is "serial".

    Raises:
        BackendUnavailableError: The backend cannot run here; the text says what to do.
    """
    if inside.a_task():
        name = "serial"
    elif name == "auto":
        name = "process"
    with _lock:
        if name not in _made:
            _made[name] = _load(name)
        return _made[name]


def running() -> list[Backend]:
    """The backends that have been used."""
    with _lock:
        return list(_made.values())


def _load(name: str) -> Backend:
    if name not in _CLASSES:
        raise BackendUnavailableError(_missing(name))
    module, _, attribute = _CLASSES[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def _missing(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return f"backend={name!r} needs a package that is not installed: pip install {name}"
    known = ", ".join(sorted(_CLASSES))
    return f"backend={name!r} is not part of this version of sharedtask. There are: {known}."
