"""Which reducer a class has: ours, one of the user's (``register``), or none.

Classes of other libraries are recognised by name, so that none is imported here: a module of this
package is loaded when a value of its kind is met, when the library is loaded already.

A class of a library has its line in ``_BY_BASE``, which counts for derived classes as well, up to
one with a ``__reduce__`` of its own, or in ``_BY_NAME``, which counts for that class alone. A
reducer returns what ``__reduce__`` returns, or NotImplemented for pickle's own way; ``out`` takes
the memory of arrays. A kind without a page of its own has a row in ``docs/kinds/losses.md``.
"""

from __future__ import annotations

import array
import functools
import io
import typing
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from importlib import import_module
from types import CellType, FunctionType
from typing import Any, TypeVar

import numpy as np

from sharedtask.errors import DefinitionError
from sharedtask.memory.locations import Memory
from sharedtask.serialization import reducers, variables
from sharedtask.system.finalizers import Known, forgetting
from sharedtask.system.tracebacks import shortened

from . import completed, exceptions, named, singletons

__all__ = ["by_cloudpickle", "find", "found", "register", "takes_apart"]

_T = TypeVar("_T")
_Reducer = Callable[[Any, Any], Any]

_OURS: Mapping[type, _Reducer] = {
    array.array: reducers.reduce_array_array,
    memoryview: reducers.reduce_memoryview,
    io.TextIOWrapper: reducers.refuse_file,
    Memory: reducers.reduce_memory_place,
    CellType: reducers.reduce_cell,
    functools._lru_cache_wrapper: named.reduce_cached,
    functools.cached_property: named.reduce_cached_property,
    functools.singledispatchmethod: named.reduce_dispatching_method,
    typing.NewType: named.reduce_new_type,
    ContextVar: variables.reduce_variable,
    np.ufunc: named.reduce_ufunc,
}
# Faster than their own reduction, and equivalent.
_AS_THEIRS: Mapping[type, _Reducer] = {OrderedDict: reducers.reduce_ordered_dict}

# Of these exactly; a class derived from one of them may be more than it.
_BY_NAME: Mapping[str, tuple[str, str]] = {
    "pandas.arrays.ArrowExtensionArray": ("columns", "reduce_arrow_backed"),
    "pandas.arrays.ArrowStringArray": ("columns", "reduce_arrow_backed"),
    # As pandas 2 names them.
    "pandas.core.arrays.arrow.array.ArrowExtensionArray": ("columns", "reduce_arrow_backed"),
    "pandas.core.arrays.string_arrow.ArrowStringArray": ("columns", "reduce_arrow_backed"),
    "polars.dataframe.frame.DataFrame": ("frames", "reduce_frame"),
    "polars.series.series.Series": ("frames", "reduce_series"),
    "torch.Tensor": ("tensors", "reduce_tensor"),
    "torch.nn.parameter.Parameter": ("tensors", "reduce_parameter"),
    "rdkit.Chem.rdChemReactions.ChemicalReaction": ("completed", "reduce_molecule"),
    "spacy.vocab.Vocab": ("completed", "reduce_vocabulary"),
}
# The indexes of pandas that pickle in a way of their own, by their modules in pandas 2.
_INDEXES = {
    "base": "Index",
    "datetimes": "DatetimeIndex",
    "interval": "IntervalIndex",
    "multi": "MultiIndex",
    "range": "RangeIndex",
    "timedeltas": "TimedeltaIndex",
}
# Of these and all classes derived from them.
_BY_BASE: Mapping[str, tuple[str, str]] = {
    "pyarrow.lib.Array": ("arrow", "reduce_array"),
    "ctypes.CDLL": ("processes", "refuse_library"),
    "multiprocessing.connection._ConnectionBase": ("processes", "refuse_connection"),
    "multiprocessing.managers.BaseProxy": ("processes", "reduce_proxy"),
    "multiprocessing.resource_sharer.DupFd": ("processes", "refuse_connection"),
    "selectors._BaseSelectorImpl": ("processes", "refuse_selector"),
    "numba.core.serialize.ReduceMixin": ("compiled", "reduce_mixin"),
    "pandas.core.generic.NDFrame": ("completed", "reduce_with_public"),
    "polars.dataframe.frame.DataFrame": ("completed", "reduce_with_public"),
    "polars.series.series.Series": ("completed", "reduce_with_public"),
    "rdkit.Chem.rdchem.Mol": ("completed", "reduce_molecule"),
    "rdkit.Chem.rdchem.RWMol": ("completed", "reduce_molecule"),
    "matplotlib.figure.Figure": ("lossy", "reduce_figure"),
    "torch.Tensor": ("tensors", "reduce_derived"),
    "collections.Counter": ("completed", "reduce_with_attributes"),
    "random.Random": ("lossy", "reduce_random"),
    "numpy.random._generator.Generator": ("lossy", "reduce_generator"),
    "numpy.random.mtrand.RandomState": ("lossy", "reduce_generator"),
    "torch._C.Generator": ("lossy", "reduce_generator"),
    "rtree.index.Index": ("lossy", "refuse_index"),
    "PIL.Image.Image": ("lossy", "reduce_image"),
    "PIL.ImageFile.ImageFile": ("lossy", "reduce_image"),
    **{
        f"{home}.{name}": ("completed", "reduce_with_public")
        for module, name in _INDEXES.items()
        for home in ("pandas", f"pandas.core.indexes.{module}")
    },
}

_registered: dict[type, Callable[[Any], Any]] = {}

