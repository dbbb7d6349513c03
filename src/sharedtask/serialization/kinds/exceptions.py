"""Exceptions: reduced field by field, and rebuilt without calling ``__init__``.

Pickle builds an exception by calling its class with ``args``. For a class whose ``__init__`` takes
other arguments this fails or changes the exception, and fields in C besides ``args`` are lost:
``ImportError.name``, ``AttributeError.obj``, the ``filename`` of a class derived from ``OSError``.
A class that defines its own pickling is pickled that way.
"""

from __future__ import annotations

import builtins
import copyreg
import itertools
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Fields(NamedTuple):
    """All fields of an exception except its traceback and the exceptions that led to it.

    ``members`` are the values of slots and of fields in C, each with the class that defines it.
    """

    args: Any
    attributes: dict[str, Any]
    members: list[tuple[type, str, Any]]

    @classmethod
    def of(cls, error: BaseException) -> Fields:
        """The fields of ``error`` that differ from those of a bare exception of its class."""
        bare = _bare(error)
        members = [
            (descriptor.__objclass__, descriptor.__name__, value)
            for descriptor in _descriptors(type(error))
            if (value := _read(descriptor, error)) is not _read(descriptor, bare)
            and value is not _UNSET
        ]
        if isinstance(error, OSError):
            members += _that_are_none(error, members)
        return cls(_ARGS.__get__(error), dict(_DICT.__get__(error)), members)


def for_exception(cls: type) -> Callable[[Any, Any], Any] | None:
    """The reducer of a class of exceptions, None if it defines its own pickling."""
    return None if has_own_way(cls) else reduce_exception


def reduce_exception(error: BaseException, out: Any) -> Any:
    """An exception whose class does not define its own pickling."""
    del out
    if type(error) in copyreg.dispatch_table or _is_plain(error):
        return NotImplemented
    return reduction(error, Fields.of(error))


def reduction(error: BaseException, fields: Fields) -> Any:
    """In the form of ``__reduce__``. Fields are set last: they may refer to ``error`` itself."""
    return build, parts_of(error), tuple(fields), None, None, fill


def parts_of(error: BaseException) -> tuple[Any, ...]:
    """The arguments of ``build``: the class, and the fields of a group that cannot be set later."""
    if not issubclass(type(error), BaseExceptionGroup):
        return (type(error),)
    message, members = _MESSAGE.__get__(error), _EXCEPTIONS.__get__(error)
    return type(error), message, members


def _bare(error: BaseException) -> BaseException | None:
    try:
        return build(*parts_of(error))
    except TypeError:  # created only by a function of its module
        return None


def build(cls: type[BaseException], *content: Any) -> BaseException:
    """An exception without its fields."""
    made: BaseException = _layout(cls).__new__(cls, *content)
    return made


def fill(error: BaseException, state: tuple[Any, dict[str, Any], list[Any]]) -> None:
    """Set the fields, bypassing the class's own attribute setting.

    A class that was sent by value has attributes instead of the slots of the original.
    """
    args, attributes, members = state
    own = _DICT.__get__(error)
    _ARGS.__set__(error, args)
    slots = {d.__name__: d for d in _descriptors(type(error))} if attributes else {}
    for name, value in attributes.items():
        if name in slots:
            slots[name].__set__(error, value)
        else:
            own[name] = value
    for cls, name, value in members:
        if name in vars(cls):
            vars(cls)[name].__set__(error, value)
        else:
            own[name] = value


def has_own_way(cls: type) -> bool:
    """Whether a class defines its own pickling, or has fields that only it can read."""
    own = [base for base in cls.__mro__ if id(base) not in _BUILTIN]
    if any(way in vars(base) for base in own for way in _OWN_WAYS):
        return True
    known = 8 * sum(len(_slots(base)) for base in own) + 8  # and a list of weak references
    return bool(cls.__basicsize__ > _layout(cls).__basicsize__ + known)


_OWN_WAYS = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__setstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
)


def _layout(cls: type) -> Any:
    """The C class whose memory layout ``cls`` has: its ``__new__`` has to be called."""
    base = cls
    while id(base) not in _BUILTIN:
        base = base.__base__ or object
    return BaseExceptionGroup if base is ExceptionGroup else base


def _is_plain(error: BaseException) -> bool:
    """Whether pickle's own way is exact, as it is for most exceptions; it is the fastest."""
    return (
        id(type(error)) in _WITHOUT_FIELDS
        and not _DICT.__get__(error)
        and all(type(each) in _ATOMS for each in _ARGS.__get__(error))
    )


_ATOMS = frozenset((str, int, float, bool, bytes, complex, type(None)))


def _that_are_none(
    error: OSError, members: list[tuple[type, str, Any]]
) -> list[tuple[type, str, Any]]:
    """Fields of an OSError that were set to None.

    One that was never set reads as None too, so only the text tells them apart: that of
    ``OSError(None, None)`` is "[Errno None] None".
    """
    known = [each for each in members if each[0] is OSError]
    names = {name for _, name, _ in known}
    unknown = [(OSError, name, None) for name in _IN_TEXT if name not in names]
    args: Any = _ARGS.__get__(error)
    try:
        text = OSError.__str__(error)
        for count in range(len(unknown) + 1):
            for some in itertools.combinations(unknown, count):
                made: Any = build(OSError)
                fill(made, (args, {}, [*known, *some]))
                if OSError.__str__(made) == text:
                    return list(some)
    except Exception:  # noqa: BLE001, S110  user code: the text of a field
        pass
    return []


_IN_TEXT = ("errno", "strerror", "filename", "filename2")

# ------------------------------------------------------------------------------- descriptors

_UNSET = object()


def _read(descriptor: Any, error: BaseException | None) -> Any:
    try:
        return descriptor.__get__(error)
    except AttributeError:  # a slot without a value
        return _UNSET


def _descriptors(cls: type) -> Iterator[Any]:
    """Descriptors of slots and fields in C, also those that a derived class hides."""
    for base in cls.__mro__:
        found = _BUILTIN.get(id(base))
        yield from _slots(base) if found is None else found


def _slots(cls: type) -> list[Any]:
    return [each for each in vars(cls).values() if type(each) is MemberDescriptorType]


_ARGS: Any = vars(BaseException)["args"]
_DICT: Any = vars(BaseException)["__dict__"]
_MESSAGE: Any = vars(BaseExceptionGroup)["message"]
_EXCEPTIONS: Any = vars(BaseExceptionGroup)["exceptions"]


def _fields_in_c(cls: type) -> tuple[Any, ...]:
    # A group gets its own at creation. Of the fields of every exception, ``args`` is handled
    # separately, and the rest belongs to one process.
    if cls in (BaseException, BaseExceptionGroup):
        return ()
    written = [vars(OSError)["characters_written"]] if cls is OSError else []
    return (*_slots(cls), *written)


_CLASSES = [c for c in vars(builtins).values() if isinstance(c, type)]
_EXCEPTION_CLASSES = [c for c in _CLASSES if issubclass(c, BaseException)]
# By identity: a metaclass may make its classes equal to others, or unhashable.
_BUILTIN = {id(object): (), **{id(cls): _fields_in_c(cls) for cls in _EXCEPTION_CLASSES}}
_WITHOUT_FIELDS = frozenset(
    id(cls)
    for cls in _EXCEPTION_CLASSES
    if not issubclass(cls, BaseExceptionGroup)
    and not any(_BUILTIN[id(base)] for base in cls.__mro__)
)
