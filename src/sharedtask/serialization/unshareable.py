"""Values that belong to one process and can never be shared, and what to do instead.

Classes are recognised by name, so that a check for a socket does not import ``socket``: if no
module of that name is loaded, no such value exists.
"""

import collections.abc
import io
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["advice_for", "cure_for_type", "cure_for_value", "is_stream"]

_OPEN_IT = "pass its path or address and open it in the task"
_LIST_IT = "share the list or array of what it yields"
_LOCK_IT = "a shared value needs no lock, being read-only"
_MAKE_IT = "make it in the task"
_QUEUE_IT = "take a queue of multiprocessing.Manager()"

_CURES: Mapping[str, str] = {
    "builtins.generator": _LIST_IT,
    "builtins.async_generator": _LIST_IT,
    "builtins.coroutine": "await it first and share the result",
    "builtins.frame": _MAKE_IT,
    "builtins.traceback": "share its text",
    "contextlib._GeneratorContextManagerBase": _MAKE_IT,
    "_io._IOBase": _OPEN_IT,
    "tempfile._TemporaryFileWrapper": _OPEN_IT,
    "posix.ScandirIterator": _LIST_IT,
    "mmap.mmap": "share a np.memmap of the file",
    "_socket.socket": _OPEN_IT,
    "select.epoll": _MAKE_IT,
    "_ssl._SSLContext": _MAKE_IT,
    "sqlite3.Connection": _OPEN_IT,
    "sqlite3.Cursor": _LIST_IT,
    "_thread.lock": _LOCK_IT,
    "_thread.allocate_lock": _LOCK_IT,
    "_thread.RLock": _LOCK_IT,
    "threading.RLock": _LOCK_IT,
    "threading.Condition": _LOCK_IT,
    "threading.Semaphore": _LOCK_IT,
    "threading.Event": _MAKE_IT,
    "threading.Barrier": _MAKE_IT,
    "threading.Thread": _MAKE_IT,
    "_thread._local": _MAKE_IT,
    "_contextvars.Context": _MAKE_IT,
    "_contextvars.Token": _MAKE_IT,
    "queue.Queue": _LIST_IT,
    "_queue.SimpleQueue": _LIST_IT,
    "subprocess.Popen": _MAKE_IT,
    "concurrent.futures._base.Executor": _MAKE_IT,
    "concurrent.futures._base.Future": "share its result",
    "_asyncio.Future": "await it first and share the result",
    "asyncio.futures.Future": "await it first and share the result",
    "asyncio.locks.Lock": _LOCK_IT,
    "asyncio.locks.Condition": _LOCK_IT,
    "asyncio.locks.Semaphore": _LOCK_IT,
    "asyncio.locks.Event": _MAKE_IT,
    "asyncio.queues.Queue": _LIST_IT,
    "asyncio.events.AbstractEventLoop": _MAKE_IT,
    "multiprocessing.process.BaseProcess": _MAKE_IT,
    "multiprocessing.pool.Pool": _MAKE_IT,
    "multiprocessing.queues.Queue": _LIST_IT,
    "multiprocessing.queues.SimpleQueue": _LIST_IT,
    "multiprocessing.connection._ConnectionBase": _QUEUE_IT,
    "multiprocessing.resource_sharer.DupFd": _QUEUE_IT,
    "multiprocessing.sharedctypes.SynchronizedBase": "share np.frombuffer(x.get_obj())",
    "selectors._BaseSelectorImpl": _MAKE_IT,
    "ctypes.CDLL": "load the library in the task, or in its module",
    "multiprocessing.synchronize.SemLock": _LOCK_IT,
    "multiprocessing.synchronize.Condition": _LOCK_IT,
    "multiprocessing.synchronize.Event": _MAKE_IT,
    "multiprocessing.context.BaseContext.Lock": _LOCK_IT,
    "multiprocessing.context.BaseContext.RLock": _LOCK_IT,
    "multiprocessing.context.BaseContext.Condition": _LOCK_IT,
    "multiprocessing.context.BaseContext.Semaphore": _LOCK_IT,
    "multiprocessing.context.BaseContext.BoundedSemaphore": _LOCK_IT,
    "multiprocessing.context.BaseContext.Event": _MAKE_IT,
    "multiprocessing.context.BaseContext.Queue": _LIST_IT,
}