# By the identity of the class: a new lookup takes longer than reducing a small object. The entry of
# a freed class is removed before its identity is reused. None means Python's own reduction, which
# is looked up for every object.
found: dict[int, _Reducer | None] = {}
_seen: Known[weakref.ref[type]] = Known()


def by_cloudpickle(obj: Any, out: Any) -> Any:
    """Marks functions and classes, each of which cloudpickle reduces."""
    del obj, out
    return NotImplemented


def find(cls: type) -> _Reducer | None:
    """The reducer of a class: called with an object, and with the collector of its memory."""
    reducer = _look_up(cls)
    found[id(cls)] = reducer
    _seen.put(cls, weakref.ref(cls, forgetting(found, id(cls))))
    return reducer


def _look_up(cls: type) -> _Reducer | None:
    theirs = _registered_for(cls)
    if theirs is not None:
        return lambda value, _: theirs(value)
    if cls is FunctionType or issubclass(cls, type):
        return by_cloudpickle
    if cls in _OURS:
        return _OURS[cls]
    if cls in _AS_THEIRS:
        return _AS_THEIRS[cls]
    if issubclass(cls, np.ndarray):
        return reducers.for_subclass(cls)
    if issubclass(cls, BaseException):
        return exceptions.for_exception(cls)
    if named.names_itself(cls):
        return named.reduce_named
    known = _BY_NAME.get(_name(cls)) or _by_base(cls)
    if known is None and completed.is_forgetful(cls):
        return completed.reduce_forgetful
    if known is None and singletons.may_exist_once(cls):
        return singletons.reduce_made
    if known is None and singletons.keeps_one(cls):
        return singletons.reduce_kept
    return None if known is None else _load(*known)


def takes_apart(cls: type) -> bool:
    """Whether a class is taken apart in another way than it says itself."""
    reducer = find(cls)
    return reducer is not None and reducer.__module__ not in _AS_THEY_SAY


# What they say, and more.
_AS_THEY_SAY = (completed.__name__, singletons.__name__, f"{__name__}.lossy")


def _by_base(cls: type) -> tuple[str, str] | None:
    """The reducer of the nearest known base, unless a class before it has its own reduction."""
    for base in cls.__mro__:
        found = _BY_BASE.get(_name(base))
        if found is not None or any(way in vars(base) for way in _OWN_WAYS):
            return found
    return None


def _load(module: str, function: str) -> _Reducer:
    reducer: _Reducer = getattr(import_module(f"{__name__}.{module}"), function)
    return reducer


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# ------------------------------------------------------------------------------- the user's

_OWN_WAYS = ("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")


@shortened
def register(cls: type[_T], reduce: Callable[[_T], Any]) -> None:
    """Register how objects of a class are taken apart, so that the arrays in them are shared.

    ``reduce(obj)`` returns ``(build, args)`` or ``(build, args, state)``, as ``__reduce__`` does,
    and its parts are taken apart in the same way: arrays in them are not copied. It applies to
    ``cls`` and to classes derived from it, except those that define their own pickling. A later
    registration of the same class replaces an earlier one.

    Args:
        cls: Your own class, or one of a library. Classes of numpy and built-in types
            need no registration.
        reduce: Called in this process, with every shared object of the class.

    Raises:
        DefinitionError: ``cls`` is not a class or cannot be registered, or ``reduce`` is not
            callable.

    Examples:
        >>> import numpy as np
        >>> class Image:
        ...     def __init__(self, pixels):
        ...         self.pixels = pixels
        >>> register(Image, lambda image: (Image, (image.pixels,)))
    """
    _check(cls, reduce)
    _registered[cls] = _checked(cls, reduce)
    found.clear()
    _seen.clear()


def _check(cls: Any, reduce: Any) -> None:
    if not isinstance(cls, type):
        msg = f"register({cls!r}, ...): the first argument is a class, and this is none."
        raise DefinitionError(msg)
    if not callable(reduce):
        msg = (
            f"register({cls.__qualname__}, {reduce!r}): the second argument is a function that "
            "takes an object apart, as __reduce__ does: it returns (build, args)."
        )
        raise DefinitionError(msg)
    if cls is np.ndarray or cls in _OURS or cls.__module__ in _KNOWN_MODULES:
        msg = (
            f"register({cls.__qualname__}, ...): {cls.__qualname__} is taken apart in its own way. "
            "Register a class of your own that holds it."
        )
        raise DefinitionError(msg)


# Pickle handles built-in types itself, without a reducer.
_KNOWN_MODULES = ("builtins",)


def _checked(cls: type, reduce: Callable[..., Any]) -> Callable[[Any], Any]:
    def reduced(value: Any) -> Any:
        parts = reduce(value)
        if _is_reduction(parts):
            return parts
        msg = (
            f"the function registered for {cls.__qualname__} returned {_short(parts)}. It has to "
            "return (build, args) or (build, args, state): a function and its arguments as a tuple."
        )
        raise DefinitionError(msg)

    return reduced


def _is_reduction(parts: Any) -> bool:
    return (
        isinstance(parts, tuple)
        and 2 <= len(parts) <= 6
        and callable(parts[0])
        and isinstance(parts[1], tuple)
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__qualname__} of another form"


def _registered_for(cls: type) -> Callable[[Any], Any] | None:
    """The function registered for the nearest base, unless a class before it reduces itself."""
    for base in cls.__mro__:
        if base in _registered:
            return _registered[base]
        if any(way in vars(base) for way in _OWN_WAYS):
            return None
    return None
