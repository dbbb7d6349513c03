"""All errors of sharedtask. The module imports little, because every worker loads it.

A class declares its fields like a dataclass; ``args`` has their values, and ``__str__`` builds the
text. An exception is pickled as its class and ``args``, so a round trip through another process is
exact; text joined in ``__init__`` would be lost or doubled there.

Each is also an instance of the standard class that code for other pools catches, if importing that
class is cheap: ``BrokenProcessPool`` would load all of multiprocessing.
"""

from concurrent.futures import BrokenExecutor
from pickle import PicklingError
from signal import Signals
from typing import Any, ClassVar, Self, dataclass_transform

__all__ = [
    "ArgumentError",
    "BackendUnavailableError",
    "ChangedValueError",
    "ChangedValueWarning",
    "ClosedError",
    "DefinitionError",
    "HintWarning",
    "IncompleteValueWarning",
    "InitializerError",
    "InvalidNameError",
    "ItemNote",
    "JournalError",
    "JournalWarning",
    "LockOrderError",
    "MemoryLimitError",
    "NameInUseError",
    "NameRefusedError",
    "OptionsError",
    "OverlapError",
    "RegionPoisonedError",
    "RemoteTraceback",
    "SerializationError",
    "SharedTaskError",
    "StoreFullError",
    "TaskExitError",
    "TaskTimeoutError",
    "UnknownNameError",
    "UnshareableError",
    "WorkerDiedError",
    "item_note",
    "set_fields",
]


@dataclass_transform()
class _Fields(Exception):  # noqa: N818 - not raised itself
    """An exception with a field for each annotation of its class; a value is its default."""

    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        if cls.__module__ == __name__:  # a user's subclass has what it sets itself
            own = {name: cls.__dict__.get(name, _REQUIRED) for name in cls.__annotations__}
            cls._defaults = {**cls._defaults, **own}

    def __init__(self, *given: object, **named: object) -> None:
        values = {**self._defaults, **dict(zip(self._defaults, given, strict=False)), **named}
        missing = [name for name, value in values.items() if value is _REQUIRED]
        if missing or len(values) > len(self._defaults) or len(given) > len(values):
            msg = f"{type(self).__name__} has the fields {', '.join(self._defaults)}"
            raise TypeError(msg)
        # Not ``super()``: OSError reads its arguments as errno, text and file name.
        BaseException.__init__(self, *values.values())
        for name, value in values.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        """The class and the text: a list of results prints its errors in this way."""
        return f"{type(self).__name__}({str(self)!r})"


_REQUIRED = object()


def set_fields(error: Exception, **values: object) -> None:
    """Set fields of an error of ours, and so its text; those that it does not have are left out."""
    assert isinstance(error, _Fields)  # noqa: S101  no other has fields
    for name in values.keys() & error._defaults.keys():
        setattr(error, name, values[name])
    error.args = tuple(getattr(error, name) for name in error._defaults)


class SharedTaskError(Exception):
    """Base of all errors of this library."""


class DefinitionError(SharedTaskError, ValueError):
    """Raised when a function cannot become a task with these annotations or lists of names."""


class OptionsError(SharedTaskError, ValueError):
    """Raised when an option is unknown or has a value that is not allowed."""


class ArgumentError(SharedTaskError, TypeError):
    """Raised when a value does not match the annotation of its parameter."""


class UnshareableError(SharedTaskError, TypeError):
    """Raised when a value belongs to one process and cannot be shared."""


class SerializationError(SharedTaskError, PicklingError):
    """Raised when a function, an argument or a result cannot be pickled or unpickled."""


class StoreFullError(SharedTaskError, MemoryError):
    """Raised when a value does not fit into the free shared memory."""


class BackendUnavailableError(SharedTaskError, ImportError):
    """Raised when a backend cannot run here, for example because a package is not installed."""


class ClosedError(SharedTaskError, RuntimeError):
    """Raised when a handle or a pool is used after it was closed."""


class OverlapError(_Fields, SharedTaskError, ValueError):
    """Raised when two items would write to the same elements of a partitioned array.

    Attributes:
        first: Position of one item in the input.
        second: Position of the other, greater than ``first``.
        parameter: Name of the parameter, "" if it is unknown.
        blocks: Both items and their indices as text: "item 3, [0:10]".
    """

    first: int
    second: int
    parameter: str = ""
    blocks: tuple[str, str] | None = None

    def __str__(self) -> str:
        one, other = self.blocks or (f"item {self.first}", f"item {self.second}")
        array = f"'{self.parameter}'" if self.parameter else "the array"
        return (
            f"{one}, and {other}, would write to the same elements of {array}."
            " Cut blocks that do not overlap. Or mark it Reduced, where all add to it, or Locked,"
            " where they take turns."
        )


