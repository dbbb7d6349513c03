"""The interface that every backend implements, and the messages that pass through it.

A backend makes a session of a call, which is then *opened*; chunks of items are *submitted* to it,
and reports of them arrive at the sink in any order, from any thread. That is all the conductor
(``task/run.py``) knows of a backend.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sharedtask.errors import ClosedError
from sharedtask.system import interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from queue import SimpleQueue

    import numpy.typing as npt

    from sharedtask.annotations import Role
    from sharedtask.options import Verify
    from sharedtask.outcomes import Batch, Report
    from sharedtask.worker.randomness import Randomness
    from sharedtask.writing.locked.regions import Regions
    from sharedtask.writing.partitioned.partitions import Blocks
    from sharedtask.writing.reduced.operations import Total


@dataclass(frozen=True, slots=True)
class SharedValue:
    """A value on its way to the workers, and the role of its parameter."""

    value: Any
    role: Role


# See ``Call.prompt``.
PROMPT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use before another takes its place; None for any amount.

    ``memory`` is its private memory in bytes, ``items`` how many it runs.
    """

    memory: int | None
    items: int | None

    @classmethod
    def of(cls, memory: int | None, items: int | None) -> Limits | None:
        """None where there are none."""
        return None if memory is None and items is None else cls(memory, items)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a task: ``function(*bound, item, *args, **kwargs, **shared)`` for every item.

    ``bound_name`` is the name in ``shared`` under which the bound object itself is shared, and
    ``star`` says that every item is unpacked into positional arguments. ``timeout`` is in seconds.
    With ``stops`` no further item of a chunk is begun after one that raised; with ``splits`` a
    chunk may be ended early, so that idle workers get the rest. With ``strict`` it is an error
    where a task changes a value that all of them see. Captured arrays of at least ``capture_from``
    bytes are shared. ``workers`` is None where the backend shall decide; ``ray_options`` are for
    Ray alone, ``limits`` for workers of our own.

    ``locked`` says what is locked together in the arrays that tasks lock. ``totals`` are those that
    they add to. With ``itemwise`` each item adds to an array of its
    own, so that one that fails adds nothing. Where the order of the items counts, ``block`` of them
    travel and are combined together. With ``prompt`` results are reported ``PROMPT_SECONDS`` after
    they are there, at the end of the item in hand: they are to outlive the caller.
    ``randomness`` makes generators for each item, where a parameter wants one. With ``uncopied``
    tasks that run in the caller get its own objects where nothing is marked.
    """

    task: str
    function: Callable[..., Any]
    bound: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shared: Mapping[str, SharedValue]
    bound_name: str | None
    blocks: Mapping[str, Blocks]
    totals: Mapping[str, Total]
    locked: Mapping[str, Regions]
    randomness: Randomness | None
    itemwise: bool
    block: int | None
    prompt: bool
    star: bool
    timeout: float | None
    workers: int | None
    limits: Limits | None
    verify: Verify
    capture_from: int | None
    stops: bool
    splits: bool
    strict: bool
    uncopied: bool
    ray_options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive items; ``number`` is unique within the session."""

    number: int
    first: int
    items: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Crew:
    """Who works: how many at a time, on how many CPUs; seconds to a worker and back.

    ``largest`` is the most items that should travel together.
    """

    workers: int
    cpus: int
    overhead: float = 0.0001
    largest: int = 1 << 14


@dataclass(frozen=True, slots=True)
class Share:
    """How one shared value of a call got to the workers: ``token`` names its publication."""

    name: str
    token: int
    hit: bool


class Sink(Protocol):
    """Where a session sends its news."""

    def begun(self, chunk: int) -> bool:
        """Called just before a chunk is handed to a worker; False takes it back."""
        ...

    def report(self, report: Report) -> None:
        """Called with outcomes, by any thread; runs no user code and does not block."""


def require_process(pid: int) -> None:
    """Refuse to wait, in a forked child, for what the process ``pid`` has begun.

    Raises:
        ClosedError: This is another process.
    """
    if pid != os.getpid():
        raise ClosedError(FORKED)


