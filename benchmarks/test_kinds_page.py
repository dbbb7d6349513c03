"""The page of kinds says what is so today, and the rows behind it work at tiny sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.goals import Results, goals
from benchmarks.kept import Hosts
from benchmarks.kinds_page import (
    BLOCK,
    END,
    FOUND,
    MEASURED,
    PAGE,
    RESULTS,
    block,
    condensed,
    found_out,
    measured_table,
    renewed,
    rows_of,
)
from benchmarks.kinds_rows import (
    BESIDE,
    KIND_ROWS,
    OURS,
    RAY_MODULE,
    RAY_WAY,
    SIZE,
    Booth,
    KindRow,
    KindsResults,
    Network,
    patient,
)
from benchmarks.kinds_work import KINDS, MLP, Kind, installed, left_out, private_bytes
from benchmarks.measure import FULL, QUICK, Failure, Timing
from benchmarks.ray_rows import OneRay, one_ray
from benchmarks.ray_rows import installed as ray_installed
from benchmarks.report import as_json, kinds_extras, kinds_table

HERE = [key for key, kind in KINDS.items() if installed(kind)]
MACHINE = {"huge_pages_collapse": True, "write_tracking": False}
FACTS = {"date": "2026-01-31", "cpus": 2, "memory_gib": 8.0, "python": "3.11", "versions": {}}


@pytest.mark.long
def test_page_says_what_is_found_out_today() -> None:
    """Every kind is where the page says, in as many bytes; and the figures are those on file."""
    page = PAGE.read_text()
    assert page == renewed(page), "python -m benchmarks.kinds_page renews it"


@pytest.mark.parametrize("what", [FOUND, MEASURED])
def test_every_kind_has_its_row(what: str) -> None:
    """No kind is missing from either table, and none that is gone is left."""
    titles = [title for title in rows_of(PAGE.read_text(), what) if title in BY_TITLE]
    assert [kind.title for kind in KINDS.values()] == titles
    assert len(KINDS) + 2 == len(rows_of(PAGE.read_text(), what))


BY_TITLE = {kind.title: kind for kind in KINDS.values()}


def test_page_agrees_with_the_promises() -> None:
    """What the benchmarks hold to the goals of zero-copy is what was found to be zero-copy."""
    rows = rows_of(PAGE.read_text(), FOUND)
    assert {title: "yes" if kind.zero_copy else "no" for title, kind in BY_TITLE.items()} == {
        title: rows[title][0] for title in BY_TITLE
    }


def test_figures_on_the_page_are_those_on_file() -> None:
    """The measured block is made of the results file and of nothing else."""
    shown = block(MEASURED, PAGE.read_text())[1].strip().splitlines()
    assert shown == [*measured_table(json.loads(RESULTS.read_text()))]


def test_copy_is_told_from_what_lies_in_place() -> None:
    """Bytes are seen to be a copy in the worker, an array is not."""
    array = Kind("", np.ones, lambda v, k: v[k])
    copied = Kind("", bytes, lambda v, k: v[k])
    assert ["yes", "8.00 MiB", "< 1 kB"] == found_out(array)
    assert ["no", "1.00 MiB", "< 1 kB"] == found_out(copied)


def test_row_of_a_kind_that_cannot_be_tried_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library is missing, the page keeps what was found where it is not."""
    monkeypatch.setattr(
        "benchmarks.kinds_page.KINDS", {"x": Kind("a thing", bytes, max, needs="no_such")}
    )
    blocks = [BLOCK.format(what) + END for what in (FOUND, MEASURED)]
    page = "\n".join(blocks).replace(END, "\n| a thing | yes | 7 B | 1 B | so |\n\n" + END, 1)
    assert "| a thing | yes | 7 B | 1 B |  |" in renewed(page)


