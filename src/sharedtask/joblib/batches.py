"""What travels: calls, and what they find where they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

# As joblib has them: a function, and its arguments.
AnyCall: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SetUp:
    """What is called once in each worker, known by its number there."""

    number: tuple[int, int]
    function: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What calls find where they run: the backend and jobs of joblib for what they call in turn."""

    backend: Any
    n_jobs: Any
    is_default: bool
    set_up: SetUp | None = None
