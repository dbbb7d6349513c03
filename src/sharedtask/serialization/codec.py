"""One codec for every backend: ``encode(value) -> Payload`` and ``decode(head, buffers) -> value``.

A payload is a pickle (protocol 5) with the bulk data out of band::

    value --encode--> head     the object graph: classes, keys, shapes, small values
                      buffers  the raw bytes of every array, not copied, in the order met

Encoding and decoding run user code, and its errors come out as an ``Exception``: a
SystemExit as a ``pickle.PicklingError`` or ``UnpicklingError``. A Ctrl-C stays what it is.

Arrays of every dtype without Python objects become buffers, so that the decoder decides about them:
over read-only memory they are read-only, over private memory writable. ``reducers.py`` and
``kinds`` define how each kind of value is taken apart.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import re
import sys
import threading
import traceback
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle
import numpy as np
from cloudpickle.cloudpickle import _dynamic_class_reduce, _module_reduce, dynamic_subimport

from sharedtask.memory.payload import Payload
from sharedtask.serialization.kinds import named
from sharedtask.system import interrupts

from . import classes, reducers
from .buffer_collector import Outgoing
from .buffers import laid_out
from .kinds import by_cloudpickle, find, found
from .modules import MAIN, is_made_by_hand
from .sources import names_in_texts, reduce_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

PROTOCOL = 5
# Errors that user code may raise while a value is inspected: anything but Ctrl-C.
FAILURES = (Exception, SystemExit)


def encode(
    value: object,
    *,
    by_path: bool = True,
    in_place: bool = False,
    refer: Callable[[npt.NDArray[Any]], Any] | None = None,
    by_name: bool = False,
    back: bool = False,
    here: bool = False,
    at_home: bool = False,
    by_value: Sequence[object] = (),
) -> Payload:
    """Encode ``value`` without copying the memory of its arrays.

    A mapped file is reopened where the value is decoded; without ``by_path``, for machines that do
    not have the file, its contents are sent. With ``in_place``, arrays that are in shared memory
    already are mapped by the decoder, and later changes are visible. ``refer`` is called with each
    plain array and returns its replacement in the pickle: a callable and its arguments. With
    ``by_name``, classes and functions of ``__main__`` are looked up there by the decoder. With
    ``back``, the value goes to the process that its classes came from. ``here`` is for
    ``decode_here``: functions, classes and modules are not copied, and objects whose copies would
    free a resource twice are refused. With ``at_home``, the value stays in this process: a mapped
    file is not mapped again, read-only, where a write that bypasses numpy's flag would end it.
    Functions in ``by_value`` are sent by value, even if they can be imported.
    """
    out = Outgoing(
        in_band=False,
        by_path=by_path,
        in_place=in_place,
        refer=refer,
        back=back,
        at_home=at_home,
        by_value=by_value,
    )
    pickler = _Here if here else _ByName if by_name else ValuePickler
    head = _pickled(value, out, out.passed.append, pickler)
    sources, table = out.parts()
    head = head + table if table else head
    held, numbers, sent = tuple(out.held), tuple(out.descriptors), tuple(out.classes)
    return Payload(head, tuple(sources), held, numbers, out.functions, sent)


def encode_shared(value: object) -> Payload:
    """Encode a value to publish: memory that is shared already is not copied."""
    return encode(value, in_place=True)


def encode_inband(
    value: object,
    pickler: Callable[..., ValuePickler] | None = None,
    file: io.BytesIO | None = None,
    *,
    back: bool = False,
) -> bytes:
    """Encode ``value`` as one string of bytes, arrays included."""
    return _pickled(value, Outgoing(in_band=True, back=back), None, pickler, file)


def decode(head: bytes | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Rebuild a value; its arrays view ``buffers`` and are writable if these are."""
    try:
        return interrupts.exposed(_loaded, head, laid_out(head, buffers))
    except Exception as error:
        _warn_name_only(error)
        raise
    except BaseException as error:
        raise _as_exception(error, pickle.UnpicklingError) from error


def _loaded(head: bytes | memoryview, buffers: Iterable[Any]) -> Any:
    return pickle.loads(head, buffers=buffers)


def reduced(value: Any) -> Any:
    """The value's own reduction."""
    try:
        return interrupts.exposed(value.__reduce_ex__, PROTOCOL)
    except Exception:
        raise
    except BaseException as error:
        raise _as_exception(error, pickle.PicklingError) from error