class InvalidNameError(SharedTaskError, ValueError):
    """Raised when a name has a character that is not allowed, or a wrong length."""


class NameInUseError(_Fields, SharedTaskError, FileExistsError):
    """Raised when another process uses the name.

    Attributes:
        name: The name.
        pid: Process that uses it, None if it is unknown.
    """

    name: str
    pid: int | None = None

    def __str__(self) -> str:
        owner = "another process" if self.pid is None else f"process {self.pid}"
        return (
            f"the name {self.name!r} is in use by {owner}."
            " Take another name, or close the handle there."
        )


class UnknownNameError(_Fields, SharedTaskError, FileNotFoundError):
    """Raised when no value is shared under a name, or no longer.

    Attributes:
        name: The name.
        reason: The reason, or the name that was probably meant; "" if neither is known.
    """

    name: str
    reason: str = ""

    def __str__(self) -> str:
        reason = self.reason or "`sharedtask ls` lists the names that exist."
        return f"nothing is shared under the name {self.name!r}. {reason}"


class NameRefusedError(_Fields, SharedTaskError, PermissionError):
    """Raised when the entry of a name, or the directory of names, cannot be trusted.

    It is also raised for a writable attachment to a read-only value.

    Attributes:
        subject: The name, or the path of the directory.
        reason: The problem, and what to do.
    """

    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.subject!r} is refused: {self.reason}"


class WorkerDiedError(_Fields, SharedTaskError, BrokenExecutor):
    """Raised when a worker process died while it ran an item.

    It is a ``BrokenExecutor``, and so a ``RuntimeError``. Other items and the pool are not
    affected.

    Attributes:
        function: Name of the task.
        index: Position of the item in the input, None outside a map.
        item: The item itself.
        pid: Process id of the worker, None if it is unknown.
        signal: Number of the signal that killed it, None if it ended otherwise.
        exitcode: Exit code, None if a signal killed it.
        while_: Phase of its death, such as "while loading the shared values".
        out_of_memory: Whether the kernel killed it because memory ran out.
    """

    function: str
    index: int | None = None
    item: object = None
    pid: int | None = None
    signal: int | None = None
    exitcode: int | None = None
    while_: str = ""
    out_of_memory: bool = False

    def __str__(self) -> str:
        worker = "a worker" if self.pid is None else f"worker {self.pid}"
        phase = f", {self.while_}" if self.while_ else ""
        place = f"{_place(self.function, self.index)}{phase}"
        return f"{worker} {self._end()} in {place}.{self._advice()}"

    def _end(self) -> str:
        if self.signal is not None:
            return f"was killed by {_signal_name(self.signal)}"
        if self.exitcode is not None:
            return f"ended with exit code {self.exitcode}"
        return "died"

    def _advice(self) -> str:
        if self.out_of_memory:
            return _MEMORY_ADVICE
        if self.signal is not None:
            return _SIGNAL_ADVICE.get(self.signal, "")
        if self.exitcode is not None:
            return " A task returns or raises; look for os._exit() or an exit in native code."
        return ""


class MemoryLimitError(WorkerDiedError, MemoryError):
    """Raised when an item needed more private memory than ``memory_limit``, and its worker ended.

    Attributes:
        before: Private memory of the worker in bytes when the item started.
        reached: Its private memory when it was ended.
        limit: The limit in bytes.
    """

    before: int = 0
    reached: int = 0
    limit: int = 0

    def __str__(self) -> str:
        worker = "a worker" if self.pid is None else f"worker {self.pid}"
        place, limit = _place(self.function, self.index), _megabytes(self.limit)
        if self.before > self.limit:
            return (
                f"{place}, was not begun: a fresh worker has {_megabytes(self.before)} of private"
                f" memory, and memory_limit is {limit}. Set it higher; arrays in shared values do"
                " not count."
            )
        return (
            f"{place}, was ended with {worker}: its private memory grew from"
            f" {_megabytes(self.before)} to {_megabytes(self.reached)}, and memory_limit is"
            f" {limit}. Give the item less work, or set the limit higher."
        )


class TaskTimeoutError(_Fields, SharedTaskError, TimeoutError):
    """Raised when a task ran longer than ``timeout`` and its worker was ended.

    Attributes:
        function: Name of the task.
        index: Position of the item in the input, None outside a map.
        item: The item itself.
        timeout: The limit in seconds.
        pid: Process id of the worker that was ended, None if it is unknown.
    """

    function: str
    index: int | None = None
    item: object = None
    timeout: float | None = None
    pid: int | None = None

    def __str__(self) -> str:
        limit = "its timeout" if self.timeout is None else f"timeout={self.timeout:g} seconds"
        worker = "" if self.pid is None else f", worker {self.pid} was ended"
        place = _place(self.function, self.index)
        return f"{place}, took longer than {limit}{worker}. Allow more time, or give it less work."


