"""One codec for every backend: ``encode(value) -> Payload`` and ``decode(head, buffers) -> value``.

A payload is a pickle (protocol 5) with the bulk data taken out of it::

    value --encode--> head     the object graph: classes, keys, shapes, small values
                      buffers  the raw bytes of every array, not copied, in the order met

Arrays of every dtype without Python objects leave as buffers, so that whoever decodes decides
what they become: over read-only memory they come back read-only, over private memory writable.
"""

from __future__ import annotations

import io
import os
import pickle
from typing import TYPE_CHECKING, Any, cast

import cloudpickle
import numpy as np

from sharedtask.sharing import mapfiles, mapping, regions
from sharedtask.sharing.payload import Payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

PROTOCOL = 5

# See ``mapping.memory_of``.
_pickle_buffer = cast("Callable[[npt.NDArray[np.uint8]], pickle.PickleBuffer]", pickle.PickleBuffer)


def encode(
    value: object,
    *,
    by_path: bool = True,
    in_place: bool = False,
    refer: Callable[[npt.NDArray[Any]], Any] | None = None,
) -> Payload:
    """Encode ``value`` without copying the memory of its contiguous arrays.

    A mapped file is opened anew where the value is decoded; without ``by_path``, for machines that
    do not have the file, its contents travel. With ``in_place`` arrays that lie in shared memory
    already are mapped where the value is decoded, and go on changing with it. ``refer`` is asked
    for each plain array and gives what is pickled in its place: a callable and its arguments.
    """
    raw: list[pickle.PickleBuffer] = []
    pickler = _Pickler(value, raw.append, by_path=by_path, in_place=in_place, refer=refer)
    buffers = tuple(np.frombuffer(buffer.raw(), np.uint8) for buffer in raw)
    return Payload(pickler.head, buffers, tuple(pickler.held))


def encode_shared(value: object) -> Payload:
    """Encode a value that is published: what is shared already is not copied."""
    return encode(value, in_place=True)


def encode_inband(value: object) -> bytes:
    """Encode ``value`` as one string of bytes, arrays included."""
    return _Pickler(value, None).head


