"""Registers the backend with joblib, here and in the workers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from joblib import parallel

from sharedtask import context

NAME = "sharedtask"


def register(*, make_default: bool = False) -> None:
    """Register the backend "sharedtask" with joblib; idempotent.

    Args:
        make_default: Whether joblib uses this backend if a program names none.

    Examples:
        >>> import joblib
        >>> from sharedtask.joblib import register
        >>> register()
        >>> with joblib.parallel_config(backend="sharedtask", n_jobs=2):
        ...     joblib.Parallel()(joblib.delayed(pow)(x, 2) for x in range(4))
        [0, 1, 4, 9]
    """
    # Workers rarely need a backend, so they do not load its class.
    factory = _made if context.a_task() else _class()
    parallel.register_parallel_backend(NAME, factory, make_default=make_default)


def is_default() -> bool:
    """Whether joblib uses it by default."""
    return bool(NAME == parallel.DEFAULT_BACKEND)


def _class() -> Any:
    return import_module("sharedtask.joblib.backend").SharedTaskBackend


def _made(**params: Any) -> Any:
    return _class()(**params)
