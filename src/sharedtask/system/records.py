"""Data classes that cost little until they are used.

``dataclasses`` writes and compiles the source of up to six methods for each class, which was nearly
half of the time that it took to import this library. Here the methods that are alike in all classes
are the same functions, and ``__init__`` is compiled when the first object is made.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, Field, FrozenInstanceError, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

__all__ = ["dataclass", "field"]


@dataclass_transform(field_specifiers=(Field, field))
def dataclass(
    *,
    frozen: bool = False,
    eq: bool = True,
    repr: bool = True,  # noqa: A002  as in the standard library
    slots: bool = False,
    weakref_slot: bool = False,
    kw_only: bool = False,
) -> Callable[[type[T]], type[T]]:
    """As ``dataclasses.dataclass``; ``fields``, ``replace`` and the like take its classes too.

    Examples:
        >>> @dataclass(frozen=True, slots=True)
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> Point(1)
        Point(x=1, y=0)
    """

    def made(cls: type[T]) -> type[T]:
        own = set(vars(cls))
        plain = dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=kw_only)
        slotted = dataclasses.dataclass(
            init=False,
            repr=False,
            eq=False,
            slots=True,
            weakref_slot=weakref_slot,
            kw_only=kw_only,
        )
        new: Any = slotted(cls) if slots else plain(cls)
        names = tuple(each.name for each in dataclasses.fields(new))
        added: dict[str, Any] = {"_record_values": staticmethod(_getter(names))}
        if repr:
            added["__repr__"] = _repr
        if eq:
            added["__eq__"], added["__hash__"] = _eq, _hash if frozen else None
        if frozen:
            added["__setattr__"], added["__delattr__"] = _set, _delete
            if slots:
                added["__getstate__"], added["__setstate__"] = _getstate, _setstate
        for name, value in added.items():
            if name not in own or (name == "__hash__" and vars(cls)[name] is None):
                setattr(new, name, value)
        if "__init__" not in own:
            new.__init__ = _init_later(new, frozen=frozen)
        found: type[T] = new
        return found

    return made


def _getter(names: tuple[str, ...]) -> Callable[[Any], Any]:
    """What gives the values of the fields that are compared: all, as one object."""
    return attrgetter(*names) if names else lambda _: ()


# ------------------------------------------------------------------- alike in all classes


def _repr(self: Any) -> str:
    shown = (
        (each.name, getattr(self, each.name)) for each in dataclasses.fields(self) if each.repr
    )
    return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in shown)})"


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self._record_values(self) == self._record_values(other)


def _hash(self: Any) -> int:
    return hash(self._record_values(self))


def _set(self: Any, name: str, value: object) -> None:  # noqa: ARG001
    msg = f"cannot assign to field {name!r}"
    raise FrozenInstanceError(msg)


def _delete(self: Any, name: str) -> None:  # noqa: ARG001
    msg = f"cannot delete field {name!r}"
    raise FrozenInstanceError(msg)


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in dataclasses.fields(self)]


def _setstate(self: Any, state: Iterable[Any]) -> None:
    for each, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, each.name, value)


# ------------------------------------------------------------------- compiled at first use


def _init_later(cls: Any, *, frozen: bool) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        made = cls.__init__ = _init_of(cls, frozen=frozen)
        made(self, *args, **kwargs)

    return __init__


def _init_of(cls: Any, *, frozen: bool) -> Callable[..., None]:
    fields = dataclasses.fields(cls)
    scope: dict[str, Any] = {"_missing": MISSING, "_set": object.__setattr__}
    lines = [line for each in fields for line in _lines(cls, each, scope, frozen=frozen)]
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    positional = [_parameter(each) for each in fields if each.init and not each.kw_only]
    by_name = [_parameter(each) for each in fields if each.init and each.kw_only]
    given = ", ".join(["self", *positional, *(["*", *by_name] if by_name else [])])
    body = "\n ".join(lines or ["pass"])
    exec(f"def __init__({given}):\n {body}", scope)  # noqa: S102  of names that are in our source
    made: Callable[..., None] = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


def _parameter(each: Field[Any]) -> str:
    if each.default_factory is not MISSING:
        return f"{each.name}=_missing"
    return each.name if each.default is MISSING else f"{each.name}=_default_{each.name}"


def _lines(cls: Any, each: Field[Any], scope: dict[str, Any], *, frozen: bool) -> list[str]:
    """The statement that sets a field; in ``scope`` what it refers to."""
    name = each.name
    value = name
    if each.default is not MISSING:
        scope[f"_default_{name}"] = each.default
        value = name if each.init else f"_default_{name}"
    elif each.default_factory is not MISSING:
        scope[f"_make_{name}"] = each.default_factory
        value = f"_make_{name}()" + (f" if {name} is _missing else {name}" if each.init else "")
    elif not each.init:
        return []
    setter = getattr(getattr(cls, name, None), "__set__", None)
    if not frozen:
        return [f"self.{name} = {value}"]
    if setter is None:
        return [f"_set(self, {name!r}, {value})"]
    scope[f"_set_{name}"] = setter
    return [f"_set_{name}(self, {value})"]