def decode(head: bytes | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Rebuild a value; its arrays view ``buffers`` and are writable where these are."""
    return pickle.loads(head, buffers=buffers)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle for what cannot be found by name, and our reducers for arrays.

    cloudpickle is asked for every value, not only for functions: instances of classes that live
    in ``__main__`` or in a notebook cell must carry their class along.
    """

    def __init__(
        self,
        value: object,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
        *,
        by_path: bool = True,
        in_place: bool = False,
        refer: Callable[[npt.NDArray[Any]], Any] | None = None,
    ) -> None:
        file = io.BytesIO()
        super().__init__(file, PROTOCOL, buffer_callback)
        self.value, self.by_path, self.in_place = value, by_path, in_place
        self.refer = refer
        self.held: list[object] = []
        self.dump(value)
        self.head = file.getvalue()

    def reducer_override(self, obj: Any) -> Any:
        if obj is self.value and isinstance(obj, np.ndarray) and obj.dtype.hasobject:
            return _reduce_frozen(obj)
        if self.refer is not None and type(obj) is np.ndarray:
            referred = self.refer(obj)
            if referred is not None:
                return referred
        reducer = _REDUCERS.get(type(obj))
        if reducer is not None:
            if self.in_place and reducer is _reduce_array:
                return self._reduce_in_place(obj)
            if reducer is _reduce_memmap and not self.by_path:
                return _reduce_array(np.asarray(obj))
            return reducer(obj)
        if isinstance(obj, np.ndarray):
            if _is_masked(type(obj)):
                return _reduce_masked(obj)
            if _is_plain_subclass(type(obj)):
                return _reduce_subclass(obj)
        return super().reducer_override(obj)

    def _reduce_in_place(self, array: npt.NDArray[Any]) -> Any:
        found = None if array.dtype.hasobject else regions.find(array)
        if found is None:
            return _reduce_array(array)
        self.held.append(found.holder)
        return _open_region, (pickle.PickleBuffer(_MARK), found.region)


# ------------------------------------------------------------------------------- arrays


def _reduce_array(array: npt.NDArray[Any]) -> Any:
    dtype = array.dtype
    if dtype.hasobject or dtype.itemsize == 0:
        return NotImplemented
    axes = _memory_order(array)
    dense = array if axes is None else array.transpose(axes)
    flat = np.ascontiguousarray(dense).reshape(-1).view(np.uint8)
    if not flat.flags.writeable:
        # Pickle would write down that the buffer is read-only. That is for the decoder to say.
        flat = mapping.window(flat)
    return _build_array, (_pickle_buffer(flat), _dtype_key(dtype), dense.shape, axes)


def _open_region(mark: Any, region: regions.Region) -> npt.NDArray[Any]:
    """Map the memory: read-only for ``Shared``, private for ``CopyOnWrite``."""
    return region.view(private=not memoryview(mark).readonly)


def _memory_order(array: npt.NDArray[Any]) -> tuple[int, ...] | None:
    """Axes from the slowest to the fastest in memory, None where that is C order already."""
    if array.flags.c_contiguous:
        return None
    strides = array.strides
    axes = tuple(sorted(range(array.ndim), key=lambda axis: -abs(strides[axis])))
    return None if axes == tuple(range(array.ndim)) else axes


def _dtype_key(dtype: np.dtype[Any]) -> Any:
    """The dtype, by its short string where that says everything (it pickles ten times faster)."""
    return dtype if dtype.kind == "V" or dtype.metadata else dtype.str


def _build_array(
    buffer: Any, dtype: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, buffer)
    return array if axes is None else array.transpose(np.argsort(axes))


# An array of Python objects has no bytes to share. It travels in the head like a list, and where it
# is the value as a whole a buffer beside it tells the decoder whether it is meant to be read-only.
# Inside another object it stays as writable as a list would: models rely on it.
_MARK = bytearray(1)


def _reduce_frozen(array: npt.NDArray[Any]) -> Any:
    reduced: Any = array.__reduce__()
    build, args, state = reduced
    return _build_frozen, (pickle.PickleBuffer(_MARK), build, args, state)


def _build_frozen(mark: Any, build: Callable[..., Any], args: Any, state: Any) -> Any:
    array = build(*args)
    array.__setstate__(state)
    array.flags.writeable = not memoryview(mark).readonly
    return array


def _is_plain_subclass(cls: type) -> bool:
    """True for subclasses that leave pickling to ndarray: recarray, matrix, most users' own."""
    base: type[Any] = np.ndarray
    own = (cls.__reduce__, cls.__reduce_ex__, getattr(cls, "__setstate__", None))
    return own == (base.__reduce__, base.__reduce_ex__, base.__setstate__)


def _reduce_subclass(array: npt.NDArray[Any]) -> Any:
    return _build_subclass, (type(array), array.view(np.ndarray), getattr(array, "__dict__", None))


def _build_subclass(
    cls: type[npt.NDArray[Any]], base: npt.NDArray[Any], state: dict[str, Any] | None
) -> npt.NDArray[Any]:
    array = base.view(cls)
    if state:
        array.__dict__.update(state)
    return array


def _is_masked(cls: type) -> bool:
    """Asked by name: naming the class would load numpy.ma, 10 ms, for those who never use it."""
    return cls.__name__ == "MaskedArray" and cls.__module__.startswith("numpy.ma")


def _reduce_masked(array: Any) -> Any:
    mask = np.ma.getmask(array)
    parts = (array.data, None if mask is np.ma.nomask else mask, array.fill_value, array.hardmask)
    return _build_masked, parts


def _build_masked(data: Any, mask: Any, fill_value: Any, hard: bool) -> Any:
    given = np.ma.nomask if mask is None else mask
    return np.ma.MaskedArray(data, given, fill_value=fill_value, hard_mask=hard, copy=False)


def _reduce_memmap(array: np.memmap[Any, Any]) -> Any:
    source = mapfiles.source_of(array)
    if source is None:
        return _reduce_array(np.asarray(array))
    return _open_memmap, (pickle.PickleBuffer(_MARK), source, _dtype_key(array.dtype), array.shape)


def _open_memmap(
    mark: Any, source: mapfiles.FileSlice, dtype: Any, shape: tuple[int, ...]
) -> np.memmap[Any, Any]:
    """Map the file anew: read-only for ``Shared``, private ("c") for ``CopyOnWrite``."""
    mode: Any = "r" if memoryview(mark).readonly else "c"
    order: Any = source.order
    array = np.memmap(source.path, dtype, mode, source.offset, shape, order)
    status = os.stat(source.path)
    if (status.st_dev, status.st_ino) != (source.device, source.inode):
        msg = f"{source.path} was replaced by another file since it was mapped."
        raise FileNotFoundError(msg)
    return array


def _refuse_file(file: io.TextIOWrapper) -> Any:
    """Refuse a file: of one that is open for reading, cloudpickle would send the contents."""
    msg = f"cannot pickle {file.name!r}, an open file"
    raise TypeError(msg)


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    np.ndarray: _reduce_array,
    np.memmap: _reduce_memmap,
    io.TextIOWrapper: _refuse_file,
}
