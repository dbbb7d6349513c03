"""Process settings of the caller, read at each call and applied in its workers.

caller   read the settings -> as before? the same ProcessSettings -> its token is sent with the call
worker   another ProcessSettings, or settings that a task has changed? -> write the differences
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import signal
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedtask.serialization import codec
from sharedtask.system.records import dataclass

from .settings import SETTINGS, Setting, is_alone, limits_blas

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

# ------------------------------------------------------------------------- the caller's side


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ProcessSettings:
    """The settings of the caller's process, in the order of ``SETTINGS``; None: leave alone.

    ``generation`` is that of its import path; ``limits_blas`` if the environment does not set the
    number of threads of numerical libraries.
    """

    values: tuple[tuple[Any] | None, ...]
    generation: int
    limits_blas: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    """Settings as they looked at a glance and were read, and those for workers."""

    glance: tuple[Any, ...]
    state: tuple[Any, ...]
    here: ProcessSettings
    elsewhere: ProcessSettings


_READS = [setting.read for setting in SETTINGS]
_GLANCES = [setting.glance or setting.read for setting in SETTINGS]
# Threads may have settings of their own, as numpy's error state: so the last few are kept.
_recent: list[_Seen] = []
_MOST = 4
_SIGNALS = [*map(int, signal.valid_signals())]
# The function in C: the one around it makes enums, which takes ten times as long.
_handler_of: Callable[[int], Any] = getattr(signal.getsignal, "__wrapped__", signal.getsignal)
# Other threads may change settings all the time.
_TRIES = 100
# So long a look ahead counts: what changes settings unseen, such as a thread of a library in C that
# calls back, has little time for it, and a worker that waited longer has time for a look.
_LOOK_SECONDS = 0.02
# A thread that was started begins within this time.
_BEGIN_SECONDS = 0.1


def current(*, here: bool = True) -> ProcessSettings:
    """The present settings of this process: the same object while they are the same.

    ``here`` is for workers of this machine, which follow its environment and folders in full.
    """
    glance = _glance()
    recent = _recent.copy()
    for seen in recent:
        if seen.glance == glance:
            break
    else:
        seen = _seen(recent)
    if not recent or recent[0] is not seen:
        _recent[:] = [seen, *(other for other in recent if other.here is not seen.here)][:_MOST]
    return seen.here if here else seen.elsewhere


def _handlers() -> list[Any]:
    """The handlers of all signals of this process."""
    return list(map(_handler_of, _SIGNALS))


# By way of a list: a tuple that is being made can be found by ``gc.get_objects`` in another thread,
# and then Python cannot complete it (python/cpython issue 59313).
def _state() -> tuple[Any, ...]:
    return (*map(operator.call, _READS),)


def _glance() -> tuple[Any, ...]:
    return (*map(operator.call, _GLANCES),)


def _seen(recent: list[_Seen]) -> _Seen:
    """Read the settings, which may look other than before and be the same."""
    glance, state = _read()
    for known in recent:
        if known.state == state:
            return replace(known, glance=glance)
    return _Seen(glance, state, _settings_for(state), _settings_for(state, elsewhere=True))


def _read() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The settings with their glance: an empty one, which is not found again, while they change."""
    for _ in range(_TRIES):
        glance, state = _glance(), _state()
        if glance == _glance():
            return glance, state
    return (), _state()


def _settings_for(state: tuple[Any, ...], *, elsewhere: bool = False) -> ProcessSettings:
    transfers = [setting.elsewhere if elsewhere else setting.here for setting in SETTINGS]
    values = [
        None if transfer is None else (transfer.plain(v),)
        for transfer, v in zip(transfers, state, strict=True)
    ]
    (_, _, generation), environ, *_ = state
    travels = tuple(map(_that_travels, SETTINGS, values))
    return ProcessSettings(travels, generation, limits_blas(environ))


def _that_travels(setting: Setting, value: tuple[Any] | None) -> tuple[Any] | None:
    """A function among the settings may refer to unpicklable values: warn the caller then."""
    try:
        codec.encode(value)
    except codec.FAILURES as error:
        msg = f"workers do not have {setting.name} of this process, which cannot be sent: {error}"
        warnings.warn(msg, RuntimeWarning, stacklevel=2)
        return None
    return value


# ----------------------------------------------------------------------------- in a worker


