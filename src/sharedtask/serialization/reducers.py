"""Reducers of arrays and other bulk memory: a pair of functions for each kind.

``reduce_x(obj, out)`` returns, in the form of ``__reduce__``, how to build the object again. The
memory goes to ``out``, and its placeholder is the first argument. ``build_x`` gets the decoder's
memory there: over read-only memory the object is read-only.
"""

from __future__ import annotations

import array as arrays
import copyreg
import io
import os
import pickle
from collections import OrderedDict
from importlib import import_module
from types import CellType
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.memory import locations, mapping, proc_maps

from .buffer_collector import MARK, Outgoing
from .buffers import Piece

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

# ------------------------------------------------------------------------------- arrays


def reduce_array(array: npt.NDArray[Any], out: Outgoing, *, whole: bool = False) -> Any:
    """An array of numpy's own class; ``whole`` if it is the value itself."""
    dtype = array.dtype
    if dtype.hasobject:
        return _reduce_objects(array) if whole else NotImplemented
    if out.in_place and array.base is not None:
        found = locations.find(array)
        if found is not None:
            return _reduce_region(found, out)
    if dtype.itemsize == 0:
        return build_hollow, (MARK, dtype, array.shape)
    return reduce_memory(array, out)


def reduce_memory(array: npt.NDArray[Any], out: Outgoing) -> Any:
    """The memory of an array, of any location."""
    if array.base is not None:  # an owner shares its memory only with views, which set this
        out.views = True
    axes = _memory_order(array)
    dense = array if axes is None else array.transpose(axes)
    return build_array, (out.slot(dense), dtype_key(array.dtype), dense.shape, axes)


