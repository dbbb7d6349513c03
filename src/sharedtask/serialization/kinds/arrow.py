"""Arrow arrays: only the memory of a slice, without that of its parent.

pyarrow pickles whole buffers, also for a slice. So the slice is cut out first: its buffers are
slices of the same memory, and only the offsets of strings and lists are recomputed.
Tables, batches, chunked arrays and the columns of pandas are made of arrays.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sharedtask.serialization.buffer_collector import Outgoing


def reduce_array(array: Any, out: Outgoing) -> Any:
    """An array as pyarrow pickles it, after unused memory was cut off."""
    del out
    return cut(array).__reduce_ex__(5)


# Unused bytes that an array may keep: buffers end on whole cache lines.
_SLACK = 1024


def cut(array: Any) -> Any:
    """The same values, without memory that the array does not use."""
    pa = import_module("pyarrow")

    if array.get_total_buffer_size() - array.nbytes <= _SLACK:
        return array
    cutter = next((c for fits, c in _CUTTERS if fits(pa.types, array.type)), _gathered)
    return cutter(pa, array)


def _is_flat(types: Any, kind: Any) -> Any:
    """Every element takes the same bits."""
    return types.is_primitive(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind)


def _is_text_view(types: Any, kind: Any) -> Any:
    return types.is_string_view(kind) or types.is_binary_view(kind)


def _is_list_view(types: Any, kind: Any) -> Any:
    return types.is_list_view(kind) or types.is_large_list_view(kind)


def _is_text(types: Any, kind: Any) -> Any:
    return (
        types.is_string(kind)
        or types.is_binary(kind)
        or types.is_large_string(kind)
        or types.is_large_binary(kind)
    )


def _is_list(types: Any, kind: Any) -> Any:
    return types.is_list(kind) or types.is_large_list(kind)


def _cut_flat(pa: Any, array: Any) -> Any:
    start, valid = _validity(array)
    data = _bits(array.buffers()[1], array.offset - start, len(array) + start, array.type.bit_width)
    return pa.Array.from_buffers(array.type, len(array), [valid, data], -1, start)


def _cut_text(pa: Any, array: Any) -> Any:
    start, valid = _validity(array)
    _, ends, data = array.buffers()
    offsets, low, high = _offsets(pa, array, ends, start)
    buffers = [valid, offsets, None if data is None else data[low:high]]
    return pa.Array.from_buffers(array.type, len(array), buffers, -1, start)


def _cut_list(pa: Any, array: Any) -> Any:
    start, valid = _validity(array)
    offsets, low, high = _offsets(pa, array, array.buffers()[1], start)
    values = cut(array.values.slice(low, high - low))
    return pa.Array.from_buffers(
        array.type, len(array), [valid, offsets], -1, start, children=[values]
    )


def _cut_rows(pa: Any, array: Any) -> Any:
    """Lists of one length: embeddings."""
    start, valid = _validity(array)
    width, low = array.type.list_size, array.offset - start
    values = cut(array.values.slice(low * width, (len(array) + start) * width))
    return pa.Array.from_buffers(array.type, len(array), [valid], -1, start, children=[values])


def _cut_list_views(pa: Any, array: Any) -> Any:
    """Lists with an offset and a size each."""
    start, valid = _validity(array)
    kind = np.int64 if pa.types.is_large_list_view(array.type) else np.int32
    shown = slice(array.offset - start, array.offset + len(array))
    begins, sizes = (_numbers(b, kind)[shown] for b in array.buffers()[1:3])
    sizes[:start] = 0
    low = int(begins[sizes > 0].min()) if sizes.any() else 0
    begins = np.where(sizes > 0, begins - low, 0).astype(kind)
    high = low + int((begins + sizes).max(initial=0))
    return pa.Array.from_buffers(
        array.type,
        len(array),
        [valid, pa.py_buffer(begins), pa.py_buffer(sizes)],
        -1,
        start,
        children=[cut(array.values.slice(low, high - low))],
    )


def _numbers(buffer: Any, kind: Any) -> Any:
    return np.array(np.frombuffer(buffer, kind))


def _cut_struct(pa: Any, array: Any) -> Any:
    fields = [array.type.field(k) for k in range(array.type.num_fields)]
    if not fields:
        return _gathered(pa, array)
    mask = array.is_null() if array.null_count else None
    children = [cut(array.field(k)) for k in range(len(fields))]
    return pa.StructArray.from_arrays(children, fields=fields, mask=mask)


def _cut_dictionary(pa: Any, array: Any) -> Any:
    return pa.DictionaryArray.from_arrays(
        cut(array.indices), array.dictionary, ordered=array.type.ordered, safe=False
    )


def _cut_extension(pa: Any, array: Any) -> Any:
    del pa
    return array.type.wrap_array(cut(array.storage))


def _cut_views(pa: Any, array: Any) -> Any:
    """Strings with an offset each: only a copy joins those that are used."""
    text = pa.types.is_string_view(array.type)
    return array.cast(pa.large_string() if text else pa.large_binary()).cast(array.type)


def _gathered(pa: Any, array: Any) -> Any:
    """A copy of the used elements: for rare layouts."""
    del pa
    return array.take(np.arange(len(array)))


def _validity(array: Any) -> tuple[int, Any]:
    """The number of bits before the first element in its byte, and the bitmap of nulls."""
    start = array.offset % 8
    valid = array.buffers()[0]
    if valid is None or not array.null_count:
        return start, None
    return start, _bits(valid, array.offset - start, len(array) + start, 1)


def _bits(buffer: Any, start: int, count: int, width: int) -> Any:
    """Elements of ``width`` bits, from one at a byte boundary."""
    return None if buffer is None else buffer[start * width // 8 : -(-(start + count) * width // 8)]


def _offsets(pa: Any, array: Any, ends: Any, start: int) -> tuple[Any, int, int]:
    """Offsets relative to the first used element; and the range of their values."""
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    kind = np.int64 if wide or pa.types.is_large_list(array.type) else np.int32
    found = np.frombuffer(ends, kind)[array.offset - start : array.offset + len(array) + 1]
    low, high = int(found[start]), int(found[-1])
    # Offsets before the first element are clamped to it.
    return pa.py_buffer(np.maximum(found - low, 0).astype(kind)), low, high


_CUTTERS: tuple[tuple[Any, Any], ...] = (
    (_is_flat, _cut_flat),
    (_is_text, _cut_text),
    (_is_text_view, _cut_views),
    (_is_list, _cut_list),
    (_is_list_view, _cut_list_views),
    (lambda types, kind: types.is_fixed_size_list(kind), _cut_rows),
    (lambda types, kind: types.is_struct(kind), _cut_struct),
    (lambda types, kind: types.is_dictionary(kind), _cut_dictionary),
    (lambda _, kind: hasattr(kind, "storage_type"), _cut_extension),
)