def decode_here(held: Sequence[object], head: bytes | memoryview, buffers: Iterable[Any]) -> Any:
    """Rebuild a value in the process that encoded it with ``here``; ``held`` of its payload."""
    before = getattr(_here, "held", ())
    _here.held = held
    try:
        return decode(head, buffers)
    finally:
        _here.held = before


_here = threading.local()


def uncopied(number: int) -> Any:
    """Refers in a pickle to an object that is not copied; never called."""
    return _here.held[number]


def _pickled(
    value: object,
    out: Outgoing,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
    pickler: Callable[..., ValuePickler] | None = None,
    file: io.BytesIO | None = None,
) -> bytes:
    file = file or io.BytesIO()
    dump((pickler or ValuePickler)(file, value, out, buffer_callback), reducers.bulk(value))
    return file.getvalue()


def dump(pickler: pickle.Pickler, value: object) -> None:
    """Pickle a value: user code runs here."""
    try:
        interrupts.exposed(pickler.dump, value)
    except Exception as error:
        _warn_name_only(error)
        raise
    except BaseException as error:
        raise _as_exception(error, pickle.PicklingError) from error


def _warn_name_only(error: Exception) -> None:
    """The advice for an object that pickles as a name of the script."""
    said = error.args[0] if error.args else None
    kinds = (AttributeError, pickle.PicklingError)
    if type(error) in kinds and isinstance(said, str) and _NAMED_IN_MAIN.match(said):
        error.args = (f"{said}. {_NAME_ONLY}", *error.args[1:])


# The last is what Python 3.14 says where something was not found.
_NAMED_IN_MAIN = re.compile(
    r"Can't (get attribute|pickle) .*\b__main__|module '__main__' has no attribute ", re.DOTALL
)
_NAME_ONLY = "It is found by its name only: move it to a module"


def _as_exception(error: BaseException, cls: type[pickle.PickleError]) -> BaseException:
    """The exception to raise instead of a SystemExit or similar, which would end the program.

    A Ctrl-C, and an exception of a signal handler, is raised again unchanged.
    """
    if interrupts.came_from_outside(error):
        raise error
    said = "".join(traceback.format_exception_only(error)).strip()
    return cls(f"it raised {said}")


class _Dispatch(dict[type, Any]):
    """cloudpickle's reducers, then copyreg's; a ChainMap, which is equivalent, costs 2 us more."""

    def __missing__(self, cls: type) -> Any:
        return copyreg.dispatch_table[cls]


def _reduce_module(module: ModuleType) -> Any:
    """A module by its name, or with all its contents."""
    if not is_made_by_hand(module):
        return _module_reduce(module)
    state = {name: value for name, value in vars(module).items() if name != "__builtins__"}
    return dynamic_subimport, (module.__name__, state)


