"""The caller's settings of ``logging``: read at each call, applied in its workers.

Levels decide in the worker what is logged at all; everything else (filters, handlers, their levels,
``propagate``) is the caller's, where the records are handled. Of the handlers it is only told which
there are: see ``Handlers``.

Levels that a task sets in its worker stay there, as a task that calls ``logging.basicConfig``
expects. Those that a module sets while the worker imports it for the task do not: the caller has
imported it before, and set its own since.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, NamedTuple, TypeAlias

# The name of a logger, the class of its handler, and the file or stream that it writes to.
Handlers: TypeAlias = frozenset[tuple[str, str, str, str]]

_root: Any = logging.root
_manager: Any = logging.root.manager
# References to all handlers that there are.
_made: Any = getattr(logging, "_handlerList", ())
# A mark among the answers that a logger remembers: it forgets them when any level changes.
_MARK = "sharedtask"


class Config(NamedTuple):
    """What workers need to know of ``logging`` in the caller.

    ``levels`` are those that are set; ``others`` those of loggers of other classes, which a worker
    must not make by itself.
    """

    disabled: int
    levels: dict[str, int]
    others: dict[str, int]
    handlers: Handlers


NONE = Config(0, {}, {}, frozenset())


class _State:
    """What was read last, and what was applied last."""

    def __init__(self) -> None:
        self.config = NONE
        # All loggers and placeholders of loggers, and the loggers among them.
        self.found: tuple[dict[str, Any], list[tuple[str, logging.Logger]]] = ({}, [])
        self.handlers: tuple[Any, ...] = ()  # of the root logger
        self.made = -1  # how many handlers there were
        self.applied = NONE
        self.loggers = -1  # how many loggers there were


_state = _State()


def read() -> Config:
    """The present settings: the same object while no level and no handler was changed."""
    state, cache = _state, getattr(_root, "_cache", {})
    if _MARK in cache and state.made == len(_made) and state.handlers == tuple(_root.handlers):
        return state.config
    cache[_MARK] = True  # before the levels are read: another thread may change them meanwhile
    state.handlers = tuple(_root.handlers)
    state.made = len(_made)
    state.config = _config()
    return state.config


def _config() -> Config:
    levels = {"root": _root.level}
    others: dict[str, int] = {}
    handlers = {_described("root", handler) for handler in _root.handlers}
    for name, logger in _named():
        if logger.level:
            (levels if type(logger) is logging.Logger else others)[name] = logger.level
        if logger.handlers:
            handlers.update(_described(name, handler) for handler in logger.handlers)
    return Config(_manager.disable, levels, others, frozenset(handlers))


def _named() -> list[tuple[str, logging.Logger]]:
    """All loggers but the root, with their names: looked for again where there are others."""
    there, (known, named) = _manager.loggerDict.copy(), _state.found
    if there != known:
        named = [(name, each) for name, each in there.items() if isinstance(each, logging.Logger)]
        _state.found = there, named
    return named


def _described(name: str, handler: Any) -> tuple[str, str, str, str]:
    cls = type(handler)
    return name, cls.__module__, cls.__qualname__, _target(handler)


def _target(handler: Any) -> str:
    """The file or the stream that a handler writes to, as far as it is known."""
    target = getattr(handler, "baseFilename", None)
    if isinstance(target, str):
        return target
    stream = getattr(handler, "stream", None)
    for name in ("stdout", "stderr"):
        if stream is not None and stream in (getattr(sys, name), getattr(sys, f"__{name}__")):
            return name
    return ""


# ----------------------------------------------------------------------------- in a worker


def write(config: Config) -> None:
    """Apply the caller's settings where they are others than before."""
    state, known = _state, _state.applied
    for name, level in config.levels.items():
        if known.levels.get(name) != level:
            logger = logging.getLogger(None if name == "root" else name)
            if logger.level != level:  # else all loggers would forget what they answered
                logger.setLevel(level)
    for name in (known.levels.keys() | known.others.keys()) - config.levels.keys():
        if name not in config.others and isinstance(_manager.loggerDict.get(name), logging.Logger):
            logging.getLogger(name).setLevel(logging.NOTSET)
    if config.disabled != known.disabled:
        logging.disable(config.disabled)
    state.applied = config
    if config.others != known.others:
        _apply_to_others()
    read()  # what ``settle`` compares with


def _apply_to_others() -> None:
    """Set levels of loggers that a library makes with a class of its own, where it has."""
    state = _state
    state.loggers = len(_manager.loggerDict)
    for name, level in state.applied.others.items():
        logger = _manager.loggerDict.get(name)
        if isinstance(logger, logging.Logger) and logger.level != level:
            logger.setLevel(level)


def settle() -> None:
    """After a worker has imported what a task needs: undo the levels that modules have set."""
    state = _state
    if state.applied.others and state.loggers != len(_manager.loggerDict):
        _apply_to_others()
    if _MARK in getattr(_root, "_cache", {}):
        return
    before = {**state.config.levels, **state.config.others}
    ours = {**state.applied.levels, **state.applied.others}
    for name, level in ours.items():
        logger = _root if name == "root" else _manager.loggerDict.get(name)
        wanted = before.get(name, level)
        if isinstance(logger, logging.Logger) and logger.level != wanted:
            logger.setLevel(wanted)
    read()


def restore(config: Config) -> None:
    """Set levels as they were, for others that use this process."""
    wanted = {**config.levels, **config.others}
    for name, logger in _named():
        if logger.level != wanted.get(name, 0):
            logger.setLevel(wanted.get(name, 0))
    if _root.level != wanted.get("root", logging.WARNING):
        _root.setLevel(wanted.get("root", logging.WARNING))
    if _manager.disable != config.disabled:
        logging.disable(config.disabled)
    _state.applied = NONE


def has_like(name: str, handler: Any) -> bool:
    """Whether the caller's logger of this name has a handler of the same class and target.

    Then that one handles the record, and this one must not: a module that calls
    ``logging.basicConfig`` is imported by both.
    """
    handlers = _state.applied.handlers
    return bool(handlers) and _described(name, handler) in handlers
