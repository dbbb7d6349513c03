"""Tensors of torch: their memory is stored once, and those that share it go on sharing it.

torch knows no memory that is read-only. In a worker a tensor shows memory that is protected by the
hardware, and a write to it ends the worker: its error says so. (Ray's store is not protected, nor
are bytes that came with a message: there it is a copy that is.) Anywhere else a write would be the
end of the user's program, or be seen by others, so there a tensor has a copy to itself.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask import inside
from sharedtask.sharing import extents, mapping, reducers, segments

if TYPE_CHECKING:
    import numpy.typing as npt

    from sharedtask.sharing.outgoing import Outgoing


def reduce_tensor(tensor: Any, out: Outgoing) -> Any:
    """A tensor in ordinary memory; others (sparse, quantized, on a device) go torch's way."""
    if not _is_ordinary(tensor):
        return NotImplemented
    bits = _bits(tensor.detach())
    if out.in_band or bits is None or not bits.size:
        return NotImplemented
    out.views = True  # whether others show the same memory is not known to the array
    slot, dtype, shape, axes = reducers.reduce_memory(bits, out)[1]
    state = vars(tensor) or None
    return build_tensor, (slot, dtype, shape, axes, tensor.dtype, tensor.requires_grad, state)


@functools.cache
def _torch() -> Any:
    return import_module("torch")


def _is_ordinary(tensor: Any) -> bool:
    torch = _torch()
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_quantized or tensor.is_nested)
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _bits(tensor: Any) -> npt.NDArray[Any] | None:
    """The same memory as an array of an equally large type that numpy has."""
    torch = _torch()
    same_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = same_size.get(tensor.element_size())
    if kind is None:
        return np.asarray(tensor) if tensor.dtype is torch.complex128 else None
    return np.asarray(tensor.view(kind))


def build_tensor(
    buffer: Any,
    key: Any,
    shape: tuple[int, ...],
    axes: tuple[int, ...] | None,
    dtype: Any,
    requires_grad: bool,
    attributes: dict[str, Any] | None,
) -> Any:
    """A tensor over the buffer, or over a copy of it; one storage for all that share an extent."""
    torch = _torch()
    array = reducers.build_array(buffer, key, shape, axes)
    whole, storage = _storage(buffer)
    offset = mapping.address_of(array) - mapping.address_of(whole)
    size = array.itemsize
    steps = [stride // size for stride in array.strides]
    tensor = torch.empty(0, dtype=dtype)
    tensor.set_(storage, offset // size, array.shape, steps)
    if attributes:
        vars(tensor).update(attributes)
    return tensor.requires_grad_(requires_grad)


def _storage(buffer: Any) -> tuple[npt.NDArray[np.uint8], Any]:
    """The memory, and torch's name for it or for a copy of it."""
    torch = _torch()
    if type(buffer) is extents.Piece:
        if buffer.extent.kept is None:
            buffer.extent.kept = _storage(buffer.extent.buffer)
        kept: tuple[npt.NDArray[np.uint8], Any] = buffer.extent.kept
        return kept
    whole = np.frombuffer(buffer, np.uint8)
    return whole, torch.from_numpy(_usable(whole)).untyped_storage()


def _usable(whole: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if whole.flags.writeable:
        return whole
    if not inside.a_worker():
        return whole.copy()
    guarded = whole if mapping.is_protected(whole) else segments.protected(whole)
    return mapping.window(guarded)  # torch warns of an array that says it cannot be written
