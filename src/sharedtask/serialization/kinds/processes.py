"""Values that pickle to a number of this process, which means something else in another one.

Python's pickle does not report that: a ``multiprocessing.Connection`` arrives as the bare number of
a descriptor, and sends to any file that has the number there.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sharedtask.serialization.buffer_collector import Outgoing


def refuse_connection(value: object, out: Outgoing) -> NoReturn:
    """Refuse a connection or a passed descriptor of ``multiprocessing``."""
    del value, out
    msg = "it holds a descriptor of this process: take a queue of multiprocessing.Manager()"
    raise pickle.PicklingError(msg)


def refuse_selector(value: object, out: Outgoing) -> NoReturn:
    """Refuse a selector, which refers to its descriptors by number."""
    del value, out
    msg = "it holds descriptors of this process: make it in the task"
    raise pickle.PicklingError(msg)


def refuse_library(value: object, out: Outgoing) -> NoReturn:
    """Refuse a library that was loaded by ``ctypes``: its handle is an address.

    Loading it again by name would lose the ``restype`` and ``argtypes`` that were set.
    """
    del value, out
    msg = "it holds an address in this process: load the library in the task, or in its module"
    raise pickle.PicklingError(msg)


def reduce_proxy(proxy: Any, out: Outgoing) -> Any:
    """A proxy of a ``multiprocessing`` manager, with the key that its server requires.

    A process that multiprocessing starts inherits the key. The key does not leave this machine.
    """
    build, args = proxy.__reduce__()
    *rest, options = args
    if out.by_path and isinstance(options, dict):
        options = {"authkey": bytes(proxy._authkey), **options}
    return build, (*rest, options)
