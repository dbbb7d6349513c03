"""Classes that no other process can import: those of a script, a notebook cell, a function.

Such a class travels with what it is made of, and is made once in each process that it comes to::

    owner --(key, attributes)--> worker      makes the class under its key, or brings it up to date
    owner <--------(key)-------- worker      finds its own class: nothing of it is written

The owner is the process that defined the class. Whatever comes to it, from a worker or from its own
memory, its class is as the program left it. The key is cloudpickle's, so that a program that uses
cloudpickle as well meets the same classes.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import os
import sys
import threading
import types
import weakref
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

__all__ = [
    "State",
    "build_class",
    "build_enum",
    "by_key",
    "by_value",
    "find_class",
    "is_built",
    "noted",
    "renew",
    "set_attributes",
]


class _Here:
    """Names this process; a child that is forked gets a name of its own."""

    name = b""

    @classmethod
    def renew(cls) -> None:
        cls.name = os.urandom(8)


_Here.renew()
os.register_at_fork(after_in_child=_Here.renew)

# -------------------------------------------------------------------------- on the way out


def by_key(cls: type) -> Any:
    """A class that was built here, for the process that it came from."""
    key = cloudpickle._get_or_create_tracker_id(cls)
    return find_class, (key, cls.__module__, cls.__qualname__)


def by_value(cls: type, attributes: dict[str, Any]) -> Any:
    """A class with all ``attributes`` that cloudpickle found in it.

    What Python needs to make the class is in the arguments. The attributes follow when the class is
    there, for they may refer to it.
    """
    key = cloudpickle._get_or_create_tracker_id(cls)
    namespace = _namespace(cls)
    metaclass = None if _is_of_ctypes(cls) else type(cls)  # one without a name
    start = key, _Here.name, metaclass, cls.__name__, cls.__bases__, namespace
    if issubclass(cls, Enum):
        members = {name: member.value for name, member in cls.__members__.items()}
        kept = {name: attribute for name, attribute in attributes.items() if name not in members}
        state = _Here.name, _rest(cls, kept, namespace), _of_members(cls)
        return build_enum, (*start, members), state, None, None, set_attributes
    state = _Here.name, _rest(cls, attributes, namespace), {}
    return build_class, start, state, None, None, set_attributes


_OF_THE_MAKING = ("__module__", "__orig_bases__", "__dict__")
# What ctypes lays memory out by; it makes the fields of it.
_OF_CTYPES = ("_fields_", "_pack_", "_layout_", "_anonymous_", "_type_", "_length_")


def _namespace(cls: type) -> dict[str, Any]:
    """What stands in the body of a class while Python makes it."""
    own = vars(cls)
    found: dict[str, Any] = {"__qualname__": cls.__qualname__}
    for name in (*_OF_THE_MAKING, *(_OF_CTYPES if _is_of_ctypes(cls) else ())):
        if name in own and not isinstance(own[name], types.GetSetDescriptorType):
            found[name] = own[name]
    if "__slots__" in own:
        places = tuple(name for name, value in own.items() if _is_slot(cls, value))
        found["__slots__"] = (*places, *(n for n in ("__dict__", "__weakref__") if n in own))
    return found


def _is_slot(cls: type, value: object) -> bool:
    if isinstance(value, types.MemberDescriptorType):
        return value.__objclass__ is cls
    return type(value).__name__ == "CField" and _is_of_ctypes(cls)


def _is_of_ctypes(cls: type) -> bool:
    return type(cls).__module__ == "_ctypes"


def _rest(cls: type, attributes: Mapping[str, Any], namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that are set when the class is there."""
    return {
        name: value
        for name, value in attributes.items()
        if (name not in namespace or name == "__slots__") and not _is_slot(cls, value)
    }


def _of_members(cls: type[Enum]) -> dict[str, dict[str, Any]]:
    """What the members of an enum have besides name and value: ``__init__`` is not called again."""
    found = {}
    for name, member in cls.__members__.items():
        own = {key: value for key, value in vars(member).items() if key not in _OF_EVERY_MEMBER}
        if own:
            found[name] = own
    return found


_OF_EVERY_MEMBER = frozenset(("_value_", "_name_", "__objclass__", "_sort_order_"))

# --------------------------------------------------------------------------- on the way in


@dataclass(slots=True)
class _Built:
    """A class that was made here; ``number`` is of the state that it has, with these ``names``."""

    cls: weakref.ref[type]
    number: int = 0
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """The attributes of a class as they came with one value."""

    attributes: dict[str, Any]
    number: int = field(default_factory=itertools.count(1).__next__)


# By identity: a metaclass may say that classes cannot be hashed. A class that is gone takes its
# entry along.
_built: dict[int, _Built] = {}
_making = threading.RLock()
_notes: ContextVar[list[tuple[type, State]] | None] = ContextVar("_notes", default=None)


def is_built(cls: type) -> bool:
    """Whether the class came from another process."""
    return id(cls) in _built


def find_class(key: str, module: str, qualname: str) -> type:
    """This process's own class.

    A class that is gone has been defined anew while the task ran, as cells of a notebook are: the
    one that has its name now is meant.

    Raises:
        LookupError: There is no such class any more.
    """
    found = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(key)
    if found is None:
        found = sys.modules.get(module)
        for name in qualname.split("."):
            found = getattr(found, name, None)
    if isinstance(found, type):
        return found
    msg = f"the class {module}.{qualname} does not exist any more in this process"
    raise LookupError(msg)


