"""``strict="auto"``: detects tasks that change a shared value, if the check costs little.

    (check values after earlier calls) -> pass the values -> run the items -> check -> report

After a chunk a value is checked if that takes less than 2 % of the chunk's time or a few
microseconds, and after the first chunk of a call in any case, for a limited time. A changed value
is decoded again for the next chunk. The parts that are unchecked at the end of a call are checked
before the next call uses the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.outcomes import Change

if TYPE_CHECKING:
    from sharedtask.store.decoded import Values, Watch

    from .call_header import CallHeader, SharedParameter

_SHARE = 0.02
# A few containers: negligible compared with sending a chunk to a worker.
_ALWAYS_SECONDS = 5e-6
# Limit of the first check of a call, and its limit if the caller has not compared the value either,
# because it trusts that nothing changes: such calls take a millisecond.
_FIRST_SECONDS, _TRUSTED_SECONDS = 5e-3, 5e-5


def seconds_for(check: float, chunk: float, *, is_first: bool, trusts: bool) -> float:
    """Time limit of a ``check`` after a chunk that took ``chunk`` seconds; 0 for none."""
    allowed = max(_SHARE * chunk, _ALWAYS_SECONDS)
    if check <= allowed:
        return allowed
    if not is_first:
        return 0.0
    return max(_TRUSTED_SECONDS if trusts else _FIRST_SECONDS, allowed)


class Watcher:
    """Checks the values that the chunks of a worker share."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._late: Change | None = None

    def check_earlier(self, header: CallHeader, call: int | None) -> None:
        """Check values after earlier calls, so that this call does not see their changes."""
        for parameter in header.watched:
            watch = self._values.watched(parameter.token)
            if watch is None or watch.since is None or (call is not None and watch.of == call):
                continue
            seconds = _TRUSTED_SECONDS if not parameter.current else _FIRST_SECONDS
            if watch.snapshot.seconds <= seconds:
                self._check_earlier(parameter, watch, seconds)

    def _check_earlier(self, parameter: SharedParameter, watch: Watch, seconds: float) -> None:
        way = watch.snapshot.change(seconds)
        watch.since = None
        if way is not None:
            self._values.renew(parameter.token)
            self._late = Change(parameter.name, parameter.name + way, None, None)

    def check(
        self, header: CallHeader, call: int | None, items: tuple[int, int], seconds: float
    ) -> Change | None:
        """The change that an item from ``first`` on made, after a chunk of ``seconds``, if any."""
        found, self._late = self._late, None
        for parameter in header.watched:
            watch = self._values.watched(parameter.token)
            if watch is not None:
                change = self._check(parameter, watch, call, items, seconds)
                found = found or change
        return found

    def _check(
        self,
        parameter: SharedParameter,
        watch: Watch,
        call: int | None,
        items: tuple[int, int],
        seconds: float,
    ) -> Change | None:
        first, last = watch.blame(call, *items)
        is_first = call is None or watch.checked_by != call
        trusts = not (parameter.current or watch.is_fresh)
        may = seconds_for(watch.snapshot.seconds, seconds, is_first=is_first, trusts=trusts)
        way = watch.snapshot.change(may) if may else None
        if way is not None:
            self._values.renew(parameter.token)
            return Change(parameter.name, parameter.name + way, first, last)
        if may:
            watch.checked_by, watch.is_fresh = call, False
        if may and watch.snapshot.is_whole:
            watch.since = None
        elif first is not None and last is not None:
            watch.since, watch.of = (first, last), call
        return None
