"""Types that an annotation allows -> a check of one value, made by pydantic's validators.

A check checks the outermost type only: ``dict[str, float]`` requires a dict and never reads its
entries, so a value of any size takes about a microsecond. Pydantic metadata of the user's own, such
as ``Annotated[Shared[int], Field(gt=0)]``, is honoured on top. The value is never replaced.
"""

import collections.abc
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, LiteralString

import numpy as np
import numpy.typing as npt
from pydantic_core import (
    ErrorDetails,
    PydanticCustomError,
    SchemaValidator,
    ValidationError,
    core_schema,
)

from sharedtask.system.loading import undisturbed
from sharedtask.system.records import dataclass
from sharedtask.text import one_of

from .hints import Choice, Placeholder

__all__ = ["Check", "build_check"]

CoreSchema = core_schema.CoreSchema
Array = npt.NDArray[Any]

# PEP 484: an int may stand for a float, and both for a complex.
_ALSO_ACCEPTED: dict[type, tuple[type, ...]] = {
    float: (float, int),
    complex: (complex, float, int),
}

# Errors about the type, which the check reports better for the whole union at once.
_TYPE_ERRORS = frozenset(
    {"callable_type", "is_instance_of", "literal_error", "none_required", "other_array"}
)


@dataclass(frozen=True, slots=True)
class Check:
    """Whether a value fits the types of one parameter.

    Attributes:
        expected: The types in words, "dict or None".
    """

    expected: str
    validator: SchemaValidator

    def complaint(self, value: object) -> str | None:
        """Return the complaint, as in "must be dict, got list"; None for a value that fits."""
        try:
            self.validator.validate_python(value)
        except ValidationError as error:
            return self._condense(error, value)
        except TypeError:
            # Pydantic's error for a constraint that cannot be compared with the value. Its text
            # contains the whole value, whatever the size.
            return f"has constraints that mean nothing for it, got {_describe(value)}"
        return None

    def _condense(self, error: ValidationError, value: object) -> str:
        for detail in error.errors(include_url=False, include_input=False):
            if detail["type"] not in _TYPE_ERRORS:
                return f"{_own_words(detail)}, got {_describe(value)}"
        got = _describe(value)
        # Occurs in notebooks: the cell with the class was run again after the value was created.
        same_name = got in self.expected.replace(" or ", ", ").split(", ")
        if same_name:
            return f"must be {self.expected}, got an older class of that name; make the value again"
        return f"must be {self.expected}, got {got}"


def _own_words(detail: ErrorDetails) -> str:
    """Turn the message of a constraint or of the user's own validator into a predicate."""
    raised = detail.get("ctx", {}).get("error")
    message = " ".join(str(raised or detail["msg"]).split())
    subject, _, predicate = message.partition(" ")
    return predicate if subject in {"Input", "Value"} else f"is refused: {message}"


def build_check(choices: Sequence[Choice]) -> Check | None:
    """Build the check for a parameter; None if any value is allowed.

    Raises:
        Exception: The user's own metadata does not make a validator; pydantic's error.
    """
    rules = [_rule(choice.type_) for choice in choices]
    if any(rule is None for rule in rules) and not any(choice.metadata for choice in choices):
        return None
    pairs = [
        (rule or _Rule("any value", core_schema.any_schema()), choice)
        for rule, choice in zip(rules, choices, strict=True)
    ]
    schemas = [_with_metadata(rule.schema, choice) for rule, choice in pairs]
    expected = one_of(dict.fromkeys(rule.expected for rule, _ in pairs))
    return Check(expected, SchemaValidator(_any_of(schemas)))


def _any_of(schemas: Sequence[CoreSchema]) -> CoreSchema:
    return schemas[0] if len(schemas) == 1 else core_schema.union_schema(list(schemas))


def _with_metadata(schema: CoreSchema, choice: Choice) -> CoreSchema:
    metadata = [each for each in choice.metadata if not isinstance(each, str)]
    if not metadata:
        return schema
    # Imported here because pydantic's own part takes longer to load than all of this package, and
    # code with such metadata has loaded it.
    with undisturbed("pydantic.type_adapter"):
        from pydantic import TypeAdapter

    annotation: Any = Annotated
    adapter: Any = TypeAdapter(annotation[(choice.type_, _Ready(schema), *metadata)])
    return typing.cast("CoreSchema", adapter.core_schema)


@dataclass(frozen=True, slots=True)
class _Ready:
    """Metadata that returns the shallow schema to pydantic, so that it never builds a deep one."""

    schema: CoreSchema

    def __get_pydantic_core_schema__(self, _source: object, _handler: object) -> CoreSchema:
        return self.schema

    def __hash__(self) -> int:
        return id(self)


# --- one type --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    expected: str
    schema: CoreSchema


def _rule(type_: Any) -> _Rule | None:
    """Return the rule for one type, None if it says nothing about a value."""
    if type_ is None or type_ is type(None):
        return _Rule("None", core_schema.none_schema())
    if type_ is LiteralString:
        return _instance_rule(str)
    if isinstance(type_, Placeholder):
        return None
    origin = typing.get_origin(type_) or type_
    if origin is Literal:
        return _literal_rule(typing.get_args(type_))
    if origin is collections.abc.Callable:
        return _Rule("callable", core_schema.callable_schema())
    return _class_rule(type_, origin) if isinstance(origin, type) else None


def _class_rule(type_: Any, class_: type) -> _Rule | None:
    if class_ is object or class_ is Any:  # Any is a class from Python 3.11 on
        return None
    if issubclass(class_, dict) and hasattr(class_, "__total__"):  # a TypedDict of either home
        return _instance_rule(dict)
    if getattr(class_, "_is_protocol", False) and not _is_runtime(class_):
        return None
    if issubclass(class_, np.ndarray):
        return _array_rule(class_, typing.get_args(type_))
    return _instance_rule(class_)


