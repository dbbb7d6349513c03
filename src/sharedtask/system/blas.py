"""How many threads numerical libraries use in a worker."""

from __future__ import annotations

import os

BLAS_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def limit(threads: int) -> None:
    """Libraries that are loaded obey at once; those that come later read the environment."""
    import threadpoolctl

    for name in BLAS_VARIABLES:
        os.environ[name] = str(threads)
    threadpoolctl.threadpool_limits(threads)
