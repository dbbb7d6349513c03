"""The submits of one task: they count up, and share the task's limit of workers."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedtask import context
from sharedtask.backends import registry
from sharedtask.backends.base import Team
from sharedtask.options import resolve

from .callsite import callsite_of
from .plan import plan_call
from .submission import Submission

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sharedtask.backends.base import Call
    from sharedtask.options import Options

    from .futures import TaskFuture
    from .plan import Target


class Submits:
    """What the submits of one task have in common."""

    def __init__(self) -> None:
        self._numbers = itertools.count()  # atomic, for all threads
        self._team, self._pid = Team(), os.getpid()

    @property
    def team(self) -> Team:
        """The calls that share their limit; in a forked child those of its parent do not count."""
        if self._pid != os.getpid():
            self._team, self._pid = Team(), os.getpid()
        return self._team

    def submit(
        self,
        target: Target,
        explicit: Mapping[str, Any],
        item: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        on_shares: Callable[[Any], None],
    ) -> TaskFuture[Any]:
        """See ``Task.submit``."""
        options = resolve(explicit)
        call = plan_call(target, args, kwargs, options, items=[item], team=self.team)
        if call.randomness is not None:
            call = self._counted(call, options)
        backend = registry.get(options.backend)
        return Submission(backend, call, item, options, on_shares, callsite_of(options)).future

    def _counted(self, call: Call, options: Options) -> Call:
        """With a seed, items get the numbers of items 0, 1, 2 ... of a map."""
        if call.randomness is None or options.seed is None or context.a_task():
            return call
        return replace(call, randomness=call.randomness.after(next(self._numbers)))
