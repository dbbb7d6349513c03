"""The table of faults as tests: its rules, how remains are found, and ours in every row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import page
from benchmarks.faults.catalogue import FAULTS, QUICK
from benchmarks.faults.cells import MARK, Cell, DriverError
from benchmarks.faults.deeds import ROOMS, rooms_in
from benchmarks.faults.driver import described
from benchmarks.faults.judge import Marks, Observed, Remains, kept, marks
from benchmarks.faults.limits import NoAnswerError, limited
from benchmarks.measure import MEMORY

DOCUMENT = Path(__file__).parent.parent / "docs" / "faults-table.md"
ENDED = Remains(0)
RIGHT = [True] * ROOMS
ERROR = {"class": "ValueError", "text": "no", "says": "no", "names": [], "ends": False}
IN_PLACE = [*RIGHT[:3], ERROR, *RIGHT[4:]]
ANSWER = {"answered": True, "seconds": 0.1, "bad": [3], "unharmed": True}
DONE = {"answered": True, "seconds": 0.1}
SIGKILL = FAULTS["sigkill"]


def seen(answer: dict[str, Any], remains: Remains = ENDED, **stages: Any) -> Observed:
    """What a driver says that gave this answer, and is fine otherwise."""
    said = {"answer": ANSWER | answer, "again": DONE | {"places": RIGHT}, "closed": DONE}
    return Observed(said | stages, remains)


def test_ours_has_every_mark_and_a_peer_has_not() -> None:
    """A killed worker: ours earns all; concurrent.futures answers, blames all, and is broken."""
    assert "ANUC" == str(marks(SIGKILL, Cell("ours", "sigkill").run()))
    assert "A··C" == str(marks(SIGKILL, Cell("futures", "sigkill").run()))


def test_peer_has_every_mark_where_it_earns_them() -> None:
    """A result that cannot be pickled stands in its place in concurrent.futures, and in ours."""
    for name in ("ours", "futures"):
        observed = Cell(name, "result-pickle").run()
        assert "ANUC" == str(marks(FAULTS["result-pickle"], observed))
        assert kept(observed.at("answer"))


@pytest.mark.long
@pytest.mark.parametrize("key", FAULTS)
def test_ours_has_every_mark(key: str) -> None:
    """Whatever goes wrong: answered, named, usable, clean."""
    observed = Cell("ours", key).run()
    results = {key: {"ours": observed}}
    assert page.WHOLE == marks(FAULTS[key], observed), [*page.reasons(results, ["ours"])]


def test_error_in_its_place_names_its_item() -> None:
    """An error in the place of the item at fault, and nowhere else, names it."""
    assert "ANUC" == str(marks(SIGKILL, seen({"places": IN_PLACE})))
    for places in (
        [*RIGHT[:3], *[ERROR] * 4],  # others are blamed as well
        [*RIGHT[:2], ERROR, *RIGHT[3:]],  # another one is blamed
        RIGHT,  # nobody is
        [False, *IN_PLACE[1:]],  # a result is wrong
    ):
        assert "A·UC" == str(marks(SIGKILL, seen({"places": places})))


def test_error_that_is_raised_names_its_item_by_its_words() -> None:
    """Where the map as a whole raises, the error must name the item at fault and no other."""
    for names, expected in (([3], "ANUC"), ([], "A·UC"), ([3, 4], "A·UC"), ([4], "A·UC")):
        assert expected == str(marks(SIGKILL, seen({"raised": ERROR | {"names": names}})))


def test_all_right_is_as_good_where_nothing_needs_to_fail() -> None:
    """Seven right results are enough where the fault may pass, if the caller's array is intact."""
    fault = FAULTS["write"]
    assert "ANUC" == str(marks(fault, seen({"places": RIGHT})))
    assert "ANUC" == str(marks(fault, seen({"places": IN_PLACE})))
    assert "A·UC" == str(marks(fault, seen({"places": RIGHT, "unharmed": False})))