def _is_runtime(protocol: type) -> bool:
    return bool(getattr(protocol, "_is_runtime_protocol", False))


def _instance_rule(class_: type) -> _Rule:
    accepted = [core_schema.is_instance_schema(c) for c in _ALSO_ACCEPTED.get(class_, (class_,))]
    if class_.__module__ == "__main__":
        accepted = [core_schema.is_instance_schema(_Redefinable("Now", (), {"first": class_}))]
    return _Rule(class_.__qualname__.rpartition("<locals>.")[2], _any_of(accepted))


class _Redefinable(type):
    """Represents a notebook's class: its cell may be run again, without that of the task."""

    first: type

    def __instancecheck__(cls, value: object) -> bool:
        if isinstance(value, cls.first):
            return True
        now = vars(sys.modules["__main__"]).get(cls.first.__qualname__)
        return isinstance(now, type) and now.__module__ == "__main__" and isinstance(value, now)


def _literal_rule(values: Sequence[Any]) -> _Rule:
    return _Rule(one_of(map(repr, values)), core_schema.literal_schema(list(values)))


# --- arrays ----------------------------------------------------------------------------------

_ABSTRACT_SCALARS = frozenset(
    {
        np.generic,
        np.number,
        np.integer,
        np.signedinteger,
        np.unsignedinteger,
        np.inexact,
        np.floating,
        np.complexfloating,
        np.flexible,
        np.character,
    }
)


def _array_rule(class_: type[Array], arguments: Sequence[Any]) -> _Rule:
    shape, dtype = (*arguments, Any, Any)[:2] if arguments else (Any, Any)
    scalars, sizes = _scalars(dtype), _sizes(shape)
    expected = class_.__qualname__
    if scalars:
        expected += f" of {one_of(_scalar_name(each) for each in scalars)}"
    if sizes is not None:
        expected += f", shape {_shape_text(sizes)}"
    if not scalars and sizes is None:
        return _Rule(expected, core_schema.is_instance_schema(class_))
    test = _array_test(class_, scalars, sizes)
    return _Rule(expected, core_schema.no_info_plain_validator_function(test))


def _array_test(
    class_: type[Array], scalars: Sequence[type], sizes: Sequence[frozenset[int]] | None
) -> Callable[[Any], Any]:
    def test(value: Any) -> Any:
        fits = (
            isinstance(value, class_)
            and (not scalars or any(_has_scalar(value, each) for each in scalars))
            and (sizes is None or _has_sizes(value.shape, sizes))
        )
        if not fits:
            raise PydanticCustomError("other_array", "another array")
        return value

    return test


def _scalars(dtype: Any) -> tuple[type, ...]:
    """Return the scalar types of ``np.dtype[...]``, nothing if every dtype is allowed."""
    inner = [each for part in _members(dtype) for each in _members(*typing.get_args(part))]
    known = tuple(each for each in inner if isinstance(each, type) and each is not Any)
    return known if len(known) == len(inner) else ()


_UNIONS = (typing.Union, UnionType)


def _members(*annotations: Any) -> tuple[Any, ...]:
    """Return the members of a union, its type variables replaced by their bounds."""
    members: list[Any] = []
    for each in annotations or (Any,):
        if isinstance(each, typing.TypeVar):
            members += _members(*(each.__constraints__ or (each.__bound__ or Any,)))
        elif typing.get_origin(each) in _UNIONS:
            members += _members(*typing.get_args(each))
        else:
            members.append(each)
    return tuple(members)


def _has_scalar(value: Array, scalar: type) -> bool:
    if issubclass(value.dtype.type, scalar):
        return True
    # int64 has two names in C, and NDArray[float] is written for NDArray[np.float64].
    return scalar not in _ABSTRACT_SCALARS and bool(value.dtype == np.dtype(scalar))


def _scalar_name(scalar: type) -> str:
    return scalar.__name__ if scalar in _ABSTRACT_SCALARS else np.dtype(scalar).name


def _sizes(shape: Any) -> tuple[frozenset[int], ...] | None:
    """Return the allowed sizes per dimension, each empty for any size; None for any shape.

    Source:
        numpy's shape typing: ``np.ndarray[tuple[int, Literal[512]], np.dtype[np.float32]]``.
    """
    dimensions = typing.get_args(shape)
    if typing.get_origin(shape) is not tuple or not all(map(_is_dimension, dimensions)):
        return None
    return tuple(frozenset(_literal_sizes(each)) for each in dimensions)


def _is_dimension(annotation: Any) -> bool:
    # An ellipsis or an unpacked tuple leaves the number of dimensions open.
    unpacked = getattr(annotation, "__unpacked__", typing.get_origin(annotation) is typing.Unpack)
    return annotation is not Ellipsis and not unpacked


def _literal_sizes(dimension: Any) -> Iterable[int]:
    return typing.get_args(dimension) if typing.get_origin(dimension) is Literal else ()


def _has_sizes(shape: Sequence[int], sizes: Sequence[frozenset[int]]) -> bool:
    pairs = zip(shape, sizes, strict=False)
    return len(shape) == len(sizes) and all(n in allowed or not allowed for n, allowed in pairs)


# --- words -----------------------------------------------------------------------------------


def _shape_text(sizes: Sequence[frozenset[int]]) -> str:
    words = ["|".join(map(str, sorted(each))) if each else "any" for each in sizes]
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"


def _describe(value: object) -> str:
    name = type(value).__qualname__.rpartition("<locals>.")[2]
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"{name} of {value.dtype.name}, shape {value.shape}"
    if isinstance(value, bool | int | float | str) and len(repr(value)) <= 40:
        return repr(value)
    return name
