"""``share(value)``: a snapshot that is published once, by hand, and never checked again.

With a name, unrelated processes can use it through ``attach(name)``.
"""

from __future__ import annotations

import atexit
import contextlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sharedtask import context
from sharedtask.errors import ClosedError, SharedTaskError, UnshareableError
from sharedtask.memory import capacity
from sharedtask.serialization import class_states, codec, losses, missing
from sharedtask.serialization.class_states import ClassState, states_of
from sharedtask.serialization.filled import unshareable
from sharedtask.system import critical_sections, interrupts
from sharedtask.system.loading import undisturbed
from sharedtask.system.records import dataclass
from sharedtask.system.tracebacks import SHORTENED, shorten, shortened

from .cache import Lease, ShareCache
from .publication import Publication

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator
    from types import TracebackType

    from .name_registry import Claim

T = TypeVar("T")

if TYPE_CHECKING:
    # A handle may replace its value, and no type can express "T or Handle[T]" for a parameter
    # that is T inside the function. So it fits every parameter, as a mock does.
    class _FitsEverywhere(Any): ...  # type: ignore[misc]

else:

    class _FitsEverywhere: ...


# Each wakes a thread that frees memory in the background; False if there is none now.
wake_callbacks: list[Callable[[], bool]] = []


def _free_lost() -> None:
    """After a handle was forgotten: called in a thread of the library, or in a worker."""
    woken = [wake() for wake in wake_callbacks]
    if not any(woken) and not context.a_worker():  # there it is the thread that lost the handle
        handle_cache.sweep()


handle_cache = ShareCache(limit=0, wake=_free_lost)


@dataclass(frozen=True, slots=True)
class _Named:
    """The name of a handle; ``own`` if this process has shared it."""

    claim: Claim
    nbytes: int
    own: bool


# A name is a use of the value: until it is removed, it keeps the handle and so the memory.
_named: dict[str, Handle[Any]] = {}