def test_nobody_to_blame_means_all_right() -> None:
    """After an idle worker's death the results are right; an error is none of the items'."""
    fault, answer = FAULTS["idle"], {"bad": []}
    assert "ANUC" == str(marks(fault, seen(answer | {"places": RIGHT})))
    assert "A·UC" == str(marks(fault, seen(answer | {"places": IN_PLACE})))
    assert "A·UC" == str(marks(fault, seen(answer | {"raised": ERROR})))


def test_function_at_fault_is_named_by_its_cause() -> None:
    """An error about the function says what cannot be sent, in each place where it stands."""
    fault, cause = FAULTS["function"], ERROR | {"says": "cannot pickle '_thread.lock' object"}
    assert "ANUC" == str(marks(fault, seen({"raised": cause, "bad": []})))
    assert "ANUC" == str(marks(fault, seen({"places": [cause] * ROOMS, "bad": []})))
    assert "A·UC" == str(marks(fault, seen({"places": [cause, ERROR], "bad": []})))
    assert "A·UC" == str(marks(fault, seen({"places": RIGHT, "bad": []})))


def test_exit_in_the_caller_is_no_answer() -> None:
    """A SystemExit that comes back as itself ends a program that has nothing to do with it."""
    places = [*RIGHT[:3], described(SystemExit(3)), *RIGHT[4:]]
    assert "·NUC" == str(marks(SIGKILL, seen({"places": places})))


def test_silence_loses_what_follows_from_it() -> None:
    """Without an answer nothing is named; the rest is earned by what comes afterwards."""
    assert "··UC" == str(marks(SIGKILL, seen({"answered": False})))
    assert "····" == str(marks(SIGKILL, Observed()))


@pytest.mark.parametrize(
    "remains",
    [
        replace(ENDED, status=1),
        replace(ENDED, status=None),
        replace(ENDED, processes=("python",)),
        replace(ENDED, memory=("sem.loky-1",)),
        replace(ENDED, stderr="Exception ignored in: <function Pool.__del__>"),
    ],
)
def test_remains_are_not_clean(remains: Remains) -> None:
    """Processes, shared memory, noise and an end that is no end take the mark away."""
    assert "ANU·" == str(marks(SIGKILL, seen({"places": IN_PLACE}, remains)))


def test_close_that_raises_is_not_clean() -> None:
    """A pool that cannot be closed in silence leaves that to its user."""
    assert "ANU·" == str(
        marks(SIGKILL, seen({"places": IN_PLACE}, closed=DONE | {"raised": ERROR}))
    )


def test_items_are_found_in_text_notes_and_causes() -> None:
    """An error names an item by its name or number, wherever it says so; by nothing else."""
    assert {3} == rooms_in("killed by signal 9 at room-3, pid 4")
    assert {5} == rooms_in("in visit(), item 5")
    error = ValueError("worker 2 died")
    error.add_note("Arg 0: 'room-3'")
    error.__cause__ = OSError("item 4")
    assert [3, 4] == described(error)["names"]


def test_a_call_without_end_is_interrupted() -> None:
    """The limit ends a wait for a lock, and is off again after its block."""
    lock = threading.Lock()
    lock.acquire()
    with pytest.raises(NoAnswerError), limited(0.05):
        lock.acquire()
    with limited(0.05):
        lock.release()
    time.sleep(0.1)


LEAVES = """
import json, os, subprocess, sys
for stage in ("ready", "answer", "again", "closed"):
    print(json.dumps({"stage": stage, "answered": True}), flush=True)
subprocess.Popen(["sleep", "60"], start_new_session=True, stdout=2)
open(f"/dev/shm/joblib_{os.getpid()}_x", "w").close()
print("Traceback", file=sys.stderr)
"""


class Scripted(Cell):
    """A cell whose driver is a few lines of its own."""

    script = LEAVES

    def start(self, stderr: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", self.script],
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=stderr,
        )


@pytest.mark.skipif(not MEMORY.is_dir(), reason="there is no /dev/shm here")
def test_what_a_driver_leaves_is_found_and_removed() -> None:
    """A daemon in a session of its own, a file in /dev/shm and noise are seen, then ended."""
    cell = Scripted("ours", "sigkill")
    remains = cell.run().remains
    assert ("sleep 60",) == remains.processes
    assert 1 == len(remains.memory)
    assert ["Traceback"] == remains.noise
    assert [] == cell.family()
    assert not (MEMORY / remains.memory[0]).exists()
    assert not cell.scratch.exists()


