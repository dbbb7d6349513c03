"""Unmarked arguments of tasks in this process: copies, as in a worker process.

    the values of a call -> one pickle -> (for each chunk) -> values of its own

One pickle keeps references that the values share. Immutable values are passed as they are, and so
are values that cannot be pickled: a connection, a lock, a generator. If ``strict``, those are an
error, as on the other backends.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from types import BuiltinFunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.backends.worker import envelope
from sharedtask.backends.worker.call_header import Constants
from sharedtask.backends.worker.result_format import FIXED_TYPES
from sharedtask.errors import SerializationError
from sharedtask.memory import mapping
from sharedtask.serialization import apart, codec
from sharedtask.serialization.codec import FAILURES
from sharedtask.serialization.unpicklable import culprit
from sharedtask.store.captured import is_read_only
from sharedtask.store.publication import Publication

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import numpy.typing as npt

    from .base import Call, Chunk


def is_fixed(value: Any) -> bool:
    """True for immutable values and the program's own: numbers, strings, functions, classes."""
    cls = type(value)
    if cls in FIXED_TYPES:
        return True
    if cls is tuple or cls is frozenset:
        return _all_fixed(value)
    if cls is slice:
        return _all_fixed((value.start, value.stop, value.step))
    if cls is BuiltinFunctionType:  # not a method of a mutable object
        return isinstance(value.__self__, ModuleType | None)
    return codec.is_of_the_program(cls)


def _all_fixed(values: Collection[Any]) -> bool:
    return FIXED_TYPES.issuperset(map(type, values)) or all(map(is_fixed, values))


class Unmarked:
    """The arguments and the bound object of a call, copied for each chunk.

    ``changes``: whether a task could change any of them.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._values = [*call.bound, *call.args, *call.kwargs.values()]
        changing = (k for k, value in enumerate(self._values) if not is_fixed(value))
        self._places = [] if call.uncopied else list(changing)
        self.changes = bool(self._places)
        self._copies: _Copies | None = None

    def open(self) -> None:
        """Record their present state.

        Raises:
            SerializationError: The call is strict, and one cannot be pickled.
            StoreFullError: There is no room for a large array.
        """
        if self._places:
            self._copies = self._copied()

    def _copied(self) -> _Copies:
        try:
            return self._copies_of(self._places)
        except MemoryError:
            raise
        except FAILURES as error:
            if self._call.options.strict is True:
                raise self._refusal(error) from error
            self._places = [k for k in self._places if self._can_be_copied(k)]
            return self._copies_of(self._places)

    def _copies_of(self, places: list[int]) -> _Copies:
        return _Copies([self._values[k] for k in places], self._call.capture_from)

    def _can_be_copied(self, place: int) -> bool:
        try:
            self._copies_of([place]).close()
        except MemoryError:
            raise
        except FAILURES:
            return False
        return True

    def _refusal(self, error: BaseException) -> SerializationError:
        task = self._call.task
        place = next((k for k in self._places if not self._can_be_copied(k)), self._places[0])
        where = culprit(self._values[place], self._names()[place])
        return SerializationError(
            f"{task}(): an argument cannot be sent to a worker: {where}. Without strict=True it is "
            f"the caller's own on this backend. ({error})"
        )

    def _names(self) -> list[str]:
        call = self._call
        by_place = [f"argument {k + 1}" for k in range(len(call.args))]
        return [*("self" for _ in call.bound), *by_place, *call.kwargs]

    def constants(self) -> Constants:
        """The arguments of every item of a chunk."""
        call = self._call
        if self._copies is None:
            return Constants(call.bound, call.args, dict(call.kwargs))
        values = self._values.copy()
        for place, value in zip(self._places, self._copies.next(), strict=True):
            values[place] = value
        first, behind = len(call.bound), len(call.bound) + len(call.args)
        kwargs = dict(zip(call.kwargs, values[behind:], strict=True))
        return Constants(tuple(values[:first]), tuple(values[first:behind]), kwargs)

    def close(self) -> None:
        """End the use: no further chunk is run."""
        if self._copies is not None:
            self._copies.close()


class _Copies:
    """Copies of some values as they are now; arrays of ``large`` bytes or more are not read twice.

    The first copies are made at once: that finds values that pickle but do not unpickle.
    """

    def __init__(self, values: list[Any], large: int | None) -> None:
        self._large = large
        self._kept: list[_Kept] = []
        try:
            payload = codec.encode(values, refer=self._refer, here=True)
            self._held, self._data = payload.held, envelope.pack_inline(payload).data
            self._made = [self._make()]
        except BaseException:
            self.close()
            raise

    def _refer(self, array: npt.NDArray[Any]) -> Any:
        if self._large is None or not is_read_only(array, self._large):
            return None
        self._kept.append(_Kept(array))
        return self._kept[-1], ()

    def _make(self) -> list[Any]:
        received = envelope.unpack(memoryview(self._data), iter(()), private=True)
        made: list[Any] = codec.decode_here(self._held, received.head, received.buffers)
        return made

    def next(self) -> list[Any]:
        """Copies that were not handed out before."""
        try:
            return self._made.pop()
        except IndexError:
            return self._make()

    def close(self) -> None:
        """Free the memory of large arrays; copies of them stay valid."""
        for kept in self._kept:
            kept.publication.release()


class _Kept:
    """A large array in a segment, or one created in shared memory: read-only in tasks."""

    _sharedtask_ = True  # it is not copied itself

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.publication = Publication(codec.encode_shared(array), watched=False)

    def __call__(self) -> Any:
        """The array; writes of native code to a copy stay in its chunk."""
        return mapping.readonly(self.publication.private_value())


def with_copies(call: Call, chunk: Chunk) -> Chunk:
    """The chunk with copies of its items; an item that cannot be pickled is passed itself."""
    items: Any = chunk.items
    if call.uncopied or type(items) is range:
        return chunk
    if type(items) is not np.ndarray and _all_fixed(items):
        return chunk
    if call.apart:
        return replace(chunk, items=_copied_apart(list(items), call.capture_from))
    try:
        return replace(chunk, items=_copied(items))
    except MemoryError:
        raise
    except FAILURES:
        return replace(chunk, items=list(map(copied, items)))


def _copied_apart(items: Sequence[Any], least: int | None) -> list[Any]:
    """Copies with nothing in common but large arrays, which are read-only."""
    if least is None:
        return list(map(copied, items))
    table = _ReadOnly(functools.partial(is_read_only, least=least))
    with apart.entered(table.copies):
        return [copied(item, table.refer) for item in items]


class _ReadOnly(apart.Table):
    """Large arrays of items, each copied once."""

    def __init__(self, is_common: Callable[[npt.NDArray[Any]], bool]) -> None:
        super().__init__(is_common)
        self.copies: list[npt.NDArray[Any]] = []

    def reference(self, obj: Any) -> Any:
        reference = super().reference(obj)
        self.copies.extend(map(_read_only_copy, self.objects[len(self.copies) :]))
        return reference


def _read_only_copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return mapping.readonly(array.copy(order="K"))


def copied(value: Any, refer: Callable[[npt.NDArray[Any]], Any] | None = None) -> Any:
    """A copy of a mutable value; the value itself if it cannot be pickled."""
    if is_fixed(value):
        return value
    try:
        return _copied(value, refer)
    except MemoryError:
        raise
    except FAILURES:
        return value


def _copied(value: Any, refer: Callable[[npt.NDArray[Any]], Any] | None = None) -> Any:
    payload = codec.encode(value, refer=refer, here=True)
    return codec.decode_here(payload.held, payload.head, map(envelope.copied, payload.buffers))