class Handle(_FitsEverywhere, Generic[T]):
    """A shared value that its owner closes. Made by ``share()`` and ``attach()``.

    Pass it instead of the value: ``task.map(items, model=handle)``. A handle refers to
    memory of this process, so a copy of it is the same handle, and it cannot be pickled.
    """

    def __init__(
        self,
        publication: Publication,
        kind: str,
        named: _Named | None = None,
        value: tuple[T, ...] = (),
        classes: tuple[ClassState, ...] = (),
    ) -> None:
        self._publication = publication
        self._kind = kind
        self._named = named
        # The memory is freed with the last lease, and the handle itself has one.
        self._own = handle_cache.adopt(publication)
        handle_cache.retire(publication)
        self._lock = critical_sections.object_lock()
        self._value: list[T] = list(value)
        self._classes = classes
        self.closed = False

    @property
    @shortened
    def value(self) -> T:
        """The value as the workers see it: decoded once from shared memory, read-only.

        After ``attach(name, writable=True)`` it is the array itself, writable.

        Raises:
            ClosedError: The handle is closed.
        """
        self._require_open()
        if not self._value:
            made = self._publication.value()  # unpickling runs user code: without the lock
            with self._lock:
                if not (self._value or self.closed):
                    self._value.append(made)
        with self._lock:
            self._require_open()
            return self._value[0]

    @property
    def name(self) -> str | None:
        """The name under which the value was shared."""
        return None if self._named is None else self._named.claim.name

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory that the value occupies."""
        return self._publication.nbytes if self._named is None else self._named.nbytes

    @property
    def publication(self) -> Publication:
        """The publication of the handle; raises ClosedError after ``close()``."""
        self._require_open()
        return self._publication

    def lease(self) -> Lease:
        """Use the publication until the lease is released, even if the handle is closed first."""
        with self._lock:
            self._require_open()
            return handle_cache.adopt(self._publication)

    @interrupts.shielded
    def close(self) -> None:
        """Free the memory, immediately or when the calls that use it now are done.

        Values decoded from it stay valid. Closing is idempotent. In the process that shared the
        value under a name it also removes the name; in a process that attached, it ends only this
        use.
        """
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._value.clear()
        if self._named is not None and self._named.own:
            _give_name_back(self._named.claim)
        self._own.release()

    @interrupts.shielded
    def unlink(self) -> None:
        """Remove the name. Processes that have the value keep it; no other process can attach.

        No effect without a name; idempotent. Any process that has a handle of the name may call it.

        Raises:
            NameRefusedError: Other users can write to the directory of names.
        """
        if self._named is not None:
            self._named.claim.remove()
            _named.pop(self._named.claim.nonce, None)

    def _require_open(self) -> None:
        if self.closed:
            msg = f"this handle of a {self._kind} is closed. Share the value again to use it."
            raise ClosedError(msg)

    def __enter__(self) -> Handle[T]:
        if self.closed:  # no call otherwise: an interrupt in it would leave a name behind
            self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __copy__(self) -> Handle[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle[T]:
        return self

    def __reduce__(self) -> Any:
        msg = (
            "a handle of a shared value cannot be pickled. "
            "Pass it to a parameter that is marked Shared or CopyOnWrite."
        )
        raise UnshareableError(msg)

    def __repr__(self) -> str:
        state = "closed" if self.closed else capacity.human(self.nbytes)
        name = "" if self.name is None else f"{self.name!r} "
        return f"<Handle {name}of a {self._kind}, {state}>"


def report_old_classes(handle: Handle[Any], brought: Collection[int]) -> None:
    """Note it where workers get a class of the script that has changed since it was shared.

    They get those with a ``brought`` identity as they are now.
    """
    found = class_states.changed(handle._classes, brought)
    if found is not None:
        cls, name = found
        says = f"brings its class {cls.__qualname__} as that was: {name!r} was changed since"
        losses.add(handle, says, "Share the value again")


def kind_of(handle: Handle[Any]) -> str:
    """The class of the value, for messages."""
    return handle._kind


def share(value: T, name: str | None = None) -> Handle[T]:
    """Put ``value`` into shared memory and return a handle to it.

    The handle is a snapshot: tasks do not see later changes of ``value``, and calls do not compare
    it, so that a map with a dict of a million entries starts immediately. Use it in ``with``, or
    call ``close()``. Type checkers accept a handle for any parameter, so passing it needs no cast;
    its ``value`` has the type of the shared value.

    Args:
        value: Anything that can be encoded; workers share arrays inside it without a copy.
        name: The name by which other processes of this user and machine ``attach`` it: 1 to 200
            letters, digits, ``_``, ``-`` and ``.``, not beginning with a dot. An array that
            is already in shared memory is shared in place; any other array is copied there. The
            name exists until ``close()``, ``unlink()`` or the end of this process.

    Returns:
        A handle with ``value`` (read-only), ``nbytes`` (bytes of shared memory) and ``close()``.

    Raises:
        UnshareableError: A part of ``value`` cannot be pickled; the text says which.
        StoreFullError: There is not enough memory.
        NameInUseError: A running process shares a value under that name.
        InvalidNameError: ``name`` is not a possible name.
        NameRefusedError: The directory of names is not private to this user.

    Examples:
        >>> import numpy as np
        >>> from sharedtask import Shared, parallel, share
        >>> @parallel
        ... def row_sum(i: int, table: Shared[np.ndarray]) -> float:
        ...     return float(table[i].sum())
        >>> with share(np.ones((3, 4))) as table:
        ...     row_sum.map(range(3), table=table)
        [4.0, 4.0, 4.0]
    """
    handle = None
    try:
        with interrupts.shield():
            handle = _share(value, name)
    except BaseException as error:  # the name would remain without a handle
        if handle is not None:
            handle.close()
        if isinstance(error, SHORTENED):
            shorten(error)
        raise
    return handle


def _share(value: T, name: str | None) -> Handle[T]:
    handle_cache.sweep()
    if isinstance(value, Handle):
        msg = "this is a handle of a shared value already. Pass it on as it is."
        raise UnshareableError(msg)
    if name is not None:
        return _share_named(value, name)
    with _blamed(value), losses.collected() as lost:
        payload = codec.encode_shared(value)
    missing.warn("share", lost, lambda: [("value", value)])
    sent = states_of(payload.classes)
    publication = Publication(payload, watched=False)
    return Handle(publication, type(value).__name__, classes=sent)


@shortened
@interrupts.shielded
def attach(name: str, *, writable: bool = False) -> Handle[Any]:
    """Use the value that another process has shared under ``name``.

    An attached value stays valid when the other process ends. An array is live: writes are
    visible immediately. Any other value is a snapshot.

    Args:
        name: As given to ``share(value, name=...)``, by a process of this user and machine.
        writable: Whether you may write to the array ``handle.value``; every process that
            has it sees the writes immediately. Nothing prevents concurrent writes to the same
            element.

    Returns:
        A handle to pass to tasks, with ``value``. The end of its block, or ``close()``, ends only
        this use.

    Raises:
        UnknownNameError: No value is shared under the name, or its process has ended.
        NameRefusedError: The entry is damaged, belongs to another user, or is not writable.
        InvalidNameError: ``name`` is not a possible name.

    Examples:
        >>> import numpy as np
        >>> from sharedtask import attach, share
        >>> with share(np.arange(3), name="numbers"):
        ...     with attach("numbers") as handle:  # elsewhere
        ...         handle.value
        array([0, 1, 2])
    """
    handle_cache.sweep()
    with undisturbed("sharedtask.store.named"):  # a tenth of the import, needed for names only
        from . import named

    found = named.open_named(name, writable=writable)
    entry = found.entry
    name_of = _Named(found.claim, entry.nbytes, own=False)
    if found.array is None:
        return Handle(found.publication, entry.look, name_of)
    return Handle(found.publication, "ndarray", name_of, (found.array,))


def _share_named(value: T, name: str) -> Handle[T]:
    with undisturbed("sharedtask.store.named"):
        from . import name_registry, named

    name_registry.check_name(name)
    name_registry.require_free(name)  # before a copy is made
    with _blamed(value):
        kept = named.keep(value, name)
    try:
        claim = name_registry.claim(kept.entry)
    except BaseException:
        kept.publication.release()
        raise
    name_of = _Named(claim, kept.entry.nbytes, own=True)
    handle: Handle[T] = Handle(kept.publication, type(value).__name__, name_of)
    _named[claim.nonce] = handle
    return handle


def _give_name_back(claim: Claim) -> None:
    """Remove the name if possible. If not, its entry is void: the memory is freed."""
    _named.pop(claim.nonce, None)
    with contextlib.suppress(SharedTaskError, OSError):
        claim.release()


@atexit.register
def _give_names_back() -> None:
    for handle in list(_named.values()):
        if handle._named is not None:
            _give_name_back(handle._named.claim)


@contextlib.contextmanager
def _blamed(value: object) -> Generator[None]:
    """Attribute errors of the value's own code during encoding to the value."""
    try:
        yield
    except (SharedTaskError, MemoryError):
        raise
    except Exception as error:
        raise unshareable(value, "value", error, f"this {type(value).__name__}") from error
