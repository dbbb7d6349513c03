"""The rows as tests, at tiny sizes and with the clock off: every contestant answers like serial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.contestants import CONTESTANTS, missing
from benchmarks.executor_rows import ROWS as EXECUTOR_ROWS
from benchmarks.executor_rows import executors
from benchmarks.goals import Results, goals
from benchmarks.kept import Hosts
from benchmarks.measure import MEMORY, QUICK, Failure, Host, Timing, hosting, ratio
from benchmarks.ray_rows import OURS, RAY_ROWS, OneRay, RayRow, installed, one_ray
from benchmarks.report import (
    aligned,
    as_json,
    joined,
    ray_extras,
    ray_table,
    table,
    verdicts,
    writing_extras,
    writing_table,
)
from benchmarks.rows import CALLERS, FROM_NOTHING, ROWS, Cells
from benchmarks.submit_rows import ROWS as SUBMIT_ROWS
from benchmarks.submit_rows import submits
from benchmarks.trace_rows import MODES, Row
from benchmarks.trace_rows import race as race_traces
from benchmarks.trace_rows import rows as trace_rows
from benchmarks.trace_rows import told as told_of_traces
from benchmarks.turns import TurnRow, race, told
from benchmarks.work import jobs, same
from benchmarks.writing_contestants import NAMED
from benchmarks.writing_rows import (
    SENDERS,
    WRITING_ROWS,
    Growth,
    Room,
    WritingResults,
    WritingRow,
    room,
)
from benchmarks.writing_work import Histogram, Square, Statistics, writings

MAPPED = ("model-100", "model-2000", "array", "words", "trivial", "blocks")
MACHINE = {"huge_pages_collapse": True, "write_tracking": False}


@pytest.fixture(scope="module", params=CONTESTANTS)
def contestant(request: pytest.FixtureRequest) -> Iterator[tuple[str, Host]]:
    """Every contestant that is installed, its workers started, each in a process of its own."""
    name = request.param
    if missing(name):
        pytest.skip(f"{name} is not installed: the table leaves it out")
    with hosting(name, tiny=True) as host:
        host.ask("open")
        yield name, host


@pytest.mark.parametrize("job", MAPPED)
def test_contestant_answers_like_serial(contestant: tuple[str, Host], job: str) -> None:
    """Whatever is timed gives serial's results; the host refuses to time anything else."""
    _, host = contestant
    host.ask("load", job=job)
    assert host.ask("check")["equal"]


def test_new_value_replaces_the_old_one(contestant: tuple[str, Host]) -> None:
    """A value never seen before is answered by itself, and both phases are timed."""
    _, host = contestant
    host.ask("load", job="array")
    host.ask("check")
    assert len(host.ask("first")["ms"]) == 1
    assert host.ask("check")["equal"]
    assert host.ask("turn", budget=0.0)["ms"][0] > 0


def test_submits_come_back_in_order(contestant: tuple[str, Host]) -> None:
    """Row 8: one item there and back, again and again."""
    name, host = contestant
    if name not in CALLERS:
        pytest.skip(f"{name} does not stand in row 8")
    host.ask("load", job="submit")
    assert host.ask("check", calls=True)["equal"]


def test_fresh_process_gives_its_first_results() -> None:
    """Row 7: the floor, from nothing to the first results."""
    assert "floor" in FROM_NOTHING
    with hosting("floor", tiny=True) as host:
        assert host.ask("fresh")["equal"]


def one_short(rows: Iterable[Any], key: str) -> Iterator[Any]:
    """The rows, of which all but this one count as long."""
    for row in rows:
        yield row if row.key == key else pytest.param(row, marks=pytest.mark.long)


# A pool for each new value needs seconds to start its actors; row ray1 has one.
POOL_TAKES_LONG = ("ray2", "ray3", "ray4")


@pytest.fixture(scope="module")
def ray() -> Iterator[OneRay]:
    """One Ray, in a process of its own, for all of its contestants."""
    if not installed():
        pytest.skip("ray is not installed: the table leaves its rows out")
    with one_ray(tiny=True) as running:
        yield running