def test_kinds_that_cannot_be_made_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line says which rows are left out, and why."""
    missing = Kind("a thing", bytes, max, needs="no_such")
    monkeypatch.setattr("benchmarks.kinds_work.KINDS", {"x": missing, "y": KINDS["array"]})
    assert ["left out, no_such is not installed: a thing"] == [*left_out()]


def test_private_bytes_are_counted() -> None:
    """What this process allocates is its own."""
    before = private_bytes()
    held = np.ones(8 << 20)  # 64 MiB: more than the heap has to spare
    assert 56 << 20 < private_bytes() - before < 96 << 20
    del held


@pytest.fixture(scope="module")
def booths() -> Iterator[Hosts]:
    """One host for all kinds."""
    with Hosts(lambda name: Booth(name, tiny=True)) as hosts:
        yield hosts


@pytest.mark.long
@pytest.mark.parametrize("name", HERE)
def test_kind_is_answered_like_serial(booths: Hosts, name: str) -> None:
    """Ours gives serial's results for every kind, twice, and a worker can be weighed."""
    with booths.asked(OURS) as host:
        host.ask("load", job=name)
        assert host.ask("check")["equal"]
        assert host.ask("private")["bytes"] < 8 << 20
        assert len(host.ask("first")["ms"]) == 1
        assert host.ask("check")["equal"]


@pytest.mark.long
def test_row_is_run_in_turns() -> None:
    """A row ends with a figure for each contestant that is installed, and with its memory."""
    row = KindRow("nested")
    cells, grown = row.run(replace(QUICK, turns=1, budget=0.0, limit=60.0, slow=60.0))
    assert {OURS, BESIDE} <= {*cells}
    assert all(isinstance(cell, Timing) for name in (OURS, BESIDE) for cell in cells[name].values())
    assert isinstance(grown[OURS], float)


@pytest.fixture(scope="module")
def ray() -> Iterator[OneRay]:
    if not ray_installed():
        pytest.skip("ray is not installed: the table leaves its column out")
    with one_ray(tiny=True, module=RAY_MODULE) as running:
        yield running


@pytest.mark.long
def test_row_is_run_on_ray(ray: OneRay) -> None:
    """So it does on Ray."""
    cells, grown = KindRow("nested").run_on_ray(ray, replace(QUICK, turns=1, budget=0.0))
    assert isinstance(cells[RAY_WAY]["repeated"], Timing)
    assert isinstance(grown[RAY_WAY], float)


@pytest.mark.long
def test_network_is_the_same_in_all_workers(booths: Hosts) -> None:
    """Results of a network in four workers are those of one process, bit for bit."""
    if not installed(KINDS["module"]):
        pytest.skip("torch is not installed: the line is left out")
    with booths.asked(OURS) as host:
        host.ask("load", job=MLP)
        assert host.ask("check")["equal"]
        ran = Network(1.0, **host.ask("spread"))
    assert ran.bits
    assert ran.relative < 1e-4


def test_goals_of_kinds_are_told_one_by_one() -> None:
    """A kind without a copy has two goals, one that is copied has none."""

    def timed(ms: float) -> dict[str, Timing]:
        return {"first": Timing(((9 * ms,),)), "repeated": Timing(((ms,),))}

    died = dict.fromkeys(("first", "repeated"), Failure("died"))
    found = KindsResults(network=Network(1.2, bits=True, relative=1e-7))
    cells = {OURS: timed(3.0), BESIDE: timed(1.0), "joblib": died}
    for name in ("array", "bytes"):
        found.add(KindRow(name).key, (cells, {OURS: SIZE / 200, "joblib": Failure("died")}))
    results = Results(kinds=found)
    told = {goal.goal: goal.met for goal in goals(results, MACHINE) if goal.met is not None}
    assert {
        "a worker's own memory: <= 1 % + 200 kB": True,
        "repeated: <= 2x a plain array": False,
        "one copy: memory grows by <= 1.05x": False,
        "results are serial's, bit for bit": True,
    } == told
    lines = [*kinds_table(results), *kinds_extras(results)]
    assert any("27.0 / 3.00" in line for line in lines)
    assert any("the same bits" in line for line in lines)
    shown = [*measured_table(condensed([as_json(results, [], FACTS)]))]
    assert "| array in C order | 27.0 / 3.00 | 0.3 | died | - | - | - |" in shown


def test_rows_are_found_by_their_keys() -> None:
    """Each kind is one row; a run that is not short has patience with those who copy."""
    assert [*KINDS] == [row.name for row in KIND_ROWS]
    assert QUICK == patient(QUICK)
    assert patient(FULL).slow > FULL.slow
