"""Tensors of torch: their memory is stored once, and tensors that share it still do.

torch has no read-only memory. In a worker a tensor uses memory that the hardware protects, and a
write to it ends the worker: its error says so. (Ray's store is not protected, nor are bytes that
came with a message: there a protected copy is used.) Anywhere else a write would crash the user's
program, or be visible to others, so there a tensor has its own copy.
"""

from __future__ import annotations

import copyreg
import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask import context
from sharedtask.memory import mapping, segments
from sharedtask.serialization import buffers, losses, reducers

from .completed import followed, own_way

if TYPE_CHECKING:
    import numpy.typing as npt

    from sharedtask.serialization.buffer_collector import Outgoing


def reduce_tensor(tensor: Any, out: Outgoing) -> Any:
    """A tensor in ordinary memory; torch reduces others (sparse, quantized, on a device)."""
    memory = _memory(tensor, out)
    if memory is None:
        return reduce_derived(tensor, out)
    state = vars(tensor) or None
    built = build_tensor, (*memory, tensor.dtype, tensor.requires_grad, state)
    return _completed(tensor, built)


def reduce_parameter(parameter: Any, out: Outgoing) -> Any:
    """A parameter without attributes, as a module has many: torch makes a tensor of it first."""
    if vars(parameter) or type(parameter) in copyreg.dispatch_table:
        return reduce_derived(parameter, out)
    memory = _memory(parameter, out)
    if memory is None:
        return reduce_derived(parameter, out)
    built = build_parameter, (*memory, parameter.dtype, parameter.requires_grad)
    return _completed(parameter, built)


def reduce_derived(tensor: Any, out: Outgoing) -> Any:
    """A tensor that torch takes apart, and what torch leaves out."""
    del out
    more = _left_out(tensor)
    return NotImplemented if more is None else followed(own_way(tensor), put_back, more)


def _completed(tensor: Any, built: tuple[Any, Any]) -> Any:
    more = _left_out(tensor)
    return built if more is None else followed(built, put_back, more)


def _left_out(tensor: Any) -> tuple[Any, list[Any], list[Any]] | None:
    """Its gradient and its hooks, None where it has neither. The graph belongs to its process."""
    if not tensor.is_leaf:
        losses.add(tensor, _GRAPH, _NO_GRAPH)
    hooks, late = tensor._backward_hooks, tensor._post_accumulate_grad_hooks
    gradient = tensor.grad if tensor.is_leaf or tensor.retains_grad else None
    if gradient is None and not hooks and not late:
        return None
    return gradient, list((hooks or {}).values()), list((late or {}).values())


_GRAPH = "arrives without the graph that it was computed with: no gradient flows back through it"
_NO_GRAPH = "Call .detach() on it, or compute it under torch.no_grad()."


def put_back(tensor: Any, more: tuple[Any, list[Any], list[Any]]) -> None:
    """Give a tensor its gradient and its hooks."""
    gradient, hooks, late = more
    tensor.grad = gradient
    for hook in hooks:
        tensor.register_hook(hook)
    for hook in late:
        tensor.register_post_accumulate_grad_hook(hook)


def _memory(tensor: Any, out: Outgoing) -> tuple[Any, Any, Any, Any] | None:
    """The first arguments of ``build_tensor``, None for tensors outside ordinary memory."""
    if out.in_band or not _is_ordinary(tensor):
        return None
    bits = _bits(tensor.detach())
    if bits is None or not bits.size:
        return None
    out.views = True  # the array does not show whether others share the memory
    memory: tuple[Any, Any, Any, Any] = reducers.reduce_memory(bits, out)[1]
    return memory


@functools.cache
def _torch() -> Any:
    return import_module("torch")


def _is_ordinary(tensor: Any) -> bool:
    return (
        tensor.is_cpu
        and tensor.layout is _torch().strided
        and not (tensor.is_quantized or tensor.is_nested)
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _bits(tensor: Any) -> npt.NDArray[Any] | None:
    """The same memory as an array: of its own type, or of an equally large one that numpy has."""
    dtype = tensor.dtype
    known = _numpys()
    if dtype in known:
        bits: npt.NDArray[Any] = tensor.numpy()
        return bits
    kind = known.get(tensor.element_size())
    return None if kind is None else tensor.view(kind).numpy()


@functools.cache
def _numpys() -> dict[Any, Any]:
    """The types that numpy has, with one for each size in bytes."""
    torch = _torch()
    floats = torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128
    integers = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool
    by_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {**dict.fromkeys((*floats, *integers)), **by_size}


def build_tensor(
    buffer: Any,
    key: Any,
    shape: tuple[int, ...],
    axes: tuple[int, ...] | None,
    dtype: Any,
    requires_grad: bool,
    attributes: dict[str, Any] | None,
) -> Any:
    """A tensor over the buffer, or over a copy of it; one storage for all in an extent."""
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


def build_parameter(
    buffer: Any,
    key: Any,
    shape: tuple[int, ...],
    axes: tuple[int, ...] | None,
    dtype: Any,
    requires_grad: bool,
) -> Any:
    """A parameter over the buffer, as ``build_tensor`` has it."""
    tensor = build_tensor(buffer, key, shape, axes, dtype, False, None)
    return _torch().nn.Parameter(tensor, requires_grad)


def _storage(buffer: Any) -> tuple[npt.NDArray[np.uint8], Any]:
    """The memory, and torch's storage over it or over a copy."""
    torch = _torch()
    if type(buffer) is buffers.Piece:
        if buffer.extent.kept is None:
            buffer.extent.kept = _storage(buffer.extent.buffer)
        kept: tuple[npt.NDArray[np.uint8], Any] = buffer.extent.kept
        return kept
    whole = np.frombuffer(buffer, np.uint8)
    return whole, torch.from_numpy(_usable(whole)).untyped_storage()


def _usable(whole: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if whole.flags.writeable:
        return whole
    if not context.a_worker():
        return whole.copy()
    guarded = whole if mapping.is_protected(whole) else segments.protected(whole)
    return mapping.window(guarded)  # torch warns about read-only arrays