def test_driver_that_does_not_start_has_no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that dies before the fault is told apart from a contestant that fails it."""
    monkeypatch.setattr(Scripted, "script", "raise SystemExit('no such library')")
    with pytest.raises(DriverError, match="no such library"):
        Scripted("ours", "sigkill").run()


def test_driver_that_dies_in_the_middle_loses_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said before the end counts; the end itself is not clean."""
    script = f"print({json.dumps(json.dumps({'stage': 'ready'}))}, flush=True); exit(2)"
    monkeypatch.setattr(Scripted, "script", script)
    observed = Scripted("ours", "sigkill").run()
    assert (2, "····") == (observed.remains.status, str(marks(SIGKILL, observed)))


def test_table_counts_its_marks() -> None:
    """Under the faults stand the totals; a contestant that is not installed has no marks."""
    row = {"ours": seen({"places": IN_PLACE}), "pool": seen({"answered": False}), "ray": "no start"}
    head, fault, whole, *each, keeps = page.cells({"sigkill": row}, ["ours", "pool", "ray"])
    assert ["1 faults", "sharedtask", "mp.Pool", "Ray"] == head
    assert ["ANUC", "··UC", "no start"] == fault[1:]
    assert ["1", "0", "0"] == whole[1:]
    assert [["1", "0", "0"]] * 2 + [["1", "1", "0"]] * 2 == [line[1:] for line in each]
    assert ["1", "0", "0"] == keeps[1:]
    *_, keeps = page.cells({"function": row}, ["ours"])
    assert ["0"] == keeps[1:]
    assert ["sigkill, mp.Pool: answered nothing"] == [*page.reasons({"sigkill": row}, [*row])]


def test_missing_marks_have_their_reasons() -> None:
    """Of each mark that was not earned it is said what there was instead."""
    observed = seen({"raised": ERROR}, ENDED, again={"answered": False}, closed={"answered": False})
    expected = (
        "sigkill, Ray: answered ValueError: no; then nothing; left a pool that does not close"
    )
    assert [expected] == [*page.reasons({"sigkill": {"ray": observed}}, ["ray"])]


def test_command_measures_prints_and_writes(tmp_path: Path) -> None:
    """The command prints its table, puts it into a page, and all that it saw into a JSON file."""
    document, figures = tmp_path / "page.md", tmp_path / "seen.json"
    document.write_text(f"{page.BEGIN}\n{page.END}\n")
    options = ["--faults", "two-arguments", "--peers", "ours,futures"]
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.faults",
            *options,
            "--json",
            figures,
            "--write",
            document,
        ],
        cwd=DOCUMENT.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "two-arguments, c.futures: answered right, right, " in ran.stdout
    assert "| **ANUC** | A··C |" in document.read_text()
    cells = json.loads(figures.read_text())["faults"]["two-arguments"]
    assert "NoSuchRoomError" == cells["ours"]["answer"]["places"][3]["class"]
    assert {"answered": True, "named": False, "usable": False, "clean": True} == cells["futures"][
        "marks"
    ]


def test_measured_table_stands_between_its_markers() -> None:
    """What was there before is replaced, what stands around it stays; no markers, no table."""
    before = f"a\n{page.BEGIN}\nold\n{page.END}\nb\n"
    assert f"a\n{page.BEGIN}\nnew\n{page.END}\nb\n" == page.written(before, "new")
    with pytest.raises(ValueError, match="no place"):
        page.written("a", "new")


def test_documented_table_has_every_fault() -> None:
    """The page's table is that of these faults, and ours has all of its marks."""
    text = DOCUMENT.read_text()
    rows = {
        line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if "|" in line
    }
    assert [] == [fault.title for fault in FAULTS.values() if fault.title not in rows]
    assert {"**ANUC**"} == {rows[fault.title][2].strip() for fault in FAULTS.values()}


def test_short_form_is_part_of_the_whole() -> None:
    """The faults of --quick exist."""
    assert {*QUICK} <= {*FAULTS}
    assert Marks() != page.WHOLE
