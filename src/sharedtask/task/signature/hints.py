"""An annotation in the source -> its role and the types it allows.

Annotations are objects, strings (``from __future__ import annotations``) or contain strings
(``Shared["Model"]``), and a name in a string may exist only for type checkers or only inside the
function around the definition. So each annotation is evaluated by itself, at the moment of
decoration, and an unknown name becomes a ``Placeholder``: ``Shared[Unknown] | None`` still means
that the value is shared, only not which type it must have.

``typing.get_type_hints`` is not used: it fails for all parameters if one name is unknown, does not
see the names of an enclosing function, and would store placeholders inside the user's own forward
references.
"""

import builtins
import contextlib
import sys
import typing
from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FrameType, UnionType
from typing import Annotated, Any, ForwardRef, NewType, Optional, TypeVar, Union

from sharedtask.annotations import (
    CopyOnWrite,
    Made,
    Partitioned,
    PerWorker,
    Reduced,
    Role,
    Shared,
)
from sharedtask.system.records import dataclass
from sharedtask.writing.locked.locked import Locked
from sharedtask.writing.locked.regions import Regions
from sharedtask.writing.partitioned.partitions import Partition
from sharedtask.writing.reduced.operations import Reduction

__all__ = ["Choice", "Hint", "Names", "Placeholder", "read_hint"]

# Names that a string may use although they do not exist at run time.
_KNOWN_WORDS: Mapping[str, object] = {
    "Shared": Shared,
    "CopyOnWrite": CopyOnWrite,
    "Partitioned": Partitioned,
    "Partition": Partition,
    "Locked": Locked,
    "PerWorker": PerWorker,
    "Reduced": Reduced,
    "Reduction": Reduction,
    "Regions": Regions,
    "Rng": Annotated[Any, Made.RNG],
    "Annotated": Annotated,
    "Optional": Optional,
    "Union": Union,
}


class Placeholder:
    """Replaces a name that does not exist at run time; every use of it returns another one."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def __getattr__(self, name: str) -> Any:
        # typing probes its arguments for special names; those must stay absent.
        if name.startswith("__"):
            raise AttributeError(name)
        return _KNOWN_WORDS.get(name, Placeholder(f"{self._text}.{name}"))

    def __getitem__(self, _: object) -> "Placeholder":
        return self

    def __call__(self, *_: object, **__: object) -> "Placeholder":
        """The result of calling the unknown object."""
        return self

    def __or__(self, other: object) -> Any:
        return _union(self, other)

    def __ror__(self, other: object) -> Any:
        return _union(other, self)


def _union(left: object, right: object) -> Any:
    # Through Any: type checkers cannot express a union of values.
    make_union: Any = Union
    return make_union[left, right]


class Names:
    """The names available to the annotations of a function, nearest first.

    Those are the variables of the functions and class bodies around it, its type parameters, its
    module's globals, the builtins and, for the rest, placeholders.
    """

    def __init__(self, function: object) -> None:
        self._globals: dict[str, Any] = getattr(function, "__globals__", {})
        self._function = function
        self._inner: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        if self._inner is None:
            self._inner = _names_around(self._function)
        for scope in (self._inner, self._globals, vars(builtins), _KNOWN_WORDS):
            if name in scope:
                return scope[name]
        return Placeholder(name)

    def evaluate(self, text: str) -> Any:
        """Return the object of an annotation's string."""
        # The string is the user's own source, evaluated as the interpreter would. eval() asks
        # its last argument for items only, so the rest of a Mapping would be dead code.
        scope: Any = self
        return eval(text, self._globals, scope)  # noqa: S307


def _names_around(function: object) -> dict[str, Any]:
    parameters = {each.__name__: each for each in getattr(function, "__type_params__", ())}
    if "." not in getattr(function, "__qualname__", ""):
        return parameters
    names: dict[str, Any] = {}
    for frame in _frames_around(getattr(function, "__code__", None)):
        names = {**frame.f_locals, **names}
    return {**names, **_closure(function), **parameters}