def build_array(
    buffer: Any, dtype: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> npt.NDArray[Any]:
    """An array over a buffer, or in its place among others."""
    array: npt.NDArray[Any]
    if type(buffer) is Piece:
        array = buffer.array(dtype, shape)
    else:
        array = np.ndarray(shape, dtype, buffer)
    return array if axes is None else array.transpose(np.argsort(axes))


def _memory_order(array: npt.NDArray[Any]) -> tuple[int, ...] | None:
    """Axes from the slowest to the fastest in memory, None if that is C order already."""
    if array.flags.c_contiguous:
        return None
    strides = array.strides
    axes = tuple(sorted(range(array.ndim), key=lambda axis: -abs(strides[axis])))
    return None if axes == tuple(range(array.ndim)) else axes


def dtype_key(dtype: np.dtype[Any]) -> Any:
    """The dtype, by its short string if that is complete (it pickles ten times faster)."""
    return dtype if dtype.kind == "V" or dtype.metadata else dtype.str


def build_hollow(mark: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array whose elements have no bytes: numpy makes them only as a field of a structure."""
    around = np.dtype({"names": ["x"], "formats": [dtype], "offsets": [0], "itemsize": 1})
    array: npt.NDArray[Any] = np.zeros(shape, around)["x"]
    array.flags.writeable = not memoryview(mark).readonly
    return array


# An array of Python objects has no bytes to share. It is pickled in the head like a list, and if it
# is the whole value, a mark with it tells the decoder whether it is read-only. Inside another
# object it stays as writable as a list would: models rely on it.


def _reduce_objects(array: npt.NDArray[Any]) -> Any:
    reduced: Any = array.__reduce__()
    build, args, state = reduced
    # Set after the array was created: it may contain itself.
    return build, args, (MARK, state), None, None, fill_objects


def fill_objects(array: npt.NDArray[Any], marked: tuple[Any, Any]) -> None:
    """Give an array of objects its contents."""
    mark, state = marked
    array.__setstate__(state)
    array.flags.writeable = not memoryview(mark).readonly


# ------------------------------------------------------------------------------- subclasses


def for_subclass(cls: type) -> Callable[[Any, Outgoing], Any]:
    """The reducer of a class derived from ``np.ndarray``."""
    if cls.__module__.startswith("numpy."):
        # np.recarray names numpy.rec as its module, which may not be loaded: cloudpickle would send
        # a copy of the class, and the result would be no recarray.
        import_module(cls.__module__)
    if issubclass(cls, np.memmap):
        return reduce_memmap if cls is np.memmap else reduce_own_way
    own = (cls.__reduce__, cls.__reduce_ex__, getattr(cls, "__setstate__", None))
    for base in (np.ndarray, *filter(_is_masked, cls.__mro__)):
        theirs: Any = base
        if own == (theirs.__reduce__, theirs.__reduce_ex__, theirs.__setstate__):
            return reduce_subclass
    return reduce_own_way


def _is_masked(cls: type) -> bool:
    """Compared by name: numpy.ma takes 10 ms to load, also in programs that never use it."""
    return cls.__name__ == "MaskedArray" and cls.__module__.startswith("numpy.ma")


def reduce_subclass(array: npt.NDArray[Any], out: Outgoing) -> Any:
    """Its memory as an array of numpy's own class, and all attributes: a mask is one of them."""
    del out
    state: Any = object.__getstate__(array)
    made = build_subclass, (type(array), array.view(np.ndarray))
    # Set after the array was created: an attribute may refer to it.
    return made if state is None else (*made, state, None, None, set_attributes)


def reduce_own_way(array: npt.NDArray[Any], out: Outgoing) -> Any:
    """By the class's own reduction, which copies; the result is as writable as its neighbours."""
    del out
    reduced: Any = array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    if type(reduced) is not tuple:  # found by its name
        return NotImplemented
    parts: Any = reduced + (None,) * (6 - len(reduced))
    build, args, state, items, pairs, setter = parts
    return build, args, (MARK, state, setter), items, pairs, set_own_state


def set_own_state(made: Any, marked: tuple[Any, Any, Callable[[Any, Any], object] | None]) -> None:
    """Set the state as pickle would, then the flag."""
    mark, state, setter = marked
    set_state(made, state, setter)
    if isinstance(made, np.ndarray) and memoryview(mark).readonly:
        made.flags.writeable = False


def set_state(made: Any, state: Any, setter: Callable[[Any, Any], object] | None) -> None:
    """Set the state as pickle would."""
    if state is None:
        return
    if setter is not None:
        setter(made, state)
    elif hasattr(made, "__setstate__"):
        made.__setstate__(state)
    else:
        set_attributes(made, state)


def build_subclass(cls: type[npt.NDArray[Any]], base: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view of ``base`` as ``cls``, which calls ``__array_finalize__``."""
    return base.view(cls)


def set_attributes(made: Any, state: Any) -> None:
    """Set attributes in ``__dict__`` and in slots."""
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        vars(made).update(attributes)
    for name, value in (slots or {}).items():
        setattr(made, name, value)


# ------------------------------------------------------------------- memory that can be reopened


class _Home:
    """Pickles as a call that opens this memory: once for all arrays in it."""

    __slots__ = ("build", "place")

    def __init__(self, build: Callable[..., Any], *place: object) -> None:
        self.build, self.place = build, place

    def __reduce__(self) -> Any:
        return self.build, (MARK, *self.place)


class _Reduced:
    """Pickles as what the reduction builds."""

    __slots__ = ("reduction",)

    def __init__(self, reduction: Any) -> None:
        self.reduction = reduction

    def __reduce__(self) -> Any:
        return self.reduction


def _reduce_region(found: locations.Found, out: Outgoing) -> Any:
    region = found.region
    out.held.append(found.holder)
    memory = region.memory
    # Plain numbers: as a dataclass it would take three times as long to pickle, at every call.
    place = memory.pid, memory.fd, memory.device, memory.inode, memory.size
    _note_descriptor(memory, out)
    home = out.root(memory, lambda: _Home(open_memory, *place))
    return show, (home, region.offset, dtype_key(region.dtype), region.shape, region.strides)


def reduce_memory_place(memory: locations.Memory, out: Outgoing) -> Any:
    """The place of memory, which is sent by itself for parameters that tasks write."""
    _note_descriptor(memory, out)
    place = memory.pid, memory.fd, memory.device, memory.inode, memory.size
    return locations.Memory, place


def _note_descriptor(memory: locations.Memory, out: Outgoing) -> None:
    if memory.pid == os.getpid():
        out.descriptors.append(memory.fd)


def open_memory(mark: Any, *place: int) -> npt.NDArray[np.uint8]:
    """Map shared memory: read-only for ``Shared``, private for ``CopyOnWrite``."""
    private = not memoryview(mark).readonly
    return locations.mapped(locations.Memory(*place), private=private, writable=False)


def show(
    home: npt.NDArray[np.uint8],
    offset: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> npt.NDArray[Any]:
    """An array in opened memory."""
    return np.ndarray(shape, dtype, home, offset, strides)


def reduce_memmap(array: np.memmap[Any, Any], out: Outgoing) -> Any:
    """A mapped file is reopened, as a whole; if a copy is needed, the copy is sent."""
    if out.at_home:
        place = None if array.filename is None else str(array.filename), array.offset
        return over_own_memory, (_Reduced(reduce_memory(np.asarray(array), out)), *place)
    source = proc_maps.source_of(array) if out.by_path else None
    if source is None:
        return reduce_array(np.asarray(array), out)
    out.held.append(array)
    home = out.root(source.file, lambda: _Home(open_file, source.file))
    return show_memmap, (home, source.offset, dtype_key(array.dtype), array.shape, array.strides)


def open_file(mark: Any, file: proc_maps.MappedFile) -> np.memmap[Any, Any]:
    """Map a file again: read-only for ``Shared``, private ("c") for ``CopyOnWrite``."""
    mode: Any = "r" if memoryview(mark).readonly else "c"
    array = np.memmap(file.path, np.uint8, mode, file.offset, (file.nbytes,))
    require_same_file(file)
    return array


def over_own_memory(plain: npt.NDArray[Any], filename: str | None, offset: int | None) -> Any:
    """A mapped file in the process that has mapped it, as the class that names the file."""
    array: Any = plain.view(np.memmap)
    array.filename, array.offset = filename, offset
    array.mode = "c" if plain.flags.writeable else "r"
    return array


def require_same_file(file: proc_maps.MappedFile) -> None:
    """Refuse a path that names another file by now."""
    status = os.stat(file.path)
    if (status.st_dev, status.st_ino) != (file.device, file.inode):
        msg = f"{file.path} was replaced by another file since it was mapped."
        raise FileNotFoundError(msg)


def show_memmap(
    home: Any, offset: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Any:
    """A view of a mapped file, as the class that names the file."""
    array: Any = np.ndarray.__new__(np.memmap, shape, dtype, home, offset, strides)
    array._mmap, array.filename, array.mode = home._mmap, home.filename, home.mode
    array.offset = home.offset + offset
    return array


# --------------------------------------------------------------------------- not of numpy

# Bytes below this size go into the pickle: a buffer of their own would cost more.
_BULK = 1 << 16


def bulk(value: object) -> object:
    """``value``, or an object that pickles as it: bytes would be copied at every call."""
    if isinstance(value, (bytes, bytearray)) and _is_bulk(value):
        return _Bulk(value)
    return value


def _is_bulk(value: bytes | bytearray) -> bool:
    return type(value) in (bytes, bytearray) and len(value) >= _BULK


class _Bulk:
    """Pickles as bytes out of band: copied by the decoder, since they own their memory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return type(self.value), (pickle.PickleBuffer(self.value),)


def reduce_array_array(values: arrays.array[Any], out: Outgoing) -> Any:
    """An array of the standard library: it owns its memory, so the decoder copies it."""
    del out
    if not values:
        return NotImplemented
    return build_array_array, (np.frombuffer(values, np.uint8), values.typecode)


def build_array_array(data: npt.NDArray[np.uint8], typecode: str) -> arrays.array[Any]:
    """A copy of the bytes."""
    values = arrays.array(typecode)
    values.frombytes(mapping.memory_of(data))
    return values


def reduce_memoryview(view: memoryview, out: Outgoing) -> Any:
    """A view of bytes, with its format and shape; gaps between elements are left out."""
    del out
    form = view.format.removeprefix("@")
    if len(form) != 1 or not view.nbytes:
        return build_formatted, (np.asarray(view),)
    owned = view if view.c_contiguous else memoryview(bytearray(view.tobytes()))
    return build_memoryview, (np.frombuffer(owned.cast("B"), np.uint8), form, view.shape)


def build_memoryview(data: npt.NDArray[np.uint8], form: str, shape: tuple[int, ...]) -> memoryview:
    """A memoryview of a native format."""
    cast: Any = mapping.memory_of(data).cast
    view: memoryview = cast("B").cast(form, shape) if form != "B" else cast("B", shape)
    return view


def build_formatted(array: Any) -> memoryview:
    """A memoryview of any other format, through an array that has it."""
    return memoryview(array)


def reduce_ordered_dict(values: OrderedDict[Any, Any], _: Outgoing) -> Any:
    """Equal to its own reduction, which is slow: that searches its slots each time.

    A module of torch has a dozen of them, and all but one or two are empty.
    """
    if values.__dict__ or OrderedDict in copyreg.dispatch_table:
        return NotImplemented
    return (OrderedDict, (), None, None, iter(values.items())) if values else _NO_ITEMS


_NO_ITEMS = OrderedDict, ()


def reduce_cell(cell: CellType, out: Outgoing) -> Any:
    """A variable of a closure; see ``composition``."""
    return build_cell, out.record().read(cell)


def build_cell(*contents: Any) -> CellType:
    """A variable of a closure, with or without contents."""
    return CellType(*contents)


def refuse_file(file: io.TextIOWrapper, out: Outgoing) -> Any:
    """Refuse a file: cloudpickle would send the contents of one that is open for reading."""
    del out
    msg = f"cannot pickle {file.name!r}, an open file"
    raise TypeError(msg)
