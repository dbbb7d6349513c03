"""Values of one message that are encoded each on its own: no two decode to one object.

encode   values -> table    functions and classes sent by value, large arrays: once for all
bytes    one string for each value, which refers to the table by position
decode   table, bytes -> a value of its own, but for what is in the table
"""

from __future__ import annotations

import contextlib
import functools
import threading
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.memory import mapping
from sharedtask.system.records import dataclass, field

from . import codec

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import numpy.typing as npt


@dataclass(slots=True)
class Table:
    """What values have in common: arrays for which ``is_common``, and what code defines."""

    is_common: Callable[[npt.NDArray[Any]], bool]
    objects: list[Any] = field(default_factory=list)
    _places: dict[int, int] = field(default_factory=dict)

    def refer(self, array: npt.NDArray[Any]) -> Any:
        """The reference that replaces an array in a pickle; None if it is not common."""
        return self.reference(array) if self.is_common(array) else None

    def reference(self, obj: Any) -> Any:
        """The reference that replaces an object in a pickle."""
        place = self._places.setdefault(id(obj), len(self.objects))
        if place == len(self.objects):
            self.objects.append(obj)
        return entry, (place,)


class _Pickler(codec.ValuePickler):
    """Functions and classes come with each value otherwise, and take longer than the value."""

    def __init__(self, table: Table, *args: Any) -> None:
        super().__init__(*args)
        self._table = table

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if cls is np.ndarray:
            referred = self._table.refer(obj)
        elif isinstance(obj, type | FunctionType) and not codec.has_plain_name(obj):
            referred = self._table.reference(obj)
        else:
            referred = None
        return super().reducer_override(obj) if referred is None else referred


def encoded(
    values: Sequence[Any], is_common: Callable[[npt.NDArray[Any]], bool]
) -> tuple[list[Any], list[bytes]]:
    """The table of these values, and each of them as bytes; pickling errors propagate."""
    table = Table(is_common)
    pickler = functools.partial(_Pickler, table)
    data = [codec.encode_inband(value, pickler) for value in values]
    return table.objects, data


@dataclass(frozen=True, slots=True)
class Encoded:
    """One of the values, in the process that received it with its table."""

    table: Sequence[Any]
    data: bytes

    def decode(self) -> Any:
        """The value; another one at each call."""
        with entered(self.table):
            return codec.decode(self.data)


def opened(table: Sequence[Any], data: Sequence[Any]) -> list[Any]:
    """The values of a message, each to be decoded by itself; what is no bytes stays."""
    common = [mapping.readonly(each) if type(each) is np.ndarray else each for each in table]
    return [Encoded(common, each) if isinstance(each, bytes) else each for each in data]


@contextlib.contextmanager
def entered(table: Sequence[Any]) -> Generator[None]:
    """References are to this table, in this thread."""
    before = getattr(_here, "table", ())
    _here.table = table
    try:
        yield
    finally:
        _here.table = before


_here = threading.local()


def entry(place: int) -> Any:
    """What is in the table at a place; called by a pickle."""
    return _here.table[place]