class SettingsFollower:
    """Applies the caller's settings in a worker; ``elsewhere`` if on another machine."""

    def __init__(self, *, elsewhere: bool = False) -> None:
        self._elsewhere = elsewhere
        self._settings: ProcessSettings | None = None
        self._state: tuple[Any, ...] = ()
        self._glance: tuple[Any, ...] = ()
        self._begun: tuple[Any, ...] = ()  # the glance before they were written
        self._is_begun = False  # the last chunk was the first of its call
        self._looked_at = -math.inf  # when they were seen unchanged, by a look ahead
        self._handlers = _handlers()
        self._threads, self._started_at = 0, -math.inf  # native ones, and when there were more

    def look_ahead(self) -> None:
        """While the worker waits: see whether tasks left the settings as they were.

        It saves the next chunk a look, if that comes soon. Other threads of a task, and its signal
        handlers, may change them at any moment. Only the first chunk of a call looks: after the
        others another one of the call will come, most often.
        """
        if not self._is_begun:
            return
        self._is_begun, self._looked_at = False, -math.inf
        with contextlib.suppress(Exception):  # the next chunk tells what cannot be read any more
            if (
                not self._threads_are_new()
                and is_alone()
                and _handlers() == self._handlers
                and self._glance == _glance()
            ):
                self._looked_at = time.monotonic()

    def _threads_are_new(self) -> bool:
        """Whether a thread was started lately: Python counts it only when it has begun.

        Raises:
            OSError: The system does not tell.

        Source:
            ``proc(5)``: each thread has a folder, and so a link.
        """
        now, threads = time.monotonic(), os.stat("/proc/self/task").st_nlink
        if threads > self._threads:
            self._started_at = now
        self._threads = threads
        return now - self._started_at < _BEGIN_SECONDS

    def forget_look(self) -> None:
        """User code runs, which may change settings."""
        self._looked_at = -math.inf
        _at_rest.is_as_found = False

    def apply(self, settings: ProcessSettings) -> None:
        """Write the settings that differ, changed by the caller or by an earlier task here."""
        looked_at, is_same, self._is_begun = self._looked_at, settings is self._settings, True
        if is_same and time.monotonic() - looked_at < _LOOK_SECONDS:
            self.forget_look()
            return
        now = _at_rest.glance if self._elsewhere and _at_rest.is_as_found else _glance()
        self.forget_look()
        if is_same and self._glance == now:
            return
        known = self._settings.values if self._settings is not None else ((),) * len(SETTINGS)
        changed = _differing(self._glance, now, self._state)
        written = [
            (setting, value[0])
            for setting, value, old in zip(SETTINGS, settings.values, known, strict=True)
            if value is not None and (value != old or setting in changed)
        ]
        for setting, value in written:
            self._write(setting, value)
        self._settings = settings
        looks_other = any(setting.glance is not None for setting, _ in written)  # at each write
        if self._elsewhere and is_same and now == self._begun and not looks_other:
            return  # they were written to the same before, and look as they did then
        self._begun = now
        self.accept_changes()

    def accept_changes(self) -> None:
        """Take the present settings of this process as the right ones."""
        now = _glance()
        self._state, self._glance = _state_at(now, self._glance, self._state), now

    def _write(self, setting: Setting, value: Any) -> None:
        transfer = setting.elsewhere if self._elsewhere else setting.here
        try:
            assert transfer is not None  # noqa: S101  it travelled
            transfer.write(value)
        except Exception as error:  # noqa: BLE001  a locale, say, that this machine does not have
            msg = f"this worker does not have {setting.name} of its caller: {error}"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)


@contextlib.contextmanager
def restored() -> Generator[None]:
    """Restore the settings after this block, for others that use this process.

    A follower of settings ``elsewhere`` applies them in such a block.
    """
    glance = _glance()
    state = _state_at(glance, _at_rest.glance, _at_rest.state)
    _at_rest.glance, _at_rest.state, _at_rest.is_as_found = glance, state, True
    try:
        yield
    finally:
        for place, setting in enumerate(SETTINGS):
            if _has_changed(setting, glance[place], state[place]):
                setting.restore(state[place])


def _has_changed(setting: Setting, seen: Any, value: Any) -> bool:
    """Whether a setting is other than it was, or cannot be read any more."""
    try:
        if setting.glance is not None and setting.glance() == seen:
            return False
        return bool(setting.read() != value)
    except Exception:  # noqa: BLE001  a task has deleted sys.argv, say
        return True


class _AtRest:
    """The settings as others had left this process when the last such block began.

    ``is_as_found`` until user code has run in it.
    """

    glance: tuple[Any, ...] = ()
    state: tuple[Any, ...] = ()
    is_as_found: bool = False


_at_rest = _AtRest()


def _state_at(
    glance: tuple[Any, ...], known_glance: tuple[Any, ...], known: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The present state, of which only what looks other than as it is known is read."""
    if not known_glance:
        return _state()
    pairs = zip(_READS, known, glance, known_glance, strict=True)
    return tuple(state if one == other else read() for read, state, one, other in pairs)


def _differing(
    glance: tuple[Any, ...], now: tuple[Any, ...], state: tuple[Any, ...]
) -> list[Setting]:
    """The settings that are other than they were at a glance, in their order."""
    if not glance:
        return list(SETTINGS)
    pairs = zip(SETTINGS, glance, now, state, strict=True)
    return [
        setting
        for setting, one, other, value in pairs
        if one != other and (setting.glance is None or setting.read() != value)
    ]
