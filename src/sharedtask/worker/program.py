"""What the caller's process is, which its workers are as well: read at each call, followed there.

caller   read the settings -> as before? the same Program -> its token travels with the call
worker   another Program, or settings that a task has changed? -> write what differs
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharedtask.serialization import codec

from .settings import SETTINGS, Setting, limits_blas

if TYPE_CHECKING:
    from collections.abc import Generator

# ------------------------------------------------------------------------- the caller's side


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Program:
    """The settings of the caller's process, in the order of ``SETTINGS``; None where one is left.

    ``generation`` is that of its import path; with ``limits_blas`` the environment leaves to us how
    many threads numerical libraries use.
    """

    values: tuple[tuple[Any] | None, ...]
    generation: int
    limits_blas: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    """Settings as they were read, and what was made of them: for workers here, and elsewhere."""

    state: tuple[Any, ...]
    here: Program
    elsewhere: Program


# Threads may have settings of their own, as numpy's error state: so the last few are known.
_recent: list[_Seen] = []
_MOST = 4


def current(*, here: bool = True) -> Program:
    """The settings of this process as they are now: the same object while they are the same.

    ``here`` is for workers of this machine, which follow its environment and folders in full.
    """
    state = _state()
    seen = next((seen for seen in _recent if seen.state == state), None)
    if seen is None:
        seen = _Seen(state, _program(state), _program(state, elsewhere=True))
        _recent[:] = [seen, *_recent[: _MOST - 1]]
    return seen.here if here else seen.elsewhere


def _state() -> tuple[Any, ...]:
    return tuple([setting.read() for setting in SETTINGS])


def _program(state: tuple[Any, ...], *, elsewhere: bool = False) -> Program:
    ways = [setting.elsewhere if elsewhere else setting.here for setting in SETTINGS]
    values = [None if way is None else (way.plain(v),) for way, v in zip(ways, state, strict=True)]
    (_, _, generation), environ, *_ = state
    travels = tuple(map(_that_travels, SETTINGS, values))
    return Program(travels, generation, limits_blas(environ))


def _that_travels(setting: Setting, value: tuple[Any] | None) -> tuple[Any] | None:
    """A function among the settings may hold what cannot be pickled: then the caller is told."""
    try:
        codec.encode(value)
    except codec.FAILURES as error:
        msg = f"workers do not have {setting.name} of this process, which cannot be sent: {error}"
        warnings.warn(msg, RuntimeWarning, stacklevel=2)
        return None
    return value


# ----------------------------------------------------------------------------- in a worker


class Follower:
    """Makes a worker what the caller is. ``elsewhere`` for one that is not of its machine."""

    def __init__(self, *, elsewhere: bool = False) -> None:
        self._elsewhere = elsewhere
        self._program: Program | None = None
        self._state: tuple[Any, ...] = ()

    def follow(self, program: Program) -> None:
        """Write what differs, be it that the caller has changed it, or an earlier task here."""
        if program is self._program and self._state == _state():
            return
        known = self._program.values if self._program is not None else ((),) * len(SETTINGS)
        was = self._state or (None,) * len(SETTINGS)
        for setting, value, old, state in zip(SETTINGS, program.values, known, was, strict=True):
            if value is not None and (value != old or setting.read() != state):
                self._write(setting, value[0])
        self._program = program
        self.settle()

    def settle(self) -> None:
        """What this process is now is right."""
        self._state = _state()

    def _write(self, setting: Setting, value: Any) -> None:
        way = setting.elsewhere if self._elsewhere else setting.here
        try:
            assert way is not None  # noqa: S101  it travelled
            way.write(value)
        except Exception as error:  # noqa: BLE001  a locale, say, that this machine does not have
            msg = f"this worker does not have {setting.name} of its caller: {error}"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)


@contextlib.contextmanager
def restored() -> Generator[None]:
    """After this block the settings are what they were before: others use this process as well."""
    before = _state()
    try:
        yield
    finally:
        for setting, value in zip(SETTINGS, before, strict=True):
            if setting.read() != value:
                setting.restore(value)