# Handles of other libraries, which say themselves that they cannot be pickled.
_OF_LIBRARIES: Mapping[str, str] = {
    "annoy.Annoy": "save() it, and pass its path",
    "catboost._catboost._PoolBase": "share its arrays and make it in the task",
    "h5py._hl.base.HLObject": _OPEN_IT,
    "igraph.VertexSeq": "share the graph and the indices",
    "igraph.seq.VertexSeq": "share the graph and the indices",
    "igraph.seq.EdgeSeq": "share the graph and the indices",
    "lightgbm.basic.Dataset": "share its arrays and make it in the task",
    "lxml.etree._Element": "share its text, etree.tostring(...)",
    "lxml.etree._ElementTree": "share its text, etree.tostring(...)",
    "netCDF4.Dataset": _OPEN_IT,
    "numpy.lib.npyio.NpzFile": "share dict(...) of it",
    "numpy.lib._npyio_impl.NpzFile": "share dict(...) of it",
    "pyarrow.lib.NativeFile": _OPEN_IT,
    "pyarrow.parquet.core.ParquetFile": _OPEN_IT,
    "rtree.index.Index": "share its entries and build it in the task",
    "shapely.prepared.PreparedGeometry": "share its .context and prepare it in the task",
    "spacy.tokens.span.Span": "share its .doc, .start and .end, or span.as_doc()",
    "spacy.tokens.token.Token": "share its .doc and .i",
    "xgboost.core.DMatrix": "share its arrays and make it in the task",
}

# Abstract types are refused as annotations only: a user's class that has the methods of an iterator
# may well pickle, and values are judged by their own class.
_ABSTRACT: Mapping[Any, str] = {
    collections.abc.Iterator: _LIST_IT,
    collections.abc.Generator: _LIST_IT,
    collections.abc.AsyncIterator: _LIST_IT,
    collections.abc.AsyncGenerator: _LIST_IT,
    collections.abc.Coroutine: "await it first and share the result",
    collections.abc.Awaitable: "await it first and share the result",
    typing.IO: _OPEN_IT,
    typing.TextIO: _OPEN_IT,
    typing.BinaryIO: _OPEN_IT,
}

# The most common shared types, exempt from the lookup of their names, which takes 2 us.
_COMMON = frozenset((dict, list, tuple, set, frozenset, str, bytes, int, float, np.ndarray))

# Files that are memory, and pickle.
_IN_MEMORY = (io.BytesIO, io.StringIO)


def cure_for_type(type_: Any) -> str | None:
    """Return what to do instead of sharing values of a type, None if they can be shared."""
    outer = typing.get_origin(type_) or type_
    try:
        abstract = _ABSTRACT.get(outer)
    except TypeError:  # the value of an annotation need not be hashable
        return None
    return abstract or _cure(outer if isinstance(outer, type) else None, outer)


def cure_for_value(value: object) -> str | None:
    """Return what to do instead of sharing a value, None if its type does not forbid it."""
    class_ = type(value)
    return None if class_ in _COMMON else _cure(class_, None)


def is_stream(value: object) -> bool:
    """Whether a value is an iterator: not every worker can have its own."""
    return cure_for_value(value) == _LIST_IT


def advice_for(value: object) -> str:
    """What to do where a value was found not to pickle, "" where nothing better is known."""
    names = _full_names(type(value).__mro__)
    of_library = next((_OF_LIBRARIES[name] for name in names if name in _OF_LIBRARIES), "")
    return cure_for_value(value) or of_library or _registering(type(value))


def _registering(cls: type) -> str:
    """The advice to register a class, "" for Python's own and ours."""
    package = cls.__module__.partition(".")[0]
    if package in _NOT_REGISTERED or issubclass(cls, type):
        return ""
    return f"sharedtask.register({cls.__name__}, ...) says how it is taken apart"


_NOT_REGISTERED = frozenset((*sys.stdlib_module_names, "sharedtask")) - {"__main__"}


def _cure(class_: type | None, factory: Any) -> str | None:
    if class_ is not None and issubclass(class_, _IN_MEMORY):
        return None
    named = class_.__mro__ if class_ is not None else (factory,)
    return next((cure for cure in map(_CURES.get, _full_names(named)) if cure), None)


def _full_names(things: tuple[Any, ...]) -> Iterator[str]:
    for each in things:
        # threading.Lock is a function before Python 3.13, so a name is all that it has.
        yield f"{getattr(each, '__module__', '')}.{getattr(each, '__qualname__', '')}"
