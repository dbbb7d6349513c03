"""Recording of a map: finds its run in the journal, reuses old results, adds new ones.

begin     digests of all that determines the results -> a run of the journal
sort_out  a chunk of items -> recorded results, and items to run
take      results -> rows                 settle   rows -> the disk
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sharedtask.errors import JournalError, JournalWarning, SerializationError
from sharedtask.outcomes import Batch, with_item_note
from sharedtask.serialization.hashing import Fingerprints, joined
from sharedtask.serialization.unpicklable import culprit
from sharedtask.system import interrupts
from sharedtask.system.records import dataclass, field
from sharedtask.system.tracebacks import level_of_user
from sharedtask.text import listed

from . import database
from .database import Journal, RunRow

if TYPE_CHECKING:
    from sharedtask.backends.base import Call, Chunk, Session

__all__ = ["Recording", "Sorted"]

# If results come faster than this, several reports share a transaction.
_COMMIT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Sorted:
    """A sorted chunk: ``known`` results, items without a digest, and ``fresh`` items."""

    known: list[Batch] = field(default_factory=list)
    failed: list[Batch] = field(default_factory=list)
    fresh: list[tuple[int, Sequence[Any]]] = field(default_factory=list)


class Recording:
    """The part of a journal that belongs to a run."""

    def __init__(self, journal_: Journal, task: str, run: int, prints: Fingerprints) -> None:
        self._journal, self._task, self._run = journal_, task, run
        self._prints = prints
        self._digests: dict[int, bytes] = {}  # of items in flight
        self._committed = 0.0
        self._is_gone = False

    @classmethod
    def begin(cls, path: str, call: Call, total: int | None, session: Session) -> Recording:
        """Open the journal, and find or begin the run of this call, within a shield.

        Raises:
            JournalError: The journal cannot be used.
            SerializationError: An argument has no digest.
        """
        opened = Journal(os.path.realpath(path))
        try:
            prints = Fingerprints(session.fingerprint_of)
            parts = interrupts.exposed(parts_of, call, session, prints)
            row = _row(call.task, parts, total)
            runs = opened.runs()
            if all(known.id != row.id for known in runs):
                interrupts.exposed(_warn_of_others, opened, row, runs)
            opened.begin(row)
        except BaseException:
            opened.close()
            raise
        return cls(opened, call.task, row.id, prints)

    # ------------------------------------------------------------------- recorded results

    def sort_out(self, chunk: Chunk) -> Sorted:
        """Find the items of a chunk that have a result, and decode it.

        Raises:
            JournalError: A result is damaged, or cannot be decoded.
        """
        found = Sorted()
        digests = [self._digest(chunk.first + k, item, found) for k, item in enumerate(chunk.items)]
        there = self._there(chunk.first, digests)

        def state(k: int) -> str:
            known = chunk.first + k in there
            return "failed" if digests[k] is None else "known" if known else "fresh"

        for which, group in itertools.groupby(range(len(digests)), state):
            offsets = list(group)
            first, stop = offsets[0], offsets[-1] + 1
            place = chunk.first + first
            if which == "known":
                values = [self._value(there[chunk.first + k]) for k in offsets]
                found.known.append(Batch(place, values))
            elif which == "fresh":
                found.fresh.append((place, chunk.items[first:stop]))
                self._digests.update(enumerate(filter(None, digests[first:stop]), place))
        return found

    def _digest(self, place: int, item: Any, found: Sorted) -> bytes | None:
        try:
            return self._prints.of(item)
        except Exception as error:  # noqa: BLE001  pickling runs user code
            where = culprit(item, f"item {place}")
            msg = f"{self._task}(): item {place} cannot be pickled: {where}. ({error})"
            found.failed.append(Batch(place, [None], {0: self._problem(msg, error, place)}))
            return None

    def _problem(self, msg: str, error: Exception, place: int) -> BaseException:
        problem = SerializationError(msg)
        problem.__cause__ = error
        return with_item_note(problem, self._task, place)

    def _there(self, first: int, digests: list[bytes | None]) -> dict[int, database.Row]:
        rows = self._journal.rows(self._run, first, first + len(digests))
        return {row.place: row for row in rows if row.item == digests[row.place - first]}

    def _value(self, row: database.Row) -> Any:
        """The result in a row."""
        how = "does not fit its checksum"
        if row.is_sound:
            try:
                return database.unpacked(row.value)
            except BaseException as error:  # unpickling runs user code, which may even exit
                if interrupts.is_real(error):
                    raise
                raise JournalError(self._journal.path, self._undecodable(row, error)) from error
        what = f"the result of item {row.place} of {self._task}(), run {row.run:x}, {how}"
        raise JournalError(self._journal.path, database.damaged(self._journal.path, what))

    def _undecodable(self, row: database.Row, error: BaseException) -> str:
        return (
            f"the result of item {row.place} of {self._task}(), run {row.run:x}, cannot be rebuilt:"
            f" {error!r}. Make what it needs importable as it was, or take another file."
        )

    # ------------------------------------------------------------------------ new results

    def take(self, batch: Batch) -> None:
        """Write results; an unpicklable one is replaced by an error."""
        rows = []
        with interrupts.shield():
            for offset, value in enumerate(batch.values):
                place = batch.first + offset
                if offset in batch.errors or place not in self._digests:
                    continue
                try:
                    data = database.packed(value)
                except Exception as error:  # noqa: BLE001  pickling runs user code
                    batch.errors[offset] = self._unsendable(place, value, error)
                    continue
                rows.append(database.result_row(self._run, place, self._digests.pop(place), data))
            if rows:
                self._journal.add(rows)

    def _unsendable(self, place: int, value: Any, error: Exception) -> BaseException:
        where = culprit(value, "result")
        msg = f"{self._task}(): the result of item {place} cannot be pickled: {where}. ({error})"
        return self._problem(msg, error, place)

    def commit_if_due(self, *, more: bool) -> None:
        """Commit the written results; with ``more`` to come, not every time."""
        if more and time.monotonic() - self._committed < _COMMIT_SECONDS:
            return
        with interrupts.shield():
            self._journal.commit(self._run)
        self._committed = time.monotonic()
        self._warn_if_gone()

    def finish(self, total: int) -> None:
        """End the run, with its number of items."""
        self._journal.finish(self._run, total)
        self._warn_if_gone()

    def _warn_if_gone(self) -> None:
        if self._is_gone or self._journal.is_in_place():
            return
        self._is_gone = True
        msg = (
            f"{self._task}(): journal {self._journal.path!r} was deleted or replaced while this"
            " call wrote to it. The call goes on, but its results are not kept: to have them"
            " recorded, run it again."
        )
        warnings.warn(msg, JournalWarning, stacklevel=level_of_user())

    def close(self) -> None:
        """Commit the written results, and close the journal."""
        with contextlib.suppress(JournalError):  # the first error is more informative
            self._journal.commit(self._run)
        self._journal.close()


# --------------------------------------------------------------------------------- the run


def parts_of(call: Call, session: Session, prints: Fingerprints) -> dict[str, bytes]:
    """The parts that determine the results of a call, as text, and the digest of each.

    Raises:
        SerializationError: An argument cannot be pickled.
    """
    parts = prints.parts(call.function, call.task)
    parts["the Python version"] = prints.of(sys.version_info[:2])
    parts["how items are passed"] = prints.of("starmap" if call.star else "map")
    if call.randomness is not None:
        parts["the option 'seed'"] = prints.of(call.randomness.entropy)
    given = {
        **{f"the argument {k + 1}": value for k, value in enumerate(call.args)},
        **{f"the argument {name!r}": value for name, value in call.kwargs.items()},
    }
    if call.bound:
        (given["the value of 'self'"],) = call.bound
    for what, value in given.items():
        try:
            parts[what] = prints.of(value)
        except Exception as error:
            msg = (
                f"{call.task}(): {what} cannot be recorded, because it cannot be pickled: "
                f"{culprit(value, what)}. ({error}) Leave journal= out."
            )
            raise SerializationError(msg) from error
    shared = session.fingerprints(call.shared)
    return parts | {f"the value of {name!r}": digest for name, digest in shared.items()}


def _row(task: str, parts: dict[str, bytes], total: int | None) -> RunRow:
    told = json.dumps({name: digest.hex() for name, digest in sorted(parts.items())})
    key = joined({**parts, "task": task.encode("utf-8", "surrogatepass")})
    run = int.from_bytes(key[:8], "big") >> 1  # a row id of SQLite has 63 bits
    now = time.time()
    return RunRow(run, task, told, database.crc_of_run(run, task, told), now, now, total, 0)


def _warn_of_others(opened: Journal, row: RunRow, runs: list[RunRow]) -> None:
    """Warn why recorded results of the same task are not used."""
    others = [known for known in runs if known.task == row.task]
    counts = {known.id: opened.count(known.id) for known in others}
    others = [known for known in others if counts[known.id]]
    if not others:
        return
    nearest = min(reversed(others), key=lambda known: len(_differences(known, row)))
    differs = _differences(nearest, row)
    verb = "differs" if len(differs) == 1 else "differ"
    msg = (
        f"{row.task}(): {listed(differs)} {verb} from what journal {opened.path!r} was recorded "
        f"with: {counts[nearest.id]} recorded results are not used. They stay in the file."
    )
    warnings.warn(msg, JournalWarning, stacklevel=level_of_user())


def _differences(one: RunRow, other: RunRow) -> list[str]:
    old, new = one.digests(), other.digests()
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