class TaskExitError(_Fields, SharedTaskError):
    """Raised instead of an exception of a task that cannot be raised in the caller.

    These are exceptions that would end the caller, such as SystemExit and KeyboardInterrupt, and
    exceptions that cannot be rebuilt in this process.

    Attributes:
        function: Name of the task.
        class_name: Class of the original exception.
        text: Its text.
        traceback: Its traceback in the worker, as text.
        index: Position of the item in the input, None outside a map.
    """

    function: str
    class_name: str
    text: str = ""
    traceback: str = ""
    index: int | None = None

    def __str__(self) -> str:
        raised = f"{self.class_name}: {self.text}" if self.text else self.class_name
        place = _place(self.function, self.index)
        if self.class_name in {"SystemExit", "KeyboardInterrupt", "GeneratorExit"}:
            return f"{place}, raised {raised}. A task ends by returning or by raising an Exception."
        return f"{place}, raised {raised}. It cannot be raised here as itself."


class InitializerError(_Fields, SharedTaskError, BrokenExecutor):
    """Raised by the calls of an ``Executor`` whose initializer raised; it accepts no more calls.

    Attributes:
        function: Name of the initializer.
        class_name: Class of the exception that it raised.
        text: Its text.
    """

    function: str
    class_name: str
    text: str = ""

    def __str__(self) -> str:
        raised = f"{self.class_name}: {self.text}" if self.text else self.class_name
        return (
            f"the initializer {self.function}() raised {raised}. The executor takes no more calls:"
            " make another one."
        )


class RegionPoisonedError(_Fields, SharedTaskError, RuntimeError):
    """Raised on entering a region of a locked array whose writer died while it wrote.

    It is raised at each entry until a block with ``repair=True`` has rewritten the region.

    Attributes:
        parameter: Name of the parameter, "" if it is unknown.
        region: The requested region, as text: "[0:10]".
        pid: Process id of the writer, None if it is unknown.
    """

    parameter: str = ""
    region: str = ""
    pid: int | None = None

    def __str__(self) -> str:
        array = f"'{self.parameter}'" if self.parameter else "a locked array"
        what = f"the region {self.region} of {array}" if self.region else array
        worker = "a worker" if self.pid is None else f"worker {self.pid}"
        place = f"{self.parameter or 'array'}.write(..., repair=True)"
        return (
            f"{what} was being written when {worker} died, so its contents may be half old and"
            f" half new. Rewrite it in `with {place}`, or take such contents as they are with"
            ' poisoned="continue".'
        )


class LockOrderError(_Fields, SharedTaskError, RuntimeError):
    """Raised when a thread that holds a lock asks for another, which could deadlock.

    Attributes:
        wanted: The requested region, as text: "[0:10] of 'grid'".
        held: The region that this thread already holds.
        same: True if the two overlap, so that it would wait for itself.
    """

    wanted: str
    held: str
    same: bool = False

    def __str__(self) -> str:
        asked = f"this thread holds {self.held} and asks for {self.wanted}"
        if self.same:
            return (
                f"{asked}, and both or parts of them are locked together: it would wait for itself."
                " Leave the first block before the second is entered, enter one block for both, or"
                " lock smaller regions with Regions(blocks=...)."
            )
        return (
            f"{asked}, which comes before it: threads that lock in different orders can wait for"
            f" each other without end. Enter {self.wanted} first, then {self.held}."
        )


class _Changed(_Fields):
    """A task changed a shared value."""

    function: str
    parameter: str
    path: str
    items: range
    beside: bool = False
    bypassed: bool = False

    def _of_memory(self) -> str:
        """What is said of a write to the caller's memory."""
        return (
            f"{self.function}(): {_one_of(self.items, self.beside)} wrote to an array of"
            f" {self.path}, which is shared and read-only, or your program did meanwhile: native"
            " code bypasses numpy's flag, as ufunc.at does before numpy 2.5. With this backend the"
            ' array is your own memory, and stays changed; with backend="process" such a write'
            " reaches no data."
            f" {_CURES_OF_WRITES}{_which_one(self.items, self.beside)}."
        )


_CURES_OF_WRITES = (
    "To fill an array, mark it Partitioned or use map_into(); to add up, mark it Reduced; for"
    " scratch, mark it CopyOnWrite, or work on a copy"
)


