"""Settings that an initializer makes in a worker: kept for the calls of its task alone.

A worker takes over the settings of its caller at each call, which undoes what was set in it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sharedtask.system import blas
from sharedtask.system.records import dataclass

from .settings import SETTINGS, Setting

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Kept:
    """The changes that a function made of the settings that follow the caller's.

    ``threads`` are those of numerical libraries, by their files.
    """

    environ: dict[str, str | None]
    others: list[tuple[Setting, Any]]
    threads: dict[str, int]

    def restore_threads(self) -> None:
        """Set the numbers of threads again, after a call has limited them."""
        if self.threads:
            blas.set_thread_counts(self.threads)

    def restore(self) -> None:
        """Make them again."""
        for name, value in self.environ.items():
            if value is None:
                os.environ.pop(name, None)
            elif os.environ.get(name) != value:
                os.environ[name] = value
        for setting, value in self.others:
            if setting.read() != value:
                setting.restore(value)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, called with these settings."""

        def with_settings(*args: Any, **kwargs: Any) -> Any:
            self.restore()
            return function(*args, **kwargs)

        return with_settings


def noted(function: Callable[[], object]) -> Kept:
    """Call a function and return the changes that it made."""
    environ, settings = dict(os.environ), [setting.read() for setting in SETTINGS]
    threads = blas.thread_counts()
    function()
    changed = {file: n for file, n in blas.thread_counts().items() if threads.get(file) != n}
    return Kept(
        _changed(environ, os.environ.copy()),
        [
            (setting, now)
            for setting, before in zip(SETTINGS, settings, strict=True)
            if setting.name != "os.environ" and (now := setting.read()) != before
        ],
        changed,
    )


def _changed(before: dict[str, str], now: dict[str, str]) -> dict[str, str | None]:
    removed: dict[str, str | None] = {name: None for name in before if name not in now}
    return {**removed, **{name: value for name, value in now.items() if before.get(name) != value}}
