"""Log records and warnings as bytes: written by a worker, handled in the caller.

Numbers and texts are written by ``marshal``; other extra fields of a record, and warnings, by the
codec. What does not pickle travels as its text.
"""

from __future__ import annotations

import logging
import marshal
import os
import sys
import warnings
from typing import Any

from sharedtask.serialization import codec

from .log_box import LARGEST

# The fields that travel, besides those that follow from them and those that the user has added.
_FIELDS = (
    "name",
    "levelno",
    "pathname",
    "lineno",
    "msg",
    "args",
    "funcName",
    "stack_info",
    "levelname",
    "created",
    "msecs",
    "thread",
    "threadName",
    "process",
    "processName",
    "exc_text",
    "taskName",
)
_OF_ANY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", *_FIELDS}
_PLAIN = frozenset((str, int, float, bool, type(None)))
_RECORD, _WARNING = 0, 1
_LENGTH = 5  # how many fields both have
# The fields that a record of the caller's would have of the caller.
_OF_THE_WORKER = _FIELDS[9:]
_MOST_TEXT = LARGEST // 8
_CUT = " ... [cut off: {} characters]"


# ------------------------------------------------------------------------- the worker's side


def record_as_bytes(record: logging.LogRecord, worker: Any, process: str, *, had: bool) -> bytes:
    """A record as bytes; ``had``: handlers of the worker have it too."""
    fields = record.__dict__
    values = list(map(fields.get, _FIELDS))
    if type(values[4]) is not str or not _are_plain(values[5]):
        values[4], values[5] = record.getMessage(), None
    values[14] = process
    if record.exc_info and not record.exc_text:
        values[15] = _traceback_of(record)
    extra = b"" if _OF_ANY_RECORD.issuperset(fields) else _extra(fields)
    try:
        data = marshal.dumps((_RECORD, had, worker, values, extra))
    except ValueError:  # a field of a class of the user's
        values = [value if type(value) in _PLAIN else str(value) for value in values]
        data = marshal.dumps((_RECORD, had, worker, values, extra))
    return data if len(data) <= LARGEST else _shortened(record, values, worker, had=had)


def _are_plain(args: Any) -> bool:
    if not args:
        return True
    if type(args) is dict:
        return _PLAIN.issuperset(map(type, args)) and _PLAIN.issuperset(map(type, args.values()))
    return type(args) is tuple and _PLAIN.issuperset(map(type, args))


def _traceback_of(record: logging.LogRecord) -> str | None:
    """The traceback as text; never raises."""
    try:
        return logging.Formatter().formatException(record.exc_info or (None, None, None))
    except Exception as error:  # noqa: BLE001  __str__ of the user's class may do anything
        return f"(its traceback could not be formatted: {type(error).__name__})"


def _extra(fields: dict[str, Any]) -> bytes:
    added = {name: value for name, value in fields.items() if name not in _OF_ANY_RECORD}
    return _encoded(added) or _encoded({n: _sendable(value) for n, value in added.items()})


def _encoded(value: Any) -> bytes:
    """Pickled; empty if that fails."""
    try:
        payload = codec.encode(value, back=True)
        parts = [bytes(payload.head), *map(bytes, payload.buffers)]
        return marshal.dumps(parts)
    except Exception:  # noqa: BLE001  pickling runs user code
        return b""


def _decoded(data: bytes) -> Any:
    head, *buffers = marshal.loads(data)
    return codec.decode(head, [bytearray(buffer) for buffer in buffers])


def _sendable(value: Any) -> Any:
    if type(value) in _PLAIN or _encoded(value):
        return value
    return _text_of(value)


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001  see above
        return f"(its text could not be formatted: {type(error).__name__})"


def _shortened(record: logging.LogRecord, values: list[Any], worker: Any, *, had: bool) -> bytes:
    """A record that is too large, with its texts cut off and without its extra fields."""
    values[4], values[5] = record.getMessage(), None
    values = [_cut(value) if type(value) is str else value for value in values]
    return marshal.dumps((_RECORD, had, worker, values, b""))


