"""Objects that exist once: kept by the ``__new__`` of their class, or as an attribute of it.

Where ``__new__`` returns the object that exists, pickle would write the state into it that came
with a value: an old one, or arrays that are read-only. So the process that owns the object keeps it
as it is; workers take the state, as with every value that the caller sends.

An object without a state that its class keeps, ``Missing.value = Missing()``, means something by
its identity alone, so it is sent as the attribute of that name.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import threading
import warnings
from types import FunctionType
from typing import TYPE_CHECKING, Any

from sharedtask.errors import IncompleteValueWarning
from sharedtask.serialization import classes
from sharedtask.serialization.reducers import set_state
from sharedtask.system.tracebacks import level_of_user

from .completed import own_way

if TYPE_CHECKING:
    from sharedtask.serialization.buffer_collector import Outgoing


_copyreg: Any = copyreg  # its stub leaves out what pickle calls


def may_exist_once(cls: type) -> bool:
    """Whether ``__new__`` is Python code of the class, and pickling is left to Python.

    The state of a tuple is in its items, which ``__new__`` is given.
    """
    own: Any = cls
    plain = own.__reduce_ex__ is object.__reduce_ex__ and own.__reduce__ is object.__reduce__
    return plain and type(own.__new__) is FunctionType and not issubclass(cls, tuple)


def reduce_made(value: Any, out: Outgoing) -> Any:
    """What pickle would send, in a form in which the receiver decides about the state."""
    reduced = own_way(value)
    if type(reduced) is not tuple:  # found by its name
        return reduced
    build, args, state, items, pairs, setter = reduced + (None,) * (6 - len(reduced))
    if setter is not None or (state is None and items is None and pairs is None):
        return reduced
    made: tuple[Any, ...]
    if build is _copyreg.__newobj__:
        made = args[0], args[1:], {}
    elif build is _copyreg.__newobj_ex__:
        made = args
    else:
        return reduced
    contents = state, tuple(items or ()), tuple(pairs or ())
    return build_made, made, (classes.sender(), out.back, *contents), None, None, fill_made


def build_made(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``__new__`` returns; noted if it has existed before."""
    # Each object of a class that is written in Python holds a reference to it.
    before = sys.getrefcount(cls)
    made = cls.__new__(cls, *args, **kwargs)
    if sys.getrefcount(cls) <= before and sys.getrefcount(made) > _OF_A_NEW_OBJECT:
        _existed[id(made)] = made
    return made


_existed: dict[int, Any] = {}  # until their state is set


def _references() -> int:
    made = _Example()
    return sys.getrefcount(made)


class _Example:
    pass


_OF_A_NEW_OBJECT = _references()


def fill_made(made: Any, sent: tuple[bytes, bool, Any, tuple[Any, ...], tuple[Any, ...]]) -> None:
    """Set the state, but not of an object of this process that has existed before."""
    sender, back, state, items, pairs = sent
    is_own = sender == classes.sender()
    if _existed.pop(id(made), None) is not None and (back or is_own):
        if not is_own:
            _warn(made, state)
        return
    set_state(made, state, None)
    if items:
        made.extend(items)
    for key, value in pairs:
        made[key] = value


def _warn(made: Any, state: Any) -> None:
    """Warn, once for each class, where the worker's object has become another one."""
    name = type(made).__qualname__
    if name in _warned or _pickled(state) == _pickled(own_way(made)[2]):
        return
    msg = (
        f"a result has the one object of class {name}, whose __new__ returns the same each time. "
        "The worker's is not as the caller's is now. The caller's stays as it is, and what the "
        "task changed in it is lost: return what was computed in another object"
    )
    warnings.warn(msg, IncompleteValueWarning, stacklevel=level_of_user())
    _warned.add(name)


_warned: set[str] = set()


def _pickled(state: Any) -> bytes | None:
    try:
        return pickle.dumps(state)
    except Exception:  # noqa: BLE001  user code runs here
        return None


# --------------------------------------------------------------- kept as an attribute of its class


def keeps_one(cls: type) -> bool:
    """Whether an attribute of a class is an object of that class without a state."""
    try:
        return any(type(each) is cls and _is_bare(each) for each in vars(cls).values())
    except Exception:  # noqa: BLE001  user code runs here
        return False


def _is_bare(value: Any) -> bool:
    build, args, *more = own_way(value)
    return build is _copyreg.__newobj__ and len(args) == 1 and not any(more)


def reduce_kept(value: Any, out: Outgoing) -> Any:
    """The attribute of its class, if it is one and has no state."""
    del out
    cls = type(value)
    name = next((name for name, each in vars(cls).items() if each is value), None)
    return NotImplemented if name is None or not _is_bare(value) else (find_kept, (cls, name))


def find_kept(cls: type, name: str) -> Any:
    """The attribute; in a worker whose class has no attributes yet, it is set here."""
    with _lock:
        found = vars(cls).get(name)
        if type(found) is cls:
            return found
        made: Any = object.__new__(cls)
        if classes.is_built(cls):
            type.__setattr__(cls, name, made)
    return made


_lock = threading.Lock()