@pytest.mark.parametrize("row", [*one_short(RAY_ROWS, "ray2")], ids=lambda row: row.key)
def test_ray_contestants_answer_like_serial(ray: OneRay, row: RayRow) -> None:
    """Every contestant of every row on Ray gives serial's results, over one value and another."""
    for name in row.contestants:
        if name == "Pool" and row.key in POOL_TAKES_LONG:
            continue
        seat = ray.seat(name)
        seat.ask("load", job=row.job_of(name))
        assert seat.ask("check", calls=row.calls)["equal"], name
        if row.has_first:
            assert len(seat.ask("first")["ms"]) == 1
            assert seat.ask("settle")["equal"], name


def test_ray_row_is_run_in_turns(ray: OneRay) -> None:
    """A row on Ray ends with a figure for each of its contestants."""
    row = replace(RAY_ROWS[2], contestants=("1 chunk", *OURS), store_mib=0)
    cells = row.run(ray, replace(QUICK, turns=1, firsts=1, budget=0.0))
    assert [*row.contestants] == [*cells]
    assert all(isinstance(cell, Timing) for each in cells.values() for cell in each.values())


@pytest.fixture(scope="module")
def rooms() -> Iterator[Hosts]:
    """One host for each contestant, for all rows."""
    with Hosts(lambda name: Room(name, tiny=True)) as hosts:
        yield hosts


@pytest.mark.parametrize("row", [*one_short(WRITING_ROWS, "writing3")], ids=lambda row: row.key)
def test_writers_agree(rooms: Hosts, row: WritingRow) -> None:
    """Every contestant of every row leaves the right array and answer, twice where it can stay."""
    for name in row.contestants:
        if missing(name):
            continue
        with rooms.asked(name) as host:
            host.ask("load", job=row.job)
            assert host.ask("check")["equal"], name
            assert host.ask("turn", budget=0.0)["ms"][0] > 0
            # Another array takes the place of the last one, and is worked on in its stead.
            host.ask("load", job=row.job)
            assert host.ask("check")["equal"], name


def test_bytes_that_travel_are_counted(rooms: Hosts) -> None:
    """A queue carries the array; who shares it sends less than a hundredth of that."""
    size = writings(tiny=True)["statistics"].nbytes
    sent = {}
    for name in SENDERS:
        with rooms.asked(name) as host:
            host.ask("load", job="statistics")
            sent[name] = host.ask("travel")["bytes"]
    assert size < sent.pop("Queue")
    assert all(0 < value < size / 10 for value in sent.values()), sent


def test_memory_of_a_writer_is_watched() -> None:
    """Growth is given in sizes of the array: it is there while the job runs, and afterwards."""
    with room("shared_memory") as host:  # 16 MB: more than an interpreter's own coming and going
        host.ask("open")
        host.ask("load", job="statistics")
        grown = Growth(**host.ask("memory", seconds=0.2))
    assert grown.stays > 0.5
    assert grown.during > 0.5


def test_locks_and_overlaps_are_timed() -> None:
    """Rows writing5 and writing6: each lock, and each kind of blocks, gives its times."""
    with room("ours") as host:
        host.ask("open")
        for command in ("by_lock", "by_locked"):
            assert host.ask(command, times=3)["ms"][0] > 0
        for what in ({"slices": 100}, {"tiles": 100}):
            assert len(host.ask("overlap", turns=2, **what)["ms"]) == 2


def test_room_leaves_no_shared_memory() -> None:
    """A contestant that is ended in the middle leaves no block behind."""
    host = Room("shared_memory", tiny=True)
    blocks = NAMED.format(pid=host.process.pid) + "*"
    host.ask("open")
    host.ask("load", job="square-1m")
    assert 1 == len(list(MEMORY.glob(blocks)))
    host.close(politely=False)
    assert not list(MEMORY.glob(blocks))


