"""Classes that other processes cannot import: of a script, a notebook cell, a function.

Such a class is sent with its attributes, and is built once in each receiving process::

    owner --(key, attributes)--> worker      makes the class under its key, or brings it up to date
    owner <--------(key)-------- worker      finds its own class: its attributes are not set

The owner is the process that defined the class. In every value that it receives, from a worker or
from its own memory, its class is the program's own, unchanged. The key is cloudpickle's, so that a
program that uses cloudpickle as well gets the same classes.
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
from enum import Enum
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

from sharedtask.system import forks
from sharedtask.system.forks import Step
from sharedtask.system.records import dataclass, field

from . import class_memos

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

__all__ = [
    "State",
    "build_class",
    "build_enum",
    "by_key",
    "by_value",
    "collected_states",
    "find_class",
    "is_built",
    "renew",
    "sender",
    "set_attributes",
]


class _Here:
    """A name of this process; a forked child gets another one."""

    name = b""

    @classmethod
    def renew(cls) -> None:
        cls.name = os.urandom(8)


_Here.renew()
forks.in_child(Step.IDENTITY, _Here.renew)


def sender() -> bytes:
    """The name of this process in what it sends."""
    return _Here.name


# -------------------------------------------------------------------------- on the way out


def by_key(cls: type) -> Any:
    """Reduce a class that was built here, for the process that it came from."""
    key = cloudpickle._get_or_create_tracker_id(cls)
    return find_class, (key, cls.__module__, cls.__qualname__)


def by_value(cls: type, attributes: dict[str, Any]) -> Any:
    """Reduce a class with all ``attributes`` that cloudpickle found in it.

    The arguments contain what Python needs to create the class. The attributes are set after that,
    since they may refer to the class.
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
# Attributes from which ctypes derives the memory layout and the fields.
_OF_CTYPES = ("_fields_", "_pack_", "_layout_", "_anonymous_", "_type_", "_length_")


def _namespace(cls: type) -> dict[str, Any]:
    """The namespace with which Python creates a class."""
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
    """The attributes that are set after the class was created."""
    rest = {
        name: value
        for name, value in attributes.items()
        if (name not in namespace or name == "__slots__")
        and not _is_slot(cls, value)
        and not class_memos.is_noted(name, value)
    }
    rest[_HEAD] = cls.__bases__, cls.__name__, cls.__qualname__
    abstract = class_memos.registered_with(cls)
    return {**rest, _ABSTRACT: abstract} if abstract else rest


def _of_members(cls: type[Enum]) -> dict[str, dict[str, Any]]:
    """Attributes of enum members besides name and value: ``__init__`` is not called again."""
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
    """A class that was built here; ``number`` of its state, with these ``names``."""

    cls: weakref.ref[type]
    number: int = 0
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """The attributes of a class as they came with one value."""

    attributes: dict[str, Any]
    number: int = field(default_factory=itertools.count(1).__next__)


# By identity: a metaclass may make classes unhashable. The entry of a freed class is removed.
_built: dict[int, _Built] = {}
_making = threading.RLock()
_notes: ContextVar[list[tuple[type, State]] | None] = ContextVar("_notes", default=None)


def is_built(cls: type) -> bool:
    """Whether the class came from another process."""
    return id(cls) in _built


def find_class(key: str, module: str, qualname: str) -> type:
    """This process's own class.

    A class may have been redefined while the task ran, as notebook cells do: then the class that
    has its name now is returned.

    Raises:
        LookupError: The class does not exist any more.
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
    """The class of this key: found, or created without its attributes."""
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
    """The enum of this key: found, or created with its members."""
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
    """Register a new class; if another thread was faster, return its class."""
    cls: type = cloudpickle._lookup_class_or_track(key, made)
    if cls is made:
        number = id(cls)
        _built[number] = _Built(weakref.ref(cls, lambda _: _built.pop(number, None)))
    return cls


def _foreign(metaclass: type) -> type:
    """The nearest metaclass that was not built here.

    The effects of a script's metaclass at the creation of the class are among the attributes, its
    own and those of other classes, and must not be repeated. A metaclass of a module has had its
    effects elsewhere.
    """
    return next(cls for cls in metaclass.__mro__ if not is_built(cls))


def _made(metaclass: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
    maker = _foreign(metaclass)
    if maker.__module__ not in _TYPING:  # these read attributes that are set later
        try:
            with _quiet(bases):
                return _called(maker, metaclass, name, bases, namespace)
        except Exception:  # noqa: BLE001, S110  code of a module, which may want anything
            pass  # such as the keywords of the class statement, which are lost
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
    """Suppress ``__init_subclass__`` of the script, for the reason of ``_foreign``."""
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
    """Replaces ``__init_subclass__``."""


def set_attributes(cls: type, state: tuple[bytes, dict[str, Any], dict[str, Any]]) -> None:
    """Give a class that was built here its attributes.

    A class that this process defined is left unchanged, also if its state comes back.
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
def collected_states() -> Generator[list[tuple[type, State]]]:
    """Collect the states of classes that come with a value.

    Without those of an inner value that is decoded by itself, or of other threads.
    """
    notes: list[tuple[type, State]] = []
    outer = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(outer)


def renew(cls: type, state: State) -> None:
    """Reset a class to a state that it had before, and that a later one may have replaced."""
    built = _built.get(id(cls))
    if built is not None and built.number != state.number:
        _apply(cls, built, state)


def _apply(cls: type, built: _Built, state: State) -> None:
    new = state.attributes
    # Bypass a metaclass of the script; one in C does not allow that.
    set_ = setattr if _is_of_ctypes(cls) else type.__setattr__
    for name in built.names.difference(new):  # the owner removed it
        if name in vars(cls):
            with contextlib.suppress(AttributeError, TypeError):  # __doc__ cannot be removed
                type.__delattr__(cls, name)
    for name, value in new.items():
        if name not in _NO_ATTRIBUTES:
            set_(cls, name, value)
    _apply_head(cls, new[_HEAD], is_new=not built.number)
    class_memos.register(cls, new.get(_ABSTRACT, ()))
    for subclass in new.get(_REGISTRY, ()):
        if subclass is not None:
            abc.ABCMeta.register(cls, subclass)  # type: ignore[arg-type]
    class_memos.forget_results(cls)
    built.number, built.names = state.number, frozenset(new) - _NO_ATTRIBUTES


def _apply_head(cls: type, head: tuple[Any, ...], *, is_new: bool) -> None:
    """Set what the class statement gave the class, and the owner may have changed since.

    Raises:
        TypeError: Python refuses these bases.
    """
    for name, value in zip(("__bases__", "__name__", "__qualname__"), head, strict=True):
        if getattr(cls, name) != value:
            with contextlib.suppress(*((TypeError,) if is_new else ())):  # its metaclass chose
                type.__setattr__(cls, name, value)


# In the first cloudpickle lists the classes registered with an abstract one, in the second are the
# abstract ones that a class is registered with.
_REGISTRY, _ABSTRACT = "_abc_impl", "_sharedtask_abstract"
# Bases, name and qualified name.
_HEAD = "_sharedtask_head"
_NO_ATTRIBUTES = frozenset((_REGISTRY, _ABSTRACT, _HEAD))
