"""Runs the calls of a joblib batch in a worker, one after the other."""

from __future__ import annotations

from typing import Any

from joblib import parallel, parallel_config

from . import naming
from .batches import AnyCall, BatchContext
from .registering import register

_prepared: list[BatchContext] = []  # the last one


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
    _prepared[:] = [context]