def test_wrong_writing_is_noticed() -> None:
    """One element that was not squared, one count too many, one part too few are not right."""
    square, count, tell = Square(4000), Histogram(4000, "uint8", blocks=4), Statistics(4000)
    data = np.empty(4000)
    square.fill(data)
    squared = data**2
    assert square.is_right(squared, None)
    squared[7] += 1
    assert not square.is_right(squared, None)
    answer = [tell.body(data[part]) for part in tell.parts]
    assert tell.is_right(data, answer)
    assert not tell.is_right(data, answer[1:])
    pixels = np.empty(4000, "uint8")
    count.fill(pixels)
    assert count.is_right(pixels, count.body(pixels))
    assert not count.is_right(pixels, count.body(pixels) + 1)


def test_row_that_needs_more_memory_is_left_out() -> None:
    """Where there is not enough memory for all, nobody runs, and each cell says so."""
    cells = replace(WRITING_ROWS[1], needs_gib=1 << 20).run(QUICK)
    failures = [each["repeated"] for each in cells.values()]
    assert [*WRITING_ROWS[1].contestants] == [*cells]
    assert all(isinstance(cell, Failure) and cell.word == "memory" for cell in failures)


def test_wrong_answer_is_noticed() -> None:
    """Results that differ in one element, or in their number, are not the same."""
    job = jobs(tiny=True)["trivial"]
    right = job.serial(None)
    assert same(right, list(right))
    assert not same(right, [*right[:-1], -1])
    assert not same(right, right[:-1])


def test_ratio_is_paired_by_turns() -> None:
    """A burst that hits both contestants of one turn leaves the ratio as it is."""
    quiet, loud = (1.0, 1.0), (9.0, 9.0)
    mine = Timing((quiet, loud, quiet))
    double = Timing(tuple(tuple(2 * ms for ms in turn) for turn in mine.turns))
    assert ratio(double, mine) == 2
    assert ratio(double, Failure("died")) is None


def test_table_shows_a_failure_in_its_cell() -> None:
    """A contestant that fails has its error's class in its cell; the others keep their figures."""
    cells: Cells = {
        "serial": {"repeated": Timing(((1.5,),))},
        "pool": {"repeated": Failure("OSError")},
    }
    head, line = table(Results(rows={"5": cells}), ["serial", "pool"])
    assert line.split()[-2:] == ["1.50", "OSError"]
    assert len(head) == len(line)


def test_phases_stand_side_by_side() -> None:
    """First and repeated are divided by a slash; a failure of both stands once."""
    assert joined({"first": Timing(((110.0,),)), "repeated": Timing(((0.7,),))}) == "110 / 0.70"
    assert joined({"first": Failure("> 20 s"), "repeated": Failure("> 20 s")}) == "> 20 s"


def test_goals_say_met_not_met_or_nothing() -> None:
    """A goal without its figures is neither met nor missed, and the JSON holds them all."""
    timed: Cells = {
        "ours": {"repeated": Timing(((1.0,),))},
        "floor": {"repeated": Timing(((0.6,),))},
    }
    results = Results(rows={"1": timed}, memory={"ours": 1.2})
    found = list(goals(results, MACHINE))
    assert {goal.met for goal in found} == {True, False, None}
    assert any(line.endswith("NOT met") for line in verdicts(found))
    assert len(as_json(results, found, MACHINE)["goals"]) == len(found)


def test_ray_goals_compare_with_the_best_by_hand() -> None:
    """The goal on Ray takes whoever of the hand-written ones is fastest in that row."""

    def timed(ms: float) -> dict[str, Timing]:
        return {"repeated": Timing(((ms,),))}

    cells: Cells = {"1 chunk": timed(4.0), "4 chunks": timed(2.0), "ours": timed(3.0)}
    results = Results(ray={"ray1": cells}, ray_memory={"ours": 1.1})
    found = [goal for goal in goals(results, MACHINE) if goal.work == "Ray, 100 items, repeated"]
    assert [("<= 1x the best by hand (4 chunks)", "1.5x", False)] == [
        (goal.goal, goal.measured, goal.met) for goal in found
    ]
    assert any("3.00" in line for line in ray_table(results))
    assert any("ours takes 1.5 times" in line for line in ray_extras(results))


