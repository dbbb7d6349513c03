"""What a role does: its handler in the caller, and its part in the run of a chunk.

    caller   plan -> open -> lend                        accept -> finish -> close
    worker                   enter -> before -> after -> leave

A session has a handler of a role only if the call has such a parameter, and a worker a part of it.
``roles.py`` has the table of all.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sharedtask.options import Options
    from sharedtask.outcomes import Batch, Partial

# The position of the current item in its chunk is ``words[BASE] + words[COUNT]``: see
# ``backends/worker/status_page.py``.
BASE, COUNT = 1, 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """The parameters of one role in a call, to be checked.

    ``values`` are those of the role, ``shared`` all that are marked, ``written`` those that tasks
    write. ``rules`` are the declarations besides the roles. With ``star`` an item is unpacked
    into arguments.
    """

    task: str
    values: Mapping[str, Any]
    shared: Mapping[str, Any]
    written: Mapping[str, Any]
    rules: Mapping[str, Any]
    items: Iterable[Any]
    options: Options
    star: bool


class Reach(enum.Enum):
    """Where the tasks of a call run, and so what memory they share with the caller."""

    HERE = "in this process"
    MACHINE = "in processes of this machine"
    APART = "in processes of this machine that share no memory with the caller"
    CLUSTER = "on any machine"

    @property
    def copies(self) -> bool:
        """Whether tasks get copies of the caller's memory, and their writes come with results."""
        return self in (Reach.APART, Reach.CLUSTER)


@dataclass(frozen=True, slots=True)
class Stage:
    """The call that a handler is opened for."""

    task: str
    reach: Reach
    workers: int


class _Chunk(Protocol):
    @property
    def first(self) -> int: ...


class Counted(Protocol):
    """A chunk in flight, with the number of its results that were received."""

    @property
    def chunk(self) -> _Chunk: ...

    number: int
    received: int


class SlotTable(Protocol):
    """Assigns slots in shared memory to the chunks that worker processes have."""

    @property
    def ordered(self) -> bool:
        """Whether a chunk must not be cut when it has begun."""
        ...

    def enter(self, worker: int, item: Counted, /) -> int:
        """The slot of a chunk that goes to a worker."""
        ...

    def leave(self, worker: int, item: Counted, /) -> None:
        """The worker gave the chunk back, or finished it."""

    def end(self, worker: int, item: Counted, /) -> None:
        """The chunk is over, and its slot has what it wrote."""

    def reap(self, worker: int, item: Counted, /) -> None:
        """The worker died in the chunk; results that it left are counted as received."""


class Handler(ABC):
    """The parameters of one role in one call.

    Attributes:
        names: The parameters.
        block: If the order of items counts, so many are sent and combined together.
        slot_table: Assigns a slot in shared memory to each chunk in a worker, if the role needs it.
    """

    part: ClassVar[type[Part]]
    """The part of the role in the run of a chunk, made from what ``lend`` returned."""
    knows_items: ClassVar[bool] = False
    """Whether all items must be known before the first one runs."""
    comes_at_end: ClassVar[bool] = False
    """Whether a chunk's writes come with its end, and are lost with its worker."""

    names: frozenset[str] = frozenset()
    block: int | None = None
    slot_table: SlotTable | None = None

    @classmethod
    @abstractmethod
    def plan(cls, wanted: Wanted) -> Handler:
        """Check the values before anything runs.

        Raises:
            ArgumentError: A value cannot be written by tasks as its role says.
        """

    @staticmethod
    def array_of(value: Any) -> Any:
        """The array that the caller has passed."""
        return value

    def separated(self, items: Iterable[Any]) -> Iterable[Any]:
        """The items, with copies of those that share memory with the arrays."""
        return items

    @abstractmethod
    def open(self, stage: Stage) -> None:
        """Prepare the arrays. ``close`` follows, also after an error.

        Raises:
            StoreFullError: There is no room for them.
        """

    @abstractmethod
    def lend(self, name: str) -> Any:
        """What a worker gets for a parameter."""

    def accept(self, batch: Batch) -> None:
        """Items have ended: take what they wrote into the caller's arrays."""

    def finish(self) -> None:
        """All items have ended, without an error."""

    def close(self, *, entered: bool, gave_up: bool) -> None:
        """The call has ended; idempotent.

        ``entered``: items were begun; ``gave_up``: some of them may still run.
        """


@dataclass(frozen=True, slots=True)
class Entered:
    """A chunk that is about to run; for ``slot`` see ``Handler.slot_table``."""

    task: str
    number: int
    first: int
    slot: int
    star: bool
    words: Sequence[int]

    @property
    def position(self) -> int:
        """The position of the current item in the chunk."""
        return self.words[BASE] + self.words[COUNT]


class Part(ABC):
    """The part of a role in the run of one chunk, where it runs; making it enters the chunk.

    Attributes:
        common: The values that are the same for all items.
        lends: Whether ``before`` gives values to each item.
    """

    common: Mapping[str, Any] = MappingProxyType({})
    lends: bool = False

    @abstractmethod
    def __init__(self, values: Mapping[str, Any], chunk: Entered) -> None: ...

    def before(self, item: Any) -> Mapping[str, Any]:
        """The values that an item alone gets."""
        del item
        return {}

    def after(self, value: Any) -> Any:
        """The item has returned ``value``, which is not recorded yet; returns what is recorded.

        If it raises, the item counts as failed.
        """
        return value

    def take_back(self) -> None:
        """The item that returned last counts as failed: undo ``after``."""

    def leave(self, count: int) -> Partial | None:
        """The chunk is over, with ``count`` outcomes; returns what goes back with it."""
        del count
        return None

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The user's function, with what must be checked as it returns."""
        return function

    def around(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The call for an item, with ``after``, if no other part takes part."""
        after = self.after
        return lambda item: after(call(item))
