"""``share(value)``: a snapshot that is published once, by hand, and never checked again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sharedtask.errors import ClosedError, SharedTaskError, UnshareableError
from sharedtask.sharing import codec, memory
from sharedtask.sharing.cache import Lease, ShareCache
from sharedtask.sharing.culprit import unshareable
from sharedtask.sharing.publication import Publication

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

T = TypeVar("T")

if TYPE_CHECKING:
    # A handle may stand where its value would, and no type can say "T or Handle[T]" of a parameter
    # that is T inside the function. So it fits every parameter, as a mock does.
    class _FitsEverywhere(Any): ...  # type: ignore[misc]

else:

    class _FitsEverywhere: ...


# Counts the uses of all handles. Whoever frees memory in the background hangs its bell here.
bells: list[Callable[[], object]] = []
uses = ShareCache(limit=0, wake=lambda: [ring() for ring in bells])


class Handle(_FitsEverywhere, Generic[T]):
    """A shared value that its owner gives back. Made by ``share()``.

    Pass it where the value would stand: ``task.map(items, model=handle)``. A handle stands for
    memory of this process, so a copy of it is the same handle, and it cannot be pickled.
    """

    def __init__(self, publication: Publication, kind: str) -> None:
        self._publication = publication
        self._kind = kind
        # The memory goes with the last lease, and the handle itself holds one.
        self._own = uses.adopt(publication)
        uses.retire(publication)
        self._lock = threading.Lock()
        self._value: list[T] = []
        self.closed = False

    @property
    def value(self) -> T:
        """The value as the workers see it: decoded once from shared memory, read-only.

        Raises:
            ClosedError: The handle is closed.
        """
        with self._lock:
            self._require_open()
            if not self._value:
                self._value.append(self._publication.value())
            return self._value[0]

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory that the value takes."""
        return self._publication.nbytes

    @property
    def publication(self) -> Publication:
        """What the handle stands for; ClosedError once it is closed."""
        self._require_open()
        return self._publication

    def lease(self) -> Lease:
        """Use the publication until the lease is released, whatever becomes of the handle."""
        with self._lock:
            self._require_open()
            return uses.adopt(self._publication)

    def close(self) -> None:
        """Give the memory back: at once, or when the calls that use it now are done.

        What was decoded from it stays valid. Closing twice is closing once.
        """
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._value.clear()
        self._own.release()

    def _require_open(self) -> None:
        if self.closed:
            msg = f"this handle of a {self._kind} is closed. Share the value again to use it."
            raise ClosedError(msg)

    def __enter__(self) -> Handle[T]:
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
        state = "closed" if self.closed else memory.human(self.nbytes)
        return f"<Handle of a {self._kind}, {state}>"


def share(value: T) -> Handle[T]:
    """Put ``value`` into shared memory and return a handle of it.

    The handle is a snapshot: later changes of ``value`` are not seen, and nothing is checked when
    it is used, so that a map over a dict of a million entries starts at once. Use it in ``with``,
    or call ``close()``. To a type checker it fits every parameter, whatever it is a handle of, so
    passing it needs no cast; ``value`` has the type of what was shared.

    Args:
        value: Anything that can be encoded; arrays inside it are shared without a copy per worker.

    Returns:
        A handle with ``value`` (read-only), ``nbytes`` (bytes of shared memory) and ``close()``.

    Raises:
        UnshareableError: ``value`` holds something that cannot be pickled; the text says where.
        StoreFullError: There is not enough memory.

    Example:
        >>> import numpy as np
        >>> from sharedtask import Shared, parallel, share
        >>> @parallel
        ... def row_sum(i: int, table: Shared[np.ndarray]) -> float:
        ...     return float(table[i].sum())
        >>> with share(np.ones((3, 4))) as table:
        ...     row_sum.map(range(3), table=table)
        [4.0, 4.0, 4.0]
    """
    uses.sweep()
    if isinstance(value, Handle):
        msg = "this is a handle of a shared value already. Pass it on as it is."
        raise UnshareableError(msg)
    try:
        payload = codec.encode_shared(value)
    except (SharedTaskError, MemoryError):
        raise
    except Exception as error:
        raise unshareable(value, "value", error, f"this {type(value).__name__}") from error
    return Handle(Publication(payload, watched=False), type(value).__name__)
