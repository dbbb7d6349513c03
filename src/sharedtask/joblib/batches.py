"""The data that is sent: calls, and their surroundings in the worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

# A call in joblib's form: a function, and its arguments.
AnyCall: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class BatchContext:
    """Context of calls: joblib's backend and number of jobs for nested calls."""

    backend: Any
    n_jobs: Any
    is_default: bool
