"""Runs the calls of a joblib batch in a worker, one after the other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from joblib import parallel, parallel_config

from sharedtask.worker.settings import SETTINGS, Setting

from . import naming
from .batches import AnyCall, BatchContext, SetUp
from .registering import register

_prepared: list[BatchContext] = []  # the last one
_done: dict[tuple[int, int], _Kept] = {}


def run(number: int, first: int, calls: list[AnyCall], context: BatchContext) -> Any:
    """Run the call with this number; ``first`` is the number of the first one in this chunk."""
    if not _prepared or _prepared[0] is not context:
        _prepare(context)
    function, args, kwargs = calls[number - first]
    with parallel_config(backend=context.backend, n_jobs=context.n_jobs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            naming.advise(error, function, args, kwargs)
            raise


def _prepare(context: BatchContext) -> None:
    if context.is_default or "sharedtask" not in parallel.BACKENDS:
        register(make_default=context.is_default)
    if context.set_up is not None:
        _set_up(context.set_up)
    _prepared[:] = [context]


def _set_up(wanted: SetUp) -> None:
    """Call it, once; keep its changes of the settings that follow the caller's."""
    kept = _done.get(wanted.number)
    if kept is not None:
        kept.restore()
        return
    environ, settings = dict(os.environ), [setting.read() for setting in SETTINGS]
    wanted.function(*wanted.args)
    _done[wanted.number] = _Kept(
        {name: value for name, value in os.environ.items() if environ.get(name) != value},
        [
            (setting, now)
            for setting, before in zip(SETTINGS, settings, strict=True)
            if (now := setting.read()) != before and setting.name != "os.environ"
        ],
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """Settings that an initializer made in this worker."""

    environ: dict[str, str]
    others: list[tuple[Setting, Any]]

    def restore(self) -> None:
        """Set them again: a worker follows its caller at each call."""
        os.environ.update(self.environ)
        for setting, value in self.others:
            if setting.read() != value:
                setting.restore(value)
