"""In a worker: what tasks log, and their warnings, go to the caller.

Every record that a logger would give to its handlers is written down for the caller first. Handlers
that a task, or a module that it imports, has set up in the worker then get it as well, except those
that the caller has too: those handle it there.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

from . import log_levels, log_records

if TYPE_CHECKING:
    from collections.abc import Callable

_logger_class: Any = logging.Logger
_call_handlers = logging.Logger.callHandlers
_warnings: Any = warnings


class LogHooks:
    """Takes the records and warnings of this process, while it is ``active``."""

    def __init__(
        self, send: Callable[[bytes], object], worker: Any, process: str, apart: str = ""
    ) -> None:
        """``worker`` and ``process`` name this process in its records.

        Loggers of the package ``apart`` are those of a runtime that runs this process.
        """
        self._send, self._worker, self._process = send, worker, process
        self._apart = apart
        self._pid = os.getpid()
        self._show = _warnings.showwarning
        self.active = False
        self.has_warned = False  # since the last call began

    def install(self) -> None:
        """Take records and warnings from now on."""
        hooks = self

        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            hooks._take(logger, record)

        self._installed = call_handlers
        self._show = _warnings.showwarning
        _logger_class.callHandlers = call_handlers
        _warnings.showwarning = self._warn

    def remove(self) -> None:
        """Take none any more, for others that use this process."""
        if _logger_class.callHandlers is self._installed:
            _logger_class.callHandlers = _call_handlers
        if _warnings.showwarning == self._warn:
            _warnings.showwarning = self._show

    def begin_call(self) -> None:
        """Warnings that an earlier call has shown are shown again, if its caller wants that."""
        if self.has_warned:
            self.has_warned = False
            with warnings.catch_warnings():  # its end has Python forget what it has shown
                pass

    def _is_ours(self) -> bool:
        return self.active and os.getpid() == self._pid  # a task may have forked

    def _take(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        if not self._is_ours() or (self._apart and logger.name.partition(".")[0] == self._apart):
            _call_handlers(logger, record)
            return
        own = _own_handlers(logger)
        try:
            data = log_records.record_as_bytes(record, self._worker, self._process, had=bool(own))
        except Exception:  # noqa: BLE001  arguments that do not fit the message, as in any handler
            logging.Handler().handleError(record)
        else:
            self._send(data)
        for handler in own:
            if record.levelno >= handler.level:
                handler.handle(record)

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if file is not None or not self._is_ours():
            self._show(message, category, filename, lineno, file, line)
            return
        self.has_warned = True
        module = log_records.module_at(filename, lineno)
        self._send(log_records.warning_as_bytes(message, category, filename, lineno, module))


def _own_handlers(logger: logging.Logger) -> list[Any]:
    """The handlers of this worker that a record reaches, and that the caller has not."""
    found: list[Any] = []
    at: logging.Logger | None = logger
    while at is not None:
        if at.handlers:  # rare
            found += [handler for handler in at.handlers if _is_own(at.name, handler)]
        at = at.parent if at.propagate else None
    return found


def _is_own(name: str, handler: Any) -> bool:
    return type(handler) is not logging.NullHandler and not log_levels.has_like(name, handler)
