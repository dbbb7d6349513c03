"""Values whose own pickle leaves out a part that cannot be restored: refused, or warned of."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from sharedtask.serialization import losses

from .completed import own_way, reduce_with_attributes

if TYPE_CHECKING:
    from sharedtask.serialization.buffer_collector import Outgoing


def refuse_index(index: Any, out: Outgoing) -> Any:
    """An index of rtree, which would arrive without its entries."""
    del out
    if not index.get_size():
        return NotImplemented
    msg = "an index of rtree arrives without its entries: pass these, and build it in the task"
    raise pickle.PicklingError(msg)


def reduce_image(image: Any, out: Outgoing) -> Any:
    """An image file of Pillow, of which one frame is pickled."""
    del out
    if _has_frames(image):
        cure = "Pass its path, or a list of copies of its frames."
        losses.add(image, "arrives without its other frames", cure)
    return NotImplemented


def _has_frames(image: Any) -> bool:
    try:
        return bool(image.is_animated)
    except Exception:  # noqa: BLE001  not every kind has frames, and the file may be closed
        return False


def reduce_figure(figure: Any, out: Outgoing) -> Any:
    """A figure of matplotlib, whose copies are not registered with pyplot.

    A figure that a task returns is registered, like one created in the caller.
    """
    if out.back:
        return NotImplemented
    build, args, state, *rest = own_way(figure)
    return build, args, {n: v for n, v in state.items() if n != "_restore_to_pylab"}, *rest


def reduce_generator(generator: Any, out: Outgoing) -> Any:
    """A generator of random numbers: each copy gives the same ones."""
    del out
    says = "is copied, and all copies give the same random numbers"
    cure = "Take a parameter annotated Rng: each item gets a generator of its own."
    losses.add(generator, says, cure, whole=True)
    return NotImplemented


def reduce_random(generator: Any, out: Outgoing) -> Any:
    """A generator of the standard library, with the attributes of classes derived from it."""
    reduce_generator(generator, out)
    return reduce_with_attributes(generator, out)