FORKED = "this call was begun in the process that was forked, and its workers are there."


class Session(ABC):
    """A call.

    It is made by one step and opened by another, so that an interrupt between any two instructions
    finds either nothing opened, or a session that can be closed. ``crew`` says how many chunks run
    at a time, and how large they should be.
    """

    shares: Sequence[Share] = ()
    crew = Crew(1, 1)

    @abstractmethod
    def open(self) -> None:
        """Share what the call shares and make ready to run. Whatever it raises, ``close`` follows.

        Raises:
            UnshareableError: A shared value cannot be encoded.
            SerializationError: The function, or a value that every item gets, cannot be encoded.
            StoreFullError: A shared value does not fit.
        """

    @abstractmethod
    def submit(self, chunk: Chunk) -> None:
        """Accept a chunk; reports of it will come. Never raises for what an item is.

        The thread that submits calls ``wait`` at once, or else ``leave``.
        """

    def leave(self) -> None:
        """See that what was submitted goes on while this thread does other things."""

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        """The next report from the queue that the sink fills; None at the time ``until``.

        A backend may use the waiting thread for its own work. ``leaves`` says that the thread goes
        on to other things than the next ``wait``.
        """
        del leaves
        try:
            seconds = None if until is None else max(until - monotonic(), 0.0)
            return interrupts.exposed(reports.get, True, seconds)
        except Empty:
            return None

    def nudge(self) -> None:
        """Have the thread in ``wait`` look at the queue again."""

    def accept(self, batch: Batch) -> None:
        """Called with results of a call whose tasks write, by the thread that asked for them.

        The caller's arrays hold the blocks of these items when it returns.
        """

    def finish(self) -> None:
        """Called at the end of a call that succeeded: the caller's totals are complete then."""

    @abstractmethod
    def fingerprints(self, shared: Mapping[str, SharedValue]) -> dict[str, bytes]:
        """Digests of these values, which the session shares, by their contents."""

    def fingerprint_of(self, array: npt.NDArray[Any]) -> bytes | None:
        """The digest of an array's bytes, where the session knows it."""
        del array
        return None

    @abstractmethod
    def close(self) -> None:
        """End the call. Chunks that are not done are given up; reports may still come, unasked for.

        The caller's arrays are the caller's from then on. A session that was not opened, or only in
        part, can be closed as well; twice is once. May run in a finalizer, at any moment: with
        chunks in flight it takes no lock.
        """

    def kill(self) -> None:
        """End the call, and now what runs of it, where the backend can.

        It waits a moment for that end, so that nothing is written after it returns.
        """
        self.close()


class _Over(Session):
    """Stands for a session that was closed.

    A session knows its run and its run the session. Left alone, the two would keep the arrays of
    the call until a garbage collection.
    """

    def open(self) -> None:
        """What was closed is not opened again."""

    def submit(self, chunk: Chunk) -> None:
        """Nothing runs any more."""

    def fingerprints(self, shared: Mapping[str, SharedValue]) -> dict[str, bytes]:
        """Nothing is shared any more."""
        del shared
        return {}

    def close(self) -> None:
        """Twice is once."""


OVER = _Over()


class Backend(ABC):
    """A place where tasks run."""

    name: ClassVar[str]
    in_caller: ClassVar[bool] = False
    """Whether ``submit`` runs the chunk at once, in the thread that calls it."""

    @property
    def started_its_runtime(self) -> bool:
        """Whether what it runs on was started by it, and not found."""
        return False

    @abstractmethod
    def session(self, call: Call, sink: Sink) -> Session:
        """A session that is not open yet."""

    @abstractmethod
    def stored(self, tokens: Iterable[int]) -> list[int]:
        """The sizes in bytes of those publications that a later call could use again."""

    @abstractmethod
    def forget(self, tokens: Iterable[int]) -> None:
        """Give these publications up."""

    @abstractmethod
    def limit(self) -> int:
        """How many bytes the publications of all tasks may take together."""

    @abstractmethod
    def close(self) -> None:
        """End the workers and give all memory back."""
