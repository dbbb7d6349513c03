"""Recording never fails a run: what goes wrong in it is noted, and told as a warning at the end."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["guarded"]


def guarded(method: Callable[..., Any]) -> Any:
    """A method of an object with ``note_problem`` that returns None where it would raise."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  the run goes on
            self.note_problem(f"{method.__name__}: {type(error).__name__}: {error}")
            return None

    return run