def _frames_around(code: CodeType | None) -> Iterator[FrameType]:
    """Yield the running functions and class bodies that contain ``code``, innermost first.

    A decorator runs while they do. They are recognised by having the code among their constants,
    which is exact, unlike a comparison of names.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and code is not None:
        if _contains(frame.f_code, code):
            if frame.f_locals is frame.f_globals:
                return
            yield frame
            code = frame.f_code
        frame = frame.f_back


def _contains(outer: CodeType, inner: CodeType) -> bool:
    inside = [constant for constant in outer.co_consts if isinstance(constant, CodeType)]
    # def f[T](): compiles to a function around f that has returned when decorators run.
    generic = [code for code in inside if code.co_name.startswith("<generic parameters")]
    return any(code is inner for code in inside) or any(_contains(code, inner) for code in generic)


def _closure(function: object) -> dict[str, Any]:
    names: dict[str, Any] = {}
    code: CodeType | None = getattr(function, "__code__", None)
    cells: tuple[CellType, ...] = getattr(function, "__closure__", None) or ()
    for name, cell in zip(code.co_freevars if code else (), cells, strict=False):
        # An empty cell belongs to a variable that is assigned after the function is defined.
        with contextlib.suppress(ValueError):
            names[name] = cell.cell_contents
    return names


Rule = Partition | Reduction | Regions


# --- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """One type that an annotation allows, outside its brackets, and its metadata."""

    type_: Any
    metadata: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Hint:
    """The contents of an annotation.

    Attributes:
        roles: The roles at its outside, including those in a union; without duplicates.
        nested: The roles inside its brackets, where they have no meaning; ``Made`` as well.
        choices: The types it allows; a plain type is one choice, a union several.
        rule: Its rule besides the role: how an item names its block, how tasks add up.
        made: Whether the value is made for each item.
    """

    roles: frozenset[Role] = frozenset()
    nested: frozenset[Role | Made] = frozenset()
    choices: tuple[Choice, ...] = ()
    rule: Rule | None = None
    made: bool = False


def read_hint(annotation: object, names: Names) -> Hint:
    """Read one annotation.

    Raises:
        Exception: A string in it cannot be evaluated: the error of the evaluation.
    """
    marks: list[Any] = []
    choices = tuple(_choices(annotation, (), marks, names))
    nested = (role for choice in choices for role in _roles_inside(choice.type_))
    made = Made.RNG in marks
    marks = [mark for mark in marks if not isinstance(mark, Made)]
    rule = next((mark for mark in marks if not isinstance(mark, Role)), None)
    roles = {mark if isinstance(mark, Role) else mark.role for mark in marks}
    return Hint(frozenset(roles), frozenset(nested), choices, rule, made)


def _choices(
    annotation: Any, metadata: tuple[Any, ...], marks: list[Any], names: Names
) -> Iterator[Choice]:
    """Yield the choices of an annotation and add our markers in it to ``marks``."""
    if typing.get_origin(annotation) is Annotated:
        marks.extend(each for each in annotation.__metadata__ if isinstance(each, _MARKS))
        own = (each for each in annotation.__metadata__ if not isinstance(each, _MARKS))
        metadata = (*own, *metadata)
    if Locked in (annotation, typing.get_origin(annotation)):
        marks.append(Role.LOCKED)
    inner = _wrapped(annotation, names)
    if not inner:
        yield Choice(annotation, metadata)
    for each in inner:
        yield from _choices(each, metadata, marks, names)


_MARKS = (Role, Made, Partition, Reduction, Regions)


def _wrapped(annotation: Any, names: Names) -> tuple[Any, ...]:
    """Return what an annotation wraps at its outside, nothing if it is a type by itself."""
    if isinstance(annotation, str):
        return (names.evaluate(annotation),)
    if isinstance(annotation, ForwardRef):
        return (names.evaluate(annotation.__forward_arg__),)
    if isinstance(annotation, NewType):
        return (annotation.__supertype__,)
    if isinstance(annotation, TypeVar):
        return annotation.__constraints__ or (annotation.__bound__ or Any,)
    return _wrapped_in_brackets(annotation, typing.get_origin(annotation))


def _wrapped_in_brackets(annotation: Any, origin: Any) -> tuple[Any, ...]:
    if origin is Annotated:
        return (annotation.__origin__,)
    if origin is Locked:
        return typing.get_args(annotation)
    if annotation is Locked:
        return (Any,)
    if origin is Union or origin is UnionType:
        return typing.get_args(annotation)
    # By name: the class is new in Python 3.12 and also exists in typing_extensions.
    for alias in (annotation, origin):
        if type(alias).__name__ == "TypeAliasType":
            return (_filled_in(alias, typing.get_args(annotation)),)
    return ()


def _filled_in(alias: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the value of a ``type`` statement, as in ``NDArray[np.float32]`` of new numpys."""
    value = alias.__value__
    given = dict(zip(alias.__type_params__, arguments, strict=False))
    parameters = getattr(value, "__parameters__", ())
    if not given or not parameters:
        return value
    return value[tuple(given.get(parameter, parameter) for parameter in parameters)]


def _roles_inside(annotation: Any) -> Iterator[Role | Made]:
    for argument in typing.get_args(annotation):
        metadata = getattr(argument, "__metadata__", ())
        yield from (each for each in metadata if isinstance(each, Role | Made))
        yield from _roles_inside(argument)
