"""Collects the memory of a value's arrays while it is pickled, out of band."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sharedtask.memory import mapping

from . import buffers
from .composition import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import numpy.typing as npt

    from sharedtask.memory.strided import Source

# See ``mapping.memory_of``.
_pickle_buffer = cast("Callable[[npt.NDArray[Any]], pickle.PickleBuffer]", pickle.PickleBuffer)

# Placeholder in the pickle for the memory of an array, collected when all arrays are known.
_SLOT = pickle.PickleBuffer(bytearray(1))

# One writable byte with a value that has no memory to share: if the decoder makes it read-only, the
# value is made read-only too.
MARK = pickle.PickleBuffer(bytearray(1))


class Outgoing:
    """Collects the bulk data of a value while it is pickled; each reducer gets it.

    ``views`` is set as soon as two parts may share memory. ``held`` keeps the memory that the
    pickle refers to alive, and these ``descriptors`` lead to it. ``back``: the value goes to the
    process that its classes came from; ``at_home``: it stays in this one. ``functions`` is set if a
    function was pickled by value; those in ``by_value`` always are, even if they can be imported.
    So were ``classes``.
    """

    __slots__ = (
        "_arrays",
        "_roots",
        "at_home",
        "back",
        "by_path",
        "by_value",
        "classes",
        "descriptors",
        "functions",
        "held",
        "in_band",
        "in_place",
        "passed",
        "refer",
        "views",
    )

    def __init__(
        self,
        *,
        in_band: bool,
        by_path: bool = True,
        in_place: bool = False,
        refer: Callable[[npt.NDArray[Any]], Any] | None = None,
        back: bool = False,
        at_home: bool = False,
        by_value: Sequence[object] = (),
    ) -> None:
        self.back, self.at_home = back, at_home
        self.in_band, self.by_path, self.in_place = in_band, by_path, in_place
        self.refer, self.by_value = refer, by_value
        self.functions: Record | None = None
        self.passed: list[pickle.PickleBuffer] = []
        self.held: list[object] = []
        self.descriptors: list[int] = []
        self.classes: list[type] = []
        self.views = False
        self._arrays: list[npt.NDArray[Any]] = []
        self._roots: dict[Hashable, object] = {}

    def slot(self, array: npt.NDArray[Any]) -> pickle.PickleBuffer:
        """The placeholder in the pickle for the memory of ``array``: the first argument."""
        if self.in_band:
            data = buffers.flat(array)
            # Pickle would record that the buffer is read-only. The decoder decides that instead.
            return _pickle_buffer(data if data.flags.writeable else mapping.window(data))
        self._arrays.append(array)
        return _SLOT

    def record(self) -> Record:
        """The record of the compositions of functions."""
        if self.functions is None:
            self.functions = Record()
        return self.functions

    def root(self, key: Hashable, make: Callable[[], object]) -> object:
        """One object for each ``key``, so that it is decoded once for all references."""
        if key not in self._roots:
            self._roots[key] = make()
        return self._roots[key]

    def parts(self) -> tuple[list[Source], bytes]:
        """The sources of the buffers, and the table to append to the pickle."""
        others = len(self.passed) - len(self._arrays)
        if not others:
            if not self.views:
                return list(map(buffers.source, self._arrays)), b""
            return buffers.arrange(self._arrays)
        arrays = iter(self._arrays)
        parts = [next(arrays) if b is _SLOT else _flat(b) for b in self.passed]
        bare = {n for n, b in enumerate(self.passed) if b is not _SLOT}
        return buffers.arrange(parts, bare)


def _flat(buffer: pickle.PickleBuffer) -> npt.NDArray[np.uint8]:
    return np.frombuffer(buffer.raw(), np.uint8)
