"""A role is one handler: a further one is added by the table alone."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest

import sharedtask
from sharedtask import parallel
from sharedtask.annotations import Role
from sharedtask.backends.worker.status_page import Word
from sharedtask.outcomes import Batch
from sharedtask.writing import handler, roles
from sharedtask.writing.handler import Entered, Handler, Part, Stage, Wanted

SOURCES = Path(sharedtask.__file__).parent


# ----------------------------------------------------------------------------- a role of its own


def made_role(name: str) -> Any:
    """A role beside those of the library."""
    role: Any = object.__new__(Role)
    role._name_, role._value_, role.writes = name.upper(), name, True
    return role


NOTED = made_role("noted")


class Noting(Part):
    """Each item gets a list of its own; a failed item notes nothing."""

    lends = True

    def __init__(self, values: Mapping[str, Any], chunk: Entered) -> None:
        ((self._name, self._notes),) = values.items()
        self._own: list[Any] = []
        self._chunk = chunk

    def before(self, item: Any) -> dict[str, Any]:
        del item
        self._own = []
        return {self._name: self._own}

    def after(self, value: Any) -> Any:
        self._notes.append((self._chunk.first + self._chunk.position, self._own))
        return value


class Notes(Handler):
    """The caller's list gets the notes of all items, in their order."""

    part = Noting

    def __init__(self, name: str, target: list[Any]) -> None:
        self.names, self._target = frozenset({name}), target
        self._found: deque[tuple[int, list[Any]]] = deque()
        self.verbs: list[str] = []

    @classmethod
    def plan(cls, wanted: Wanted) -> Notes:
        ((name, target),) = wanted.values.items()
        made.append(cls(name, target))
        return made[-1]

    def open(self, stage: Stage) -> None:
        self.verbs.append(f"open {stage.reach.name}")

    def lend(self, name: str) -> Any:
        assert name in self.names
        return self._found

    def accept(self, batch: Batch) -> None:
        self.verbs.append(f"accept {len(batch.values)}")

    def finish(self) -> None:
        self._target.extend(note for _, notes in sorted(self._found) for note in notes)
        self.verbs.append("finish")

    def close(self, *, entered: bool, gave_up: bool) -> None:
        assert (entered, gave_up) == (True, False)
        self.verbs.append("close")


made: list[Notes] = []


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table of roles, with this one."""
    monkeypatch.setitem(roles.HANDLERS, NOTED, Notes)
    yield
    made.clear()


def note(number: int, notes: Annotated[list[Any], NOTED]) -> int:
    if number == 3:
        msg = "no three"
        raise ValueError(msg)
    notes.append(10 * number)
    return number


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("place", ["serial", "thread"])
def test_role_is_added_by_the_table(place: Any) -> None:
    """Annotation, plan, run and end know a role that is nowhere but there."""
    found: list[Any] = []
    task = parallel(backend=place, chunksize=2, return_exceptions=True)(note)
    results = task.map(range(6), notes=found)
    assert [0, 1, 2, ValueError, 4, 5] == [r if type(r) is int else type(r) for r in results]
    assert [0, 10, 20, 40, 50] == found
    assert ["open HERE", *["accept 2"] * 3, "finish", "close"] == made[0].verbs


# ------------------------------------------------------------------------------ where roles stand


def roles_named_in(file: Path) -> set[str]:
    """The roles of arrays that tasks write, as far as a module names them."""
    written = {role.name for role in Role if role.writes}
    return {
        node.attr
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Role"
    } & written


def test_few_modules_name_a_role() -> None:
    """Backends, runs and workers know that tasks write, and not what."""
    found = {
        str(file.relative_to(SOURCES)): names
        for file in SOURCES.rglob("*.py")
        if (names := roles_named_in(file))
    }
    assert {
        "annotations.py",  # they are defined
        "task/explain_call.py",  # and explained
        "task/signature/hints.py",  # Locked is a class
        "task/signature/spec.py",  # reduced= has rules
        "task/direct_call.py",  # a direct call locks
        "writing/roles.py",
    } == {name for name in found if name.count("/") < 2 or not name.startswith("writing/")}


def test_position_stands_where_the_status_page_has_it() -> None:
    """A part reads the position of the current item from the same words."""
    assert (Word.BASE, Word.COUNT) == (handler.BASE, handler.COUNT)
