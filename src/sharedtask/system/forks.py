"""What the library does before a fork, and in the child, in one order.

A fork copies the memory of the whole process, but only the thread that forked. So in the child each
part of the library gives up what belongs to the parent. A part relies on others that have done so
before: one that takes a lock needs it reset, and one that leaves work to a thread needs a new one.
"""

from __future__ import annotations

import enum
import functools
import itertools
import os
import weakref
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Step(enum.IntEnum):
    """The steps in a child, in their order."""

    SIGNALS = enum.auto()  # the thread that forked is the main one
    IDENTITY = enum.auto()  # pids and names of this process
    LOCKS = enum.auto()  # are free: from here on they may be taken
    THREADS = enum.auto()  # are started when they are needed
    HELD = enum.auto()  # descriptors, workers and connections of the parent are given up
    OUTCOMES = enum.auto()  # that only the parent gets; callbacks of the user may run


class Abandons(Protocol):
    """An object with state that a forked child must not use."""

    def abandon(self) -> None:
        """In a forked child: drop the state that belongs to the parent."""


_calls: dict[int, tuple[Step, Callable[[], object]]] = {}
_numbers = itertools.count()


def in_child(step: Step, call: Callable[[], object]) -> None:
    """Run ``call()`` in forked children; within a step in the order of registration.

    Examples:
        >>> in_child(Step.THREADS, threads.clear)
    """
    _calls[next(_numbers)] = step, call


def abandon_in_child(heir: Abandons, step: Step = Step.HELD) -> None:
    """Call ``heir.abandon()`` in forked children, for as long as the object lives.

    Examples:
        >>> abandon_in_child(backend)
    """
    number = next(_numbers)
    # Not a Python function: Ctrl-C could interrupt it where an object is freed.
    reference = weakref.ref(heir, functools.partial(_calls.pop, number))
    _calls[number] = step, functools.partial(_abandon, reference)


def _abandon(reference: weakref.ref[Abandons]) -> None:
    heir = reference()
    if heir is not None:
        heir.abandon()


_before: list[Callable[[], object]] = []


def before(call: Callable[[], object]) -> None:
    """Run ``call()`` in the parent before each fork."""
    _before.append(call)


def _prepare() -> None:
    for call in _before:
        call()


class Known:
    """The process in which the steps of a child were taken last, or that never was a child.

    Where the pid is another one, C has forked this process and told Python nothing.
    """

    pid = os.getpid()


def enter_child() -> None:
    """All of them run, whatever one raises; the interpreter prints the first error."""
    Known.pid = os.getpid()
    failure: BaseException | None = None
    for _, call in sorted(_calls.values(), key=itemgetter(0)):
        try:
            call()
        except BaseException as error:  # noqa: BLE001  raised below
            failure = failure or error
    if failure is not None:
        raise failure


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_prepare, after_in_child=enter_child)
