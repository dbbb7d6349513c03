"""Limits the threads of numerical libraries in a worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

BLAS_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def limit(threads: int) -> None:
    """Limit loaded libraries at once, and later ones through the environment."""
    import threadpoolctl

    for name in BLAS_VARIABLES:
        os.environ[name] = str(threads)
    threadpoolctl.threadpool_limits(threads)


def thread_counts() -> dict[str, int]:
    """How many threads each loaded library uses, by its file."""
    import threadpoolctl

    return {info["filepath"]: info["num_threads"] for info in threadpoolctl.threadpool_info()}


def set_thread_counts(wanted: Mapping[str, int]) -> None:
    """Have these libraries use so many threads."""
    import threadpoolctl

    for library in threadpoolctl.ThreadpoolController().lib_controllers:
        if library.filepath in wanted:
            library.set_num_threads(wanted[library.filepath])
