"""What the library does when the program ends, before the interpreter waits for threads."""

from __future__ import annotations

import contextlib
import enum
import threading
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Step(enum.IntEnum):
    """The steps, in their order."""

    UNFINISHED = enum.auto()  # submits are waited for
    WORKERS = enum.auto()  # that a library holds by threads which the interpreter would wait for


_calls: list[tuple[Step, Callable[[], object]]] = []


def before_threads(step: Step, call: Callable[[], object]) -> None:
    """Run ``call()`` once, before what was registered with the interpreter until now.

    It calls in the opposite order of registration: so all steps run when the last one is due.
    """
    _calls.append((step, call))
    threading._register_atexit(_run)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]


def is_refusal(error: RuntimeError) -> bool:
    """Whether a thread was not started because the program ends, as up to Python 3.12.2."""
    return "interpreter shutdown" in str(error)


def _run() -> None:
    calls = sorted(_calls, key=itemgetter(0))
    _calls.clear()
    with contextlib.ExitStack() as stack:  # which calls all, whatever one raises
        for _, call in reversed(calls):
            stack.callback(call)