def test_writing_goals_compare_with_those_by_hand() -> None:
    """A kept pool, and whoever of the hand-written ones is fastest; memory, locks have theirs."""

    def timed(ms: float) -> dict[str, Timing]:
        return {"repeated": Timing(((ms,),))}

    cells: Cells = {
        "Pool kept": timed(4.0),
        "mp.Array": timed(5.0),
        "shared_memory": timed(2.0),
        "ours": timed(3.0),
    }
    writing = WritingResults(
        rows={"writing1": cells},
        travel={"statistics": {"Queue": 16e6, "ours": Failure("died")}},
        memory={"square-100m": {"ours": Growth(1.0, 1.25)}},
        locks={"ours": Timing(((0.005,),))},
        overlaps={"10,000 tiles": Timing(((200.0,),))},
    )
    results = Results(writing=writing)
    found = [goal for goal in goals(results, MACHINE) if goal.met is not None]
    assert [
        ("8 MB squared", "0.75x", True),
        ("8 MB squared", "1.5x", False),
        ("squares of 800 MB", "1x", True),
        ("one write under a lock nobody wants", "5 us", True),
        ("10,000 tiles are apart", "200 ms", False),
    ] == [(goal.work, goal.measured, goal.met) for goal in found]
    assert any("3.00" in line for line in writing_table(results))
    lines = list(writing_extras(results))
    assert "writing1: ours takes 1.5 times as long as the best by hand, shared_memory" == lines[0]
    assert "Queue 16,000,000; ours died" in lines[1]
    assert "ours 1.25x / 1.00x" in lines[2]
    assert len(as_json(results, [], MACHINE)["writing"]) == 4


def test_columns_are_aligned() -> None:
    """Every line of a table is as wide as its head."""
    assert list(aligned([["a", "b"], ["long", "1"]])) == ["a     b", "long  1"]


def test_rows_have_their_keys() -> None:
    """Rows 1 to 8 stand in order, each over a job that exists."""
    assert [row.key for row in ROWS] == [str(number) for number in range(1, 9)]
    assert all(row.job in jobs(tiny=True) for row in (*ROWS, *RAY_ROWS))
    assert all(row.job in writings(tiny=True) for row in WRITING_ROWS)


@pytest.mark.parametrize("row", SUBMIT_ROWS, ids=lambda row: row.title)
def test_submits_are_raced(row: TurnRow[Any]) -> None:
    """Each row gives right results with us and with concurrent.futures, and tells their ratio."""
    spent = race(row, submits(("futures", "ours")), 1, 10)
    assert {"futures": 1, "ours": 1} == {name: len(turns) for name, turns in spent.items()}
    assert row.title in told(row, spent)
    assert f"goal {row.goal}x" in told(row, spent)


@pytest.mark.parametrize("row", EXECUTOR_ROWS, ids=lambda row: row.title)
def test_executors_are_raced(row: TurnRow[Any]) -> None:
    """Each row gives right results with both executors, and tells their ratio."""
    contestants = executors()
    spent = race(row, contestants, 1, 10)
    assert {"futures": 1, "ours": 1} == {name: len(turns) for name, turns in spent.items()}
    assert f"goal {row.goal}x" in told(row, spent)
    for executor in contestants.values():
        executor.shutdown()


@pytest.mark.parametrize("row", trace_rows(), ids=lambda row: row.title)
def test_traces_are_raced(row: Row) -> None:
    """Each row runs without, with and without a trace, and tells the ratio and its goal."""
    spent = race_traces(row, 1, 5)
    assert dict.fromkeys(MODES, 1) == {mode: len(turns) for mode, turns in spent.items()}
    text = told_of_traces(row, {"off": [10.0], "on": [10.2], "off again": [10.2]}, 5)
    assert "1.020x    40.00 us each" in text
    assert "closed 1.020x (goal 1.01x: not met)" in text
    assert ("goal 1.03x: met" in text) == (row.most is not None)
    assert ("goal 2.0 us each: not met" in text) == (row.most_us is not None)


def test_trace_rows_give_right_results() -> None:
    """What is timed is the whole work."""
    assert [20 * 4950, 79_800, 4950] == [
        row.run(count) for row, count in zip(trace_rows(), (20, 400, 100), strict=True)
    ]