def build_class(
    key: str,
    sender: bytes,
    metaclass: type | None,
    name: str,
    bases: tuple[type, ...],
    namespace: dict[str, Any],
) -> type:
    """The class of this key: found, or made without its attributes."""
    del sender
    found: type | None = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(key)
    if found is not None:
        return found
    with _making:
        return _tracked(key, _made(metaclass or type(bases[0]), name, bases, namespace))


def build_enum(
    key: str,
    sender: bytes,
    metaclass: type,
    name: str,
    bases: tuple[type, ...],
    namespace: dict[str, Any],
    members: dict[str, Any],
) -> type:
    """The enum of this key: found, or made with its members."""
    del sender
    found: type | None = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(key)
    if found is not None:
        return found
    with _making:
        maker: Any = _foreign(metaclass)
        body = maker.__prepare__(name, bases)
        body.update(namespace)
        for member, value in members.items():
            body[member] = value
        with _quiet(bases):
            return _tracked(key, maker.__new__(metaclass, name, bases, body))


def _tracked(key: str, made: type) -> type:
    """Register a new class; where another thread was faster, its class."""
    cls: type = cloudpickle._lookup_class_or_track(key, made)
    if cls is made:
        number = id(cls)
        _built[number] = _Built(weakref.ref(cls, lambda _: _built.pop(number, None)))
    return cls


def _foreign(metaclass: type) -> type:
    """The nearest metaclass that was not built here.

    What a metaclass of the script did when the class was made is among the attributes, its own and
    those of other classes, and is not done again. A metaclass of a module has done it elsewhere.
    """
    return next(cls for cls in metaclass.__mro__ if not is_built(cls))


def _made(metaclass: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
    maker = _foreign(metaclass)
    if maker.__module__ not in _TYPING:  # these look at what comes later, as attributes
        try:
            with _quiet(bases):
                return _called(maker, metaclass, name, bases, namespace)
        except Exception:  # noqa: BLE001, S110  code of a module, which may want anything
            pass  # such as the keywords of the class statement, which are not known any more
    plain: Any = abc.ABCMeta if issubclass(metaclass, abc.ABCMeta) else type
    with _quiet(bases, all_of_them=True):
        made: type = plain.__new__(metaclass, name, bases, dict(namespace))
    return made


_TYPING = ("typing", "typing_extensions")


def _called(
    maker: Any, metaclass: Any, name: str, bases: tuple[type, ...], namespace: dict[str, Any]
) -> type:
    if maker is metaclass:
        fill = lambda body: body.update(namespace)  # noqa: E731
        return types.new_class(name, bases, {"metaclass": metaclass}, fill)
    made: type = maker.__new__(metaclass, name, bases, dict(namespace))
    maker.__init__(made, name, bases, dict(namespace))
    return made


@contextlib.contextmanager
def _quiet(bases: Iterable[type], *, all_of_them: bool = False) -> Generator[None]:
    """Have no ``__init_subclass__`` of the script called, for the reason of ``_foreign``."""
    kept = []
    for base in {id(base): base for each in bases for base in each.__mro__}.values():
        own = vars(base).get("__init_subclass__")
        if own is not None and (is_built(base) or (all_of_them and isinstance(own, classmethod))):
            type.__setattr__(base, "__init_subclass__", classmethod(_do_nothing))
            kept.append((base, own))
    try:
        yield
    finally:
        for base, own in kept:
            type.__setattr__(base, "__init_subclass__", own)


def _do_nothing(_: type, /, **keywords: object) -> None:
    """Stands for ``__init_subclass__``."""


def set_attributes(cls: type, state: tuple[bytes, dict[str, Any], dict[str, Any]]) -> None:
    """Give a class that was built here its attributes.

    A class of this process is left alone, and one that comes from this process to itself as well.
    """
    sender, attributes, members = state
    built = _built.get(id(cls))
    if built is None or (built.number and sender == _Here.name):
        return
    for name, own in members.items():
        vars(cls.__members__[name]).update(own)  # type: ignore[attr-defined]
    new = State(attributes)
    notes = _notes.get()
    if notes is not None:
        notes.append((cls, new))
    _apply(cls, built, new)


@contextlib.contextmanager
def noted() -> Generator[list[tuple[type, State]]]:
    """Note the states of classes that come with a value.

    Not those of a value inside it that is decoded by itself, nor of what other threads decode.
    """
    notes: list[tuple[type, State]] = []
    outer = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(outer)


def renew(cls: type, state: State) -> None:
    """Bring a class to a state that it had already, and may have lost to a later one."""
    built = _built.get(id(cls))
    if built is not None and built.number != state.number:
        _apply(cls, built, state)


def _apply(cls: type, built: _Built, state: State) -> None:
    new = state.attributes
    # Not in the way of a metaclass of the script; one in C insists on its own.
    set_ = setattr if _is_of_ctypes(cls) else type.__setattr__
    for name in built.names.difference(new):  # the owner took it away
        if name in vars(cls):
            with contextlib.suppress(AttributeError, TypeError):  # __doc__ always stays
                type.__delattr__(cls, name)
    for name, value in new.items():
        if name != _REGISTRY:
            set_(cls, name, value)
    for subclass in new.get(_REGISTRY, ()):
        if subclass is not None:
            abc.ABCMeta.register(cls, subclass)  # type: ignore[arg-type]
    built.number, built.names = state.number, frozenset(new) - {_REGISTRY}


# Where cloudpickle notes the classes that were registered with an abstract one.
_REGISTRY = "_abc_impl"
