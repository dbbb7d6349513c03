"""The submits of one task: they count up, and share the task's limit of workers."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedtask import context, observing
from sharedtask.backends import registry
from sharedtask.backends.base import Team
from sharedtask.options import resolve
from sharedtask.system import interrupts

from .callsite import callsite_of
from .plan import plan_call
from .submission import Submission
from .submit_queue import SubmitQueue, may_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sharedtask.backends.base import Backend, Call
    from sharedtask.options import Options

    from .futures import TaskFuture
    from .plan import Target


class _Last(NamedTuple):
    """The last submit that went into a queue."""

    target: Target
    options: Options
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    call: Call
    queue: SubmitQueue

    def is_like(
        self, target: Target, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bool:
        """Whether a submit has the very same arguments, which are numbers, strings and the like."""
        if target is not self.target or options is not self.options:
            return False
        if not (args or kwargs or self.args or self.kwargs):
            return True
        return (
            len(args) == len(self.args)
            and all(map(is_, args, self.args))
            and kwargs.keys() == self.kwargs.keys()
            and all(value is self.kwargs[name] for name, value in kwargs.items())
        )


class Submits:
    """What the submits of one task have in common."""

    def __init__(self) -> None:
        self._numbers = itertools.count()  # atomic, for all threads
        self._indices = itertools.count()
        self._team, self._pid = Team(), os.getpid()
        self._last: _Last | None = None

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
        if observing.recorder is not None:
            observing.recorder.call_begins()
        options = resolve(explicit)
        if self._pid != os.getpid():  # the calls of the parent are not those of a forked child
            self._team, self._pid, self._last = Team(), os.getpid(), None
        last = self._last
        if last is not None and last.is_like(target, options, args, kwargs):
            call = last.call
        else:
            call = plan_call(target, args, kwargs, options, items=[item], team=self._team)
        backend = registry.of(options)
        if backend.joins and may_wait(call, item):
            with interrupts.shield():
                known = None if last is None else last.queue
                queue = queue_for(known, backend, call, on_shares)
                self._last = _Last(target, options, args, kwargs, call, queue)
                return queue.add(next(self._indices), item)
        if call.randomness is not None:
            call = self._counted(call, options)
        return Submission(backend, call, item, options, on_shares, callsite_of(options)).future

    def _counted(self, call: Call, options: Options) -> Call:
        """With a seed, items get the numbers of items 0, 1, 2 ... of a map."""
        if call.randomness is None or options.seed is None or context.a_task():
            return call
        return replace(call, randomness=call.randomness.after(next(self._numbers)))


def queue_for(
    last: SubmitQueue | None, backend: Backend, call: Call, on_shares: Callable[[Any], None]
) -> SubmitQueue:
    """The queue of the submit before, if this one is like it; else a new one."""
    if last is not None and last.joins(call):
        return last
    queue = SubmitQueue(backend, call)
    queue.open(on_shares)
    return queue
