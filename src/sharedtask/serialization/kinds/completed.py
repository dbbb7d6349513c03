"""Values whose own pickle leaves something out: it is sent along, and restored at the end.

Examples: the attributes of a class derived from one in C, the properties of rdkit's molecules, the
flags that a user has set on spaCy's words, and the attributes that a user has set on a frame.
"""

from __future__ import annotations

import copyreg
import sys
from importlib import import_module
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.serialization.reducers import set_attributes, set_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PROTOCOL = 5


def own_way(value: Any) -> Any:
    """The reduction that pickle would use, as from ``__reduce__``."""
    registered = copyreg.dispatch_table.get(type(value))
    return value.__reduce_ex__(_PROTOCOL) if registered is None else registered(value)


def followed(reduced: Any, put: Callable[[Any, Any], object], more: Any) -> Any:
    """The reduction, followed by a call of ``put(made, more)``."""
    if not isinstance(reduced, tuple):  # found by its name
        return reduced
    build, args, state, items, pairs, setter = reduced + (None,) * (6 - len(reduced))
    return build, args, (state, setter, put, more), items, pairs, complete


def complete(made: Any, state: tuple[Any, Any, Callable[[Any, Any], object], Any]) -> None:
    """Set the state as pickle would, then restore the rest."""
    own, setter, put, more = state
    set_state(made, own, setter)
    put(made, more)


# ------------------------------------------------------------------- classes derived from C

_HEAP_TYPE = 1 << 9
_REDUCERS = ("__reduce__", "__reduce_ex__")


def is_forgetful(cls: type) -> bool:
    """Whether a class adds attributes to a base whose own pickle ignores them.

    A base that a user has written may leave them out on purpose.
    """
    base = _reducing(cls)
    if base in (object, cls) or base.__dictoffset__ or not _is_builtin(base):
        return False
    return bool(cls.__dictoffset__) or any(True for _ in _slots(cls))


def _reducing(cls: type) -> type:
    return next(base for base in cls.__mro__ if any(way in vars(base) for way in _REDUCERS))


def _is_builtin(cls: type) -> bool:
    return not cls.__flags__ & _HEAP_TYPE or cls.__module__.partition(".")[0] in _STANDARD


_STANDARD = sys.stdlib_module_names


def _slots(cls: type) -> Iterator[Any]:
    """The slots that were added to the base that pickles."""
    base = _reducing(cls)
    for each in cls.__mro__[: cls.__mro__.index(base)]:
        yield from (d for d in vars(each).values() if type(d) is MemberDescriptorType)


def reduce_forgetful(value: Any, out: Any) -> Any:
    """An object of such a class, with its attributes."""
    del out
    reduced = own_way(value)
    if not isinstance(reduced, tuple) or (len(reduced) > 2 and reduced[2] is not None):
        return reduced  # the base knows of attributes
    slots = {d.__name__: d.__get__(value) for d in _slots(type(value)) if _is_filled(d, value)}
    more = dict(getattr(value, "__dict__", {})), slots
    return followed(reduced, set_attributes, more) if any(more) else reduced


def _is_filled(descriptor: Any, value: Any) -> bool:
    try:
        descriptor.__get__(value)
    except AttributeError:
        return False
    return True


# ------------------------------------------------------------------------ attributes of others


def reduce_with_attributes(value: Any, out: Any) -> Any:
    """An object whose own pickle leaves out its ``__dict__``."""
    del out
    own = vars(value)
    return followed(own_way(value), set_attributes, dict(own)) if own else NotImplemented


def reduce_with_public(value: Any, out: Any) -> Any:
    """A frame with the attributes that its user has set, without those of its library."""
    del out
    own = vars(value)
    cls = type(value)
    more = {n: own[n] for n in own if n[:1] != "_" and not hasattr(cls, n)}
    return followed(own_way(value), set_attributes, more) if more else NotImplemented


# ------------------------------------------------------------------------------- libraries


def reduce_molecule(molecule: Any, out: Any) -> Any:
    """A molecule or reaction of rdkit, with the properties of it, of its atoms and of its bonds.

    rdkit leaves them out, unless a setting of the process says otherwise.
    """
    del out
    everything = import_module("rdkit.Chem").PropertyPickleOptions.AllProps
    build, args, *rest = own_way(molecule)
    return build, (molecule.ToBinary(int(everything)), *args[1:]), *rest


def reduce_vocabulary(vocabulary: Any, out: Any) -> Any:
    """A vocabulary of spaCy, with the flags of its words.

    spaCy computes them again, so that what was set by hand (``is_stop``) is lost.
    """
    del out
    words = sorted((word.orth, word.flags) for word in vocabulary)
    table = np.array(words, np.uint64).reshape(len(words), 2)
    return followed(own_way(vocabulary), set_flags, table)


def set_flags(vocabulary: Any, table: Any) -> None:
    """Set the flags of each word."""
    for word, flags in table.tolist():
        vocabulary[word].flags = flags
