"""The annotations of parameters that define how their values are sent."""

import enum
from typing import Annotated, Any, TypeVar

__all__ = [
    "CopyOnWrite",
    "Made",
    "Partitioned",
    "PerWorker",
    "Reduced",
    "Role",
    "Shared",
    "as_annotation",
]

T = TypeVar("T")


class Role(enum.Enum):
    """How the value of a parameter reaches the task; the member's value is the keyword."""

    SHARED = "shared"
    COPY_ON_WRITE = "copy_on_write"
    PARTITIONED = "partitioned"
    REDUCED = "reduced"
    LOCKED = "locked"
    PER_WORKER = "per_worker"

    writes: bool
    """Whether the caller sees what tasks write."""

    def __init__(self, keyword: str) -> None:
        self.writes = keyword in {"partitioned", "reduced", "locked"}

    @property
    def word(self) -> str:
        """The annotation."""
        return "".join(part.capitalize() for part in self.value.split("_"))


class Made(enum.Enum):
    """Arguments that the caller does not pass: the worker creates them for each item."""

    RNG = "rng"


# Plain assignments: type checkers see the bare T, and get_type_hints finds the marker. A ``type``
# statement would hide it.
Shared = Annotated[T, Role.SHARED]
"""Read-only in the task, in shared memory, never copied per item."""

CopyOnWrite = Annotated[T, Role.COPY_ON_WRITE]
"""Scratch memory: the caller and other items do not see writes.

Writable in the task and private to its item. For results use Partitioned and Reduced.
"""

Partitioned = Annotated[T, Role.PARTITIONED]
"""Writable in the task: the item's own block of the caller's array, and no other part."""

Reduced = Annotated[T, Role.REDUCED]
"""In the task an array of the worker, to add to; the call combines all of them in the caller's."""

PerWorker = Annotated[T, Role.PER_WORKER]
"""In the task a value that the worker made once and keeps; see ``per_worker``."""


# The class of ``Annotated[...]``, which typing has no public name for.
_Alias: Any = type(Shared)


class _Annotation(_Alias, _root=True):  # type: ignore[misc, call-arg]  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
    """An annotation that says what to write where it is called like a function."""

    def copy_with(self, parameters: Any) -> Any:
        """Return ``Shared[T]`` for another T, of this class as well."""
        return as_annotation(super().copy_with(parameters))

    def __call__(self, *_given: object, **_named: object) -> Any:
        """Raise the error that leads on."""
        raise TypeError(_CALLED[self.__metadata__[0]])


def as_annotation(alias: Any) -> Any:
    """Make an alias of ``Annotated`` explain itself where it is called."""
    alias.__class__ = _Annotation
    return alias


def _called(word: str, value: str) -> str:
    return (
        f"{word} annotates a parameter and is not called: write def f(item, x: {word}[T]), and"
        f" pass {value}: f.map(items, x=value)."
    )


_CALLED: dict[Role | Made, str] = {
    Role.SHARED: _called("Shared", "the value itself") + " share(value) stores one by hand.",
    Role.COPY_ON_WRITE: _called("CopyOnWrite", "the value itself"),
    Role.PARTITIONED: _called("Partitioned", "the array itself"),
    Role.REDUCED: _called("Reduced", "the array itself"),
    Role.PER_WORKER: _called("PerWorker", "per_worker(function, *args) as the value"),
    Made.RNG: (
        "Rng annotates a parameter and is not called: write def f(item, rng: Rng = per_item)."
        " Each item then gets a generator of its own, made from seed=."
    ),
}
for _alias in (Shared, CopyOnWrite, Partitioned, Reduced, PerWorker):
    as_annotation(_alias)