class ChangedValueError(_Changed, SharedTaskError, RuntimeError):
    """Raised when a task changed a shared value, which all items see.

    It is raised with ``strict=True``; by default it is a ``ChangedValueWarning``. On "serial" and
    "thread" it is also raised if native code wrote into a small array.

    It is reported for the last of ``items``; if there are several, the responsible one is unknown.

    Attributes:
        function: Name of the task.
        parameter: Name of the parameter.
        path: The changed part: "model.layers[3].seen"; only the parameter if no more is known.
        items: Positions in the input of the items that ran since the value was last found
            unchanged, as a range.
        beside: Whether items ran in other threads at the same time, which may be responsible too.
        bypassed: Whether native code wrote to the caller's memory, past numpy's read-only flag.
    """

    def __str__(self) -> str:
        if self.bypassed:
            return self._of_memory()
        why = (
            "other items may have seen it"
            if self.beside
            else "later items in this worker would have seen it"
        )
        return (
            f"{self.function}(): {_one_of(self.items, self.beside)} changed {self.path}, which is"
            f" shared: {why}. Return what you find, or mark the parameter"
            f" CopyOnWrite[...]{_which_one(self.items, self.beside)}."
        )


class ChangedValueWarning(_Changed, UserWarning):
    """Issued once per call when a task changed a shared value, which all items see.

    The option ``strict`` decides whether this is a warning ("auto", if a change is detected), an
    error (True) or nothing (False). The changed copy is dropped. On "serial" and "thread" large
    arrays are the caller's own memory: writes by native code stay there.

    Attributes:
        function: Name of the task.
        parameter: Name of the parameter.
        path: The changed part: "model.layers[3].seen"; only the parameter if no more is known.
        items: Positions of the items that ran in that worker since the value was last found
            unchanged, as a range from the first to the last; empty if it was an earlier call.
        beside: Whether items ran in other threads at the same time, which may be responsible too.
        bypassed: Whether native code wrote to the caller's memory, past numpy's read-only
            flag; on "serial" and "thread", where it stays changed.
    """

    def __str__(self) -> str:
        if self.bypassed:
            return self._of_memory()
        who = _one_of(self.items, self.beside) if self.items else "an item of an earlier call"
        return (
            f"{self.function}(): {who} changed {self.path}, which is shared. Later items of the"
            " same worker may have seen that; your own object stays as it is, and later calls see"
            " what was shared. Return what you find, or mark the parameter CopyOnWrite[...]. With"
            " strict=True this is an error, which names the item where chunksize=1; with"
            " strict=False nothing is said."
        )


def _one_of(items: range, beside: bool) -> str:
    first, last = items[0], items[-1]
    known = f"item {first}" if first == last else f"one of items {first} to {last}"
    return f"{known}, or one that ran meanwhile in another thread," if beside else known


def _which_one(items: range, beside: bool) -> str:
    if beside:
        return '; chunksize=1 with backend="serial" shows which item it was'
    return "; chunksize=1 shows which item it was" if len(items) > 1 else ""


class JournalError(_Fields, SharedTaskError):
    """Raised when a journal cannot be used: it is damaged, in use or full, or is not a journal.

    Attributes:
        path: The file.
        reason: The problem, and what to do.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"journal {self.path!r}: {self.reason}"


class JournalWarning(UserWarning):
    """Issued when a journal has results of a task that a call cannot use; says why."""


class IncompleteValueWarning(UserWarning):
    """Issued when a value reaches tasks, or the caller, without a part that cannot be sent.

    It names the task, the value, the lost part, and what to do. It is issued once for each task
    and kind of loss.
    """


class HintWarning(UserWarning):
    """Issued once per task when a call is valid, but often not what was meant.

    Examples are mapping over a dict, which maps over its keys, and ``map([1, 2], [3, 4])``.
    """


class RemoteTraceback(_Fields):
    """The traceback of an exception in another process; its text is that traceback."""

    text: str

    def __str__(self) -> str:
        return self.text


class ItemNote(str):
    """A note on an exception that says which item raised it.

    Attributes:
        index: Position of the item in the input, None outside a map.
    """

    # Hides str.index, which is not needed in a note; cattrs gives its notes the same name.
    __slots__ = ("index",)  # pyright: ignore[reportIncompatibleMethodOverride]
    index: int | None  # type: ignore[assignment]

    def __new__(cls, text: str, index: int | None) -> Self:
        """Make the note ``text`` about the item at ``index``."""
        note = super().__new__(cls, text)
        note.index = index
        return note

    def __getnewargs__(self) -> tuple[str, int | None]:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        return str(self), self.index


def item_note(function_name: str, index: int | None) -> ItemNote:
    """Return the note "in classify(), item 17" for ``BaseException.add_note``."""
    return ItemNote(f"in {_place(function_name, index)}", index)


_MEMORY_ADVICE = (
    " The kernel was out of memory. Use fewer workers, give an item less work, or have"
    " memory_limit= end the items that need too much."
)
_SIGNAL_ADVICE = {
    6: " Native code aborted; its message stands on standard error.",
    9: " If memory ran out, use fewer workers.",
}


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _place(function: str, index: int | None) -> str:
    return f"{function}()" if index is None else f"{function}(), item {index}"
