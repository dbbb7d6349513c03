"""Which part of a value is to blame when it cannot be encoded."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from sharedtask.errors import UnshareableError
from sharedtask.sharing import codec

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEPTH = 12


def culprit(value: object, name: str) -> str:
    """Say what inside ``value`` cannot be pickled: "cfg.pool.lock is a _thread.lock".

    ``value`` is known to fail. The search goes down into the first part that fails as well.
    """
    path, part = name, value
    for _ in range(_DEPTH):
        if _refuses(part):
            break
        step = next(((p, v) for p, v in _parts(part) if not encodes(v)), None)
        if step is None:
            break
        path, part = path + step[0], step[1]
    cls = type(part)
    known = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return f"{path} is a {known}{cls.__qualname__}"


def _refuses(value: object) -> bool:
    """True where a class of ours says itself that it cannot be pickled, and why."""
    if not type(value).__module__.startswith("sharedtask."):
        return False
    try:
        value.__reduce_ex__(codec.PROTOCOL)
    except Exception:  # noqa: BLE001  whatever it says
        return True
    return False


def unshareable(value: object, name: str, error: Exception, which: str) -> UnshareableError:
    """The error of a shared value that cannot be encoded; ``which`` begins its text."""
    return UnshareableError(f"{which} cannot be shared: {culprit(value, name)}. ({error})")


def encodes(value: object) -> bool:
    """True where ``value`` can be encoded; found out by trying."""
    try:
        codec.encode(value)
    except BaseException:  # noqa: BLE001  pickling runs user code
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r}]", item
    elif isinstance(value, (list, tuple, set, frozenset)):
        for position, item in enumerate(value):
            yield f"[{position}]", item
    elif isinstance(value, types.FunctionType):
        yield from _captured(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    else:
        yield from _attributes(value)


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function brings along: closure cells, defaults, and the globals that it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" captures {name!r}, which", cell.cell_contents
        except ValueError:
            continue
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield " has a default, which", default
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f" uses the global {name!r}, which", function.__globals__[name]


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    for name, item in getattr(value, "__dict__", {}).items():
        yield f".{name}", item
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)
