"""Limits the threads of numerical libraries in a worker."""

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
    """Limit loaded libraries at once, and later ones through the environment."""
    import threadpoolctl

    for name in BLAS_VARIABLES:
        os.environ[name] = str(threads)
    threadpoolctl.threadpool_limits(threads)
