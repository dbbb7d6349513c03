"""Packs an exception in a worker so that the caller gets it as it was raised.

The reducers of ``kinds/exceptions.py`` take exceptions apart field by field. A raised exception
also needs this:

- a class with its own ``__reduce__`` is sent that way, and fields that it omits are added
- an unpicklable field, such as a lock in an attribute, is left out, and a note says so
- the round trip is tested in the worker, before anything is sent
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

from sharedtask.serialization.kinds import exceptions as kind

from . import codec
from .unpicklable import class_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["packed"]

# Size limit of fields that are sent unasked: the object of an AttributeError, which may be a whole
# model, and fields that a class's own ``__reduce__`` omits.
_ASIDE = 1 << 16


def packed(error: Exception) -> bytes | None:
    """Bytes that unpickle to an equal exception, tested here; None if there are none."""
    for pickler in (_Raised, _portable()):
        try:
            data = codec.encode_inband(error, pickler, back=True)
            loaded = codec.decode(data)
        except Exception:  # noqa: BLE001, S112  user code runs here
            continue
        if type(loaded).__qualname__ == type(error).__qualname__:
            return data
    return None


class _Raised(codec.ValuePickler):
    """Takes an exception apart, and those inside it."""

    def reducer_override(self, obj: Any) -> Any:
        if issubclass(type(obj), BaseException):
            return self.reduce(obj)
        return super().reducer_override(obj)

    def reduce(self, error: BaseException) -> Any:
        if not kind.has_own_way(type(error)):
            return self.by_fields(error)
        return _in_its_own_way(error) or self.by_fields(error)

    def by_fields(self, error: BaseException) -> Any:
        return kind.reduction(error, _without_large_objects(kind.Fields.of(error)))


def _without_large_objects(fields: kind.Fields) -> kind.Fields:
    members = [
        (cls, name, value)
        for cls, name, value in fields.members
        if (cls, name) != (AttributeError, "obj") or _is_small(value)
    ]
    return fields._replace(members=members)


# ------------------------------------------------------------------- a __reduce__ of their own


class _OwnWay:
    """Pickles by the exception's own ``__reduce_ex__``."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.error.__reduce_ex__(protocol)


def _in_its_own_way(error: BaseException) -> Any:
    """The class's own reduction, then the fields that it omits; None if it fails."""
    try:
        loaded = codec.decode(codec.encode_inband(_OwnWay(error), back=True))
        if type(loaded) is not type(error):
            return None
        return complete, (_OwnWay(error), _left_out(error, loaded))
    except Exception:  # noqa: BLE001  user code runs here
        return None


def complete(error: BaseException, state: tuple[Any, dict[str, Any], list[Any]]) -> BaseException:
    """Set the fields that the class's own reduction omits."""
    kind.fill(error, state)
    return error


def _left_out(error: BaseException, loaded: BaseException) -> tuple[Any, ...]:
    """The fields of ``error`` that ``loaded`` lacks or has changed, if they can be sent."""
    here, there = kind.Fields.of(error), kind.Fields.of(loaded)
    known = {(cls, name): value for cls, name, value in there.members}
    attributes = {
        name: value
        for name, value in here.attributes.items()
        if _differs(value, there.attributes.get(name, _NOTHING))
    }
    members = [
        (cls, name, value)
        for cls, name, value in here.members
        if _differs(value, known.get((cls, name), _NOTHING))
    ]
    args = here.args if _differs(here.args, there.args) else there.args
    return args, attributes, members


_NOTHING = object()


def _differs(here: Any, there: Any) -> bool:
    """Whether to set a field again: it differs, and is small enough to be sent unasked."""
    return (
        here is not there and _is_small(here) and (there is _NOTHING or _data(here) != _data(there))
    )


def _data(value: object) -> bytes | None:
    try:
        return codec.encode_inband(value, back=True)
    except Exception:  # noqa: BLE001  user code
        return None


class _Limited(io.BytesIO):
    """A stream of at most ``_ASIDE`` bytes."""

    def write(self, data: Any, /) -> int:
        if self.tell() + memoryview(data).nbytes > _ASIDE:
            raise OverflowError
        return super().write(data)


def _is_small(value: object) -> bool:
    """Whether a value can be encoded in a few bytes."""
    try:
        codec.decode(codec.encode_inband(value, file=_Limited(), back=True))
    except Exception:  # noqa: BLE001  user code
        return False
    return True


# ---------------------------------------------------------------------- fields that are left out


def _portable() -> Callable[..., codec.ValuePickler]:
    known: dict[int, kind.Fields] = {}
    return lambda *args: _Portable(known, *args)


class _Portable(_Raised):
    """Leaves out fields that cannot be sent. ``known`` has the kept fields of each exception."""

    def __init__(self, known: dict[int, kind.Fields], *args: Any) -> None:
        super().__init__(*args)
        self.known = known

    def by_fields(self, error: BaseException) -> Any:
        found = self.known.get(id(error))
        if found is None:
            self.known[id(error)] = kind.Fields((), {}, [])  # if it contains itself
            found = self.known[id(error)] = self.portable(error)
        return kind.reduction(error, found)

    def portable(self, error: BaseException) -> kind.Fields:
        """Its fields without those that cannot be sent, and with notes about these."""
        all_ = _without_large_objects(kind.Fields.of(error))
        args = tuple(arg if self.travels(arg) else _text(arg) for arg in all_.args)
        attributes = {n: v for n, v in all_.attributes.items() if self.travels(v)}
        members = [each for each in all_.members if self.travels(each[2])]
        lost = list(_lost(all_, kind.Fields(args, attributes, members)))
        notes = attributes.get("__notes__", [])
        if lost and isinstance(notes, list):
            attributes["__notes__"] = [*notes, *lost]
        return kind.Fields(args, attributes, members)

    def travels(self, value: object) -> bool:
        try:
            pickler = functools.partial(_Portable, self.known)
            codec.decode(codec.encode_inband(value, pickler, back=True))
        except Exception:  # noqa: BLE001  user code
            return False
        return True


def _lost(all_: kind.Fields, kept: kind.Fields) -> Iterator[str]:
    """A note for each field that is left out."""
    for place, (arg, left) in enumerate(zip(all_.args, kept.args, strict=True)):
        if arg is not left:
            yield _note(f"args[{place}]", arg, "; this is its text")
    for name, value in all_.attributes.items():
        if name not in kept.attributes:
            yield _note(f"attribute {name!r}", value)
    names = {(cls, name) for cls, name, _ in kept.members}
    for cls, name, value in all_.members:
        if (cls, name) not in names:
            yield _note(f"attribute {name!r}", value)


def _text(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  user code
        return f"<{class_name(value)}>"


def _note(which: str, value: object, more: str = "") -> str:
    kind_ = class_name(value)
    return f"its {which}, a {kind_}, cannot be pickled and stayed in the worker{more}"