def _cut(text: str) -> str:
    if len(text) * 4 <= _MOST_TEXT:
        return text
    return text[: _MOST_TEXT // 4] + _CUT.format(len(text))


def warning_as_bytes(
    message: Warning | str, category: type[Warning], filename: str, line: int, module: str
) -> bytes:
    """A warning as bytes."""
    warning = message if isinstance(message, Warning) else category(message)
    data = _encoded(warning)
    if not data or len(data) > LARGEST // 2:
        near = next(cls for cls in type(warning).__mro__ if cls.__module__ == "builtins")
        data = _encoded(near(_cut(f"{type(warning).__qualname__}: {_text_of(warning)}")))
    return marshal.dumps((_WARNING, data, filename, line, module))


# ------------------------------------------------------------------------- the caller's side


def fields_of(data: bytes) -> tuple[Any, ...] | None:
    """A record or a warning, to be handled; None if a crash has overwritten it."""
    try:
        fields: Any = marshal.loads(data)
    except (ValueError, TypeError, EOFError):
        return None
    is_known = type(fields) is tuple and len(fields) == _LENGTH and fields[0] in (_RECORD, _WARNING)
    return fields if is_known else None


def handle(kind: int, *fields: Any) -> None:
    """Handle a record, or show a warning, as if it came up in this process.

    Runs handlers, filters and factories of the user, which may raise anything.
    """
    if kind == _WARNING:
        _show(*fields)
    else:
        _log(*fields)


def _log(had: bool, worker: Any, values: list[Any], extra: bytes) -> None:
    logger: Any = _loggers.get(values[0])
    if not isinstance(logger, logging.Logger):
        logger = logging.getLogger(values[0])
    if had and not logger.hasHandlers():
        return  # handlers that the task has set up had it, and here there are none
    record = _record(values)
    record.__dict__["worker"] = worker
    if extra:
        record.__dict__.update(_added(extra))
    logger.handle(record)


def _added(extra: bytes) -> dict[str, Any]:
    """The fields that the user has added."""
    try:
        added: dict[str, Any] = _decoded(extra)
    except Exception as error:  # noqa: BLE001  unpickling runs user code
        return {"unreadable": f"its extra fields cannot be unpickled here: {error!r}"}
    return added


def _record(values: list[Any]) -> logging.LogRecord:
    name, level, path, line, msg, args, function, stack, level_name, *_ = values
    given: Any = (args,) if type(args) is dict else args or ()
    record = logging.getLogRecordFactory()(
        name, level, path, line, msg, given, None, function, stack
    )
    now, since = record.created, record.relativeCreated
    fields = record.__dict__
    fields.update(zip(_OF_THE_WORKER, values[9:], strict=True))
    if sys.version_info < (3, 12):
        del fields["taskName"]
    if level_name != f"Level {level}":
        record.levelname = level_name
    record.relativeCreated = since - (now - record.created) * 1000
    return record


def _show(data: bytes, filename: str, line: int, module: str) -> None:
    warning: Warning = _decoded(data)
    found = sys.modules.get(module)
    variables = _elsewhere.setdefault(module, {}) if found is None else vars(found)
    registry = variables.setdefault("__warningregistry__", {})
    try:
        warnings.warn_explicit(warning, type(warning), filename, line, module, registry)
    except type(warning) as raised:
        if raised is not warning:  # of the program's own showwarning
            raise
        # An error here by the caller's filters, which the task has overridden: it is shown.
        warnings.showwarning(warning, type(warning), filename, line)


_loggers: dict[str, Any] = logging.root.manager.loggerDict

# What was shown of modules that only workers have.
_elsewhere: dict[str, dict[str, Any]] = {}


def module_at(filename: str, line: int) -> str:
    """The name of the module to whose line a warning was attributed; it is on the stack."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_lineno == line and frame.f_code.co_filename == filename:
            return str(frame.f_globals.get("__name__") or "<unknown>")
        frame = frame.f_back
    return os.path.splitext(filename)[0] or "<unknown>"