class SupportsWrite(Protocol):
    """The target of a pickle."""

    def write(self, data: Any, /) -> object:
        """Take the next bytes."""


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle for objects that cannot be found by name, our reducers for bulk memory.

    cloudpickle's hook runs for every value, not only for functions: instances of classes that live
    in ``__main__`` or in a notebook cell must bring their class.

    At each call of a task this handles all objects of a shared value except the plainest. So the
    reducer is chosen once for each class.
    """

    dispatch_table = _Dispatch(cloudpickle.Pickler._dispatch_table)
    dispatch_table[CodeType] = reduce_code
    dispatch_table[ModuleType] = _reduce_module

    def __init__(
        self,
        file: SupportsWrite,
        value: object,
        out: Outgoing,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
    ) -> None:
        super().__init__(file, PROTOCOL, buffer_callback)
        self.value, self.out = value, out

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if cls is np.ndarray:
            referred = None if self.out.refer is None else self.out.refer(obj)
            if referred is not None:
                return referred
            return reducers.reduce_array(obj, self.out, whole=obj is self.value)
        try:
            reducer = found[id(cls)]
        except KeyError:
            reducer = find(cls)
        if reducer is None:  # most objects: cloudpickle would only check whether they are code
            return NotImplemented
        if reducer is by_cloudpickle:
            if type(obj) is FunctionType:
                return self._reduce_function(obj)
            return NotImplemented if has_plain_name(obj) else self._reduce_class(obj)
        return reducer(obj, self.out)

    def _reduce_function(self, function: FunctionType) -> Any:
        """A function, by value unless cloudpickle finds it by name."""
        by_value = any(function is each for each in self.out.by_value)
        if not by_value and has_plain_name(function):
            return NotImplemented
        record = self.out.record()  # before cloudpickle reads anything
        reduced: Any
        if by_value or _is_known_here_alone(function):
            reduced = self._dynamic_function_reduce(function)
        else:
            reduced = super().reducer_override(function)
        if reduced is NotImplemented:
            return reduced
        if named.is_dispatcher(function):
            return named.reduce_dispatcher(function)
        _add_names_in_texts(function, reduced[2][1]["__globals__"])
        record.note(function, reduced)
        return reduced

    def _reduce_class(self, obj: Any) -> Any:
        """A class, by value unless cloudpickle finds it by name."""
        if not isinstance(obj, type):
            return super().reducer_override(obj)
        if self.out.back and classes.is_built(obj):
            return classes.by_key(obj)
        if _is_known_here_alone(obj):
            reduced = _dynamic_class_reduce(obj)
        else:
            reduced = super().reducer_override(obj)
        if type(reduced) is tuple and len(reduced) == _WITH_SETTER:
            self.out.classes.append(obj)
            return classes.by_value(obj, reduced[2][0])
        return reduced


# The length of cloudpickle's reduction of a class by value; others are found by name.
_WITH_SETTER = 6
# A process that multiprocessing has spawned has the script under this name, and workers do not.
_MAIN_OF_A_CHILD = "__mp_main__"


def _is_known_here_alone(obj: Any) -> bool:
    """True for a function or class that only this process finds by name."""
    module: Any = getattr(obj, "__module__", None)
    return module == _MAIN_OF_A_CHILD or is_made_by_hand(sys.modules.get(module))


def has_plain_name(obj: Any) -> bool:
    """True for a function or class that is found by name; cloudpickle takes 3 us for that.

    False proves nothing: there are other ways to be found.
    """
    module: Any = getattr(obj, "__module__", None)
    home = None if module in MAIN else sys.modules.get(module)
    if type(home) is not ModuleType or vars(home).get(obj.__qualname__) is not obj:
        return False
    if is_made_by_hand(home):
        return False
    return not cloudpickle.list_registry_pickle_by_value()


# Globals of other kinds may match a word in a string by accident, and need not pickle.
_DATA = (int, float, complex, str, bytes, tuple, list, dict, set, frozenset, np.generic, np.ndarray)


def _add_names_in_texts(function: FunctionType, found: dict[str, Any]) -> None:
    for name in names_in_texts(function.__code__):
        value = function.__globals__.get(name)
        if name not in found and isinstance(value, (*_DATA, FunctionType)):
            found[name] = value


class _ByName(ValuePickler):
    """For another process that runs the same program: values decode to its own classes."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, FunctionType)) and _is_in_main(obj):
            return NotImplemented
        return super().reducer_override(obj)


class _Here(ValuePickler):
    """For copies in this process."""

    def reducer_override(self, obj: Any) -> Any:
        if obj is uncopied:
            return NotImplemented
        cls = type(obj)
        if is_of_the_program(cls):
            self.out.held.append(obj)
            return uncopied, (len(self.out.held) - 1,)
        if _is_freed(cls):
            msg = f"a copy of a {cls.__name__} would free what the original has"
            raise TypeError(msg)
        return super().reducer_override(obj)


def is_of_the_program(cls: type) -> bool:
    """True for functions, classes, modules and tasks, which exist once per process; and ``object``.

    An ``object()`` has nothing but its identity.
    """
    if cls in _OF_THE_PROGRAM:
        return True
    return issubclass(cls, type) or hasattr(cls, "_sharedtask_")


_OF_THE_PROGRAM = frozenset((FunctionType, ModuleType, object))


def _is_freed(cls: type) -> bool:
    """True if a finalizer would run for each copy, and the class does not define how to copy."""
    if not hasattr(cls, "__del__"):
        return False
    return all(getattr(cls, n, None) is getattr(object, n, None) for n in _PICKLED_BY)


_PICKLED_BY = ("__reduce_ex__", "__reduce__", "__getstate__")


def _is_in_main(obj: Any) -> bool:
    if obj.__module__ != "__main__":
        return False
    found: Any = sys.modules.get("__main__")
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj
