"""Values that pickle to a number of this process, which means something else in another one.

Python's pickle says nothing of it: a ``multiprocessing.Connection`` arrives as the bare number of a
descriptor, and what is sent through it goes wherever that number leads there.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sharedtask.serialization.buffer_collector import Outgoing


def refuse_connection(value: object, out: Outgoing) -> NoReturn:
    """Of ``multiprocessing``: a connection, or a descriptor that is to be handed over."""
    del value, out
    msg = "it holds a descriptor of this process: take a queue of multiprocessing.Manager()"
    raise pickle.PicklingError(msg)


def refuse_selector(value: object, out: Outgoing) -> NoReturn:
    """A selector: it knows by number which descriptors it waits for."""
    del value, out
    msg = "it holds descriptors of this process: make it in the task"
    raise pickle.PicklingError(msg)


def refuse_library(value: object, out: Outgoing) -> NoReturn:
    """A library that was loaded by ``ctypes``: its handle is an address.

    It is not loaded again by its name: ``restype`` and ``argtypes`` that were set would be lost.
    """
    del value, out
    msg = "it holds an address in this process: load the library in the task, or in its module"
    raise pickle.PicklingError(msg)


def reduce_proxy(proxy: Any, out: Outgoing) -> Any:
    """A proxy of a ``multiprocessing`` manager, with the key that its server asks for.

    A process that multiprocessing starts inherits the key. It goes no further than this machine.
    """
    build, args = proxy.__reduce__()
    *rest, options = args
    if out.by_path and isinstance(options, dict):
        options = {"authkey": bytes(proxy._authkey), **options}
    return build, (*rest, options)
