"""``strict=True``: a task that changes a shared value is detected at the end of its chunk.

    pass the values -> run the items -> compare the values -> record the last result

The values are compared when the function has returned for the last item, before its result is
processed: so the error replaces that item's result. A value is passed to tasks again only if it was
unchanged; else the next chunk gets it as it was published.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from sharedtask.errors import ChangedValueError
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sharedtask.serialization.snapshot import Original


@dataclass(frozen=True, slots=True)
class GuardedValue:
    """A value that tasks see. Afterwards call ``keep`` or ``renew``.

    ``written``: whether memory of its that cannot be protected was written since the last call.
    """

    name: str
    value: Any
    original: Original
    keep: Callable[[], object]
    renew: Callable[[], object]
    written: Callable[[], bool] = bool


@dataclass(slots=True)
class Guard:
    """Watches the shared values during one chunk.

    ``position`` returns the current item, counted from the first; ``beside`` whether items ran in
    other threads meanwhile. If ``fail_fast``, an item that raises is the last. A comparison takes
    ``seconds``, which do not count as the item's: ``begins`` is called before, ``ended`` with them.
    """

    task: str
    items: range
    fail_fast: bool
    guarded_values: Sequence[GuardedValue]
    position: Callable[[], int]
    beside: Callable[[], bool] = bool
    begins: Callable[[], object] = bool
    ended: Callable[[float], object] = bool
    seconds: float = 0.0
    _is_done: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """The watched values, by parameter name."""
        return {each.name: each.value for each in self.guarded_values}

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The user's function, followed by a comparison after the last item."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            value = function(*args, **kwargs)
            if self.position() + 1 == len(self.items):
                error = self._check(self.position() + 1)
                if error is not None:
                    raise error
            return value

        return guarded

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The whole call for an item; if the last one fails by itself, a note tells the change."""

        def guarded(*args: Any) -> Any:
            try:
                return call(*args)
            except BaseException as raised:
                done = self.position() + 1
                if (self.fail_fast or done == len(self.items)) and not self._is_done:
                    self._add_change_note(raised, done)
                raise

        return guarded

    def end_early(self) -> ChangedValueError | None:
        """The chunk ends before the current item is begun: the error to report for it, if any."""
        done = self.position()
        return self._check(done) if done and not self._is_done else None

    def _add_change_note(self, raised: BaseException, done: int) -> None:
        error = self._check(done)
        if error is not None:
            with contextlib.suppress(Exception):  # a class may forbid new attributes
                raised.add_note(f"Besides: {error}")

    def _check(self, done: int) -> ChangedValueError | None:
        self._is_done = True
        self.begins()
        began = time.monotonic()
        try:
            return self._change(done)
        finally:
            self.seconds = time.monotonic() - began
            self.ended(self.seconds)

    def _change(self, done: int) -> ChangedValueError | None:
        """Compare all values with their originals."""
        found = None
        for each in self.guarded_values:
            way = each.original.change(each.value)
            written = each.written()
            if way is None:
                each.keep()
            else:
                each.renew()
            if found is None and (written or way is not None):
                path, items = each.name + (way or ""), self.items[:done]
                beside, bypassed = self.beside(), way is None
                found = ChangedValueError(self.task, each.name, path, items, beside, bypassed)
        return found
