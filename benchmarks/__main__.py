"""``python -m benchmarks``: run the rows, print the tables, say which goals are met."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path

if not __package__:  # ``python benchmarks`` puts this folder on the path instead of its parent
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import extras, kinds_rows, ray_rows, report, writing_rows
from benchmarks.contestants import CONTESTANTS
from benchmarks.goals import Results, goals
from benchmarks.kinds_rows import KIND_ROWS, KINDS_EXTRAS, KindsResults
from benchmarks.kinds_work import installed
from benchmarks.machine import facts
from benchmarks.measure import FULL, PATIENT, QUICK, Effort
from benchmarks.ray_rows import RAY_EXTRAS, RAY_ROWS
from benchmarks.rows import ALL, OURS_TOO, ROWS
from benchmarks.writing_rows import WRITING_EXTRAS, WRITING_ROWS

EXTRAS = ("import", "publish", "unchanged", "memory")
RAY_KEYS = tuple(row.key for row in RAY_ROWS)
RAY = (*RAY_KEYS, *RAY_EXTRAS)
WRITING = (*(row.key for row in WRITING_ROWS), *WRITING_EXTRAS)
KINDS = (*(row.key for row in KIND_ROWS), *KINDS_EXTRAS)
GROUPS = {"ray": RAY, "writing": WRITING, "kinds": KINDS}  # what one word in --rows stands for
QUICK_PEERS = ("serial", "pool", "joblib", "mpire kept", "floor", "ours")
HOLDERS = ("pool", "futures", "joblib", "mpire kept", "floor", "ours")


def listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form, about a minute")
    parser.add_argument("--slow", action="store_true", help="wait for peers beyond 20 s a run")
    parser.add_argument(
        "--rows",
        type=listed,
        help=f"some of 1-8, {', '.join((*EXTRAS, *RAY, *WRITING, *KINDS))}; "
        "ray, writing, kinds: all of these",
    )
    parser.add_argument("--peers", type=listed, help=f"some of {', '.join(CONTESTANTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parsed = parser.parse_args()
    if parsed.rows:
        parsed.rows = [key for word in parsed.rows for key in GROUPS.get(word, (word,))]
    known = {*(row.key for row in ROWS), *EXTRAS, *RAY, *WRITING, *KINDS}
    unknown = {*(parsed.rows or ())} - known
    unknown |= {*(parsed.peers or ())} - set(CONTESTANTS)
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    return parsed


def contestants(named: Iterable[str] | None, *, quick: bool) -> set[str]:
    """Who takes part: the ones named, or all; naming ours or the floor means every form of it."""
    chosen = set(named or (QUICK_PEERS if quick else ALL))
    if "ours" in chosen:
        chosen.update(OURS_TOO)
    if "floor" in chosen:
        chosen.update(("floor fork", "floor future"))
    return chosen


def default_rows(asked: argparse.Namespace) -> list[str]:
    """All; those of other contestants not where some are named, nor in short what takes long."""
    on_ray = () if asked.peers else RAY_KEYS if asked.quick else RAY
    others = () if asked.peers or asked.quick else (*WRITING, *KINDS)
    return [*(row.key for row in ROWS), *EXTRAS, *on_ray, *others]


def measure(effort: Effort, rows: Collection[str], peers: set[str]) -> Results:
    """Run all that was asked for, saying on standard error what is running."""
    results, began = Results(), time.monotonic()
    for row in ROWS:
        if row.key in rows:
            say(f"{row.key} {row.title}")
            results.rows[row.key] = row.run(effort, peers)
    if "import" in rows:
        say("imports")
        results.imports = extras.imports(effort)
    if "publish" in rows:
        say("publishing")
        results.publishing = extras.publishing(effort, peers)
    if "unchanged" in rows and "ours" in peers:
        say("unchanged array")
        results.unchanged = extras.unchanged(effort)
    if "memory" in rows:
        say("memory")
        holders = HOLDERS if effort is not QUICK else ("ours",)
        results.memory = dict(extras.memory([name for name in holders if name in peers]))
    if ray_rows.installed() and "ours" in peers:
        measure_ray(effort, rows, results)
    if "ours" in peers:
        measure_writing(effort, rows, results.writing)
        measure_kinds(effort, rows, results.kinds)
    results.seconds = time.monotonic() - began
    return results


def measure_ray(effort: Effort, rows: Collection[str], results: Results) -> None:
    """The rows of the second table, on a Ray of their own."""
    with ray_rows.one_ray() as ray:
        for row in RAY_ROWS:
            if row.key in rows:
                say(f"{row.key} {row.title}")
                results.ray[row.key] = row.run(ray, effort)
    if "raystart" in rows:
        say("starting Ray")
        results.ray_start = ray_rows.start(effort)
    if "raymemory" in rows:
        say("memory with Ray")
        results.ray_memory = ray_rows.memory(effort)


def measure_writing(
    effort: Effort, rows: Collection[str], results: writing_rows.WritingResults
) -> None:
    """The rows of the third table, and the lines below it."""
    for row in WRITING_ROWS:
        if row.key in rows:
            say(f"{row.key} {row.title}")
            results.rows[row.key] = row.run(effort)
    if "writing5" in rows:
        say("writing5 one write under a lock")
        results.locks = writing_rows.locks(effort)
    if "writing6" in rows:
        say("writing6 the check for overlap")
        results.overlaps = writing_rows.overlaps(effort)
    if "writingtravel" in rows:
        say("bytes that travel")
        results.travel = {job: writing_rows.travel(job) for job in writing_rows.TRAVELS}
    if "writingmemory" in rows:
        say("memory while tasks write")
        jobs = writing_rows.MEMORY_JOBS
        results.memory = {job: writing_rows.memory(effort, job) for job in jobs}


def measure_kinds(effort: Effort, rows: Collection[str], results: KindsResults) -> None:
    """The rows of the fourth table: first on this machine, then all of them on one Ray."""
    chosen = [row for row in KIND_ROWS if row.key in rows and installed(row.kind)]
    patient = kinds_rows.patient(effort)
    for row in chosen:
        say(f"{row.key} {row.title}")
        results.add(row.key, row.run(patient))
    if ray_rows.installed() and chosen:
        with ray_rows.one_ray(module=kinds_rows.RAY_MODULE) as ray:
            for row in chosen:
                say(f"{row.key} on Ray")
                results.add(row.key, row.run_on_ray(ray, patient))
    if "kindsmlp" in rows:
        say("kindsmlp a network of torch")
        results.network = kinds_rows.network()


def say(what: str) -> None:
    print(f"{time.strftime('%X')} {what}", file=sys.stderr, flush=True)


def main() -> None:
    asked = arguments()
    effort = QUICK if asked.quick else PATIENT if asked.slow else FULL
    rows = asked.rows or default_rows(asked)
    peers = contestants(asked.peers, quick=asked.quick)
    machine = facts()
    results = measure(effort, rows, peers)
    verdicts = list(goals(results, machine))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['platform']}, {machine['cpus']} CPUs, Python {machine['python']}, {versions}")
    for part in (
        report.table(results, peers),
        report.extras(results),
        report.ray_table(results),
        report.ray_extras(results),
        report.writing_table(results),
        report.writing_extras(results),
        report.kinds_table(results),
        report.kinds_extras(results),
        report.failures(results),
        report.verdicts([goal for goal in verdicts if goal.met is not None]),
    ):
        lines = list(part)
        if len(lines) > 0:
            print("", *lines, sep="\n")
    print(f"\n{results.seconds:.0f} s. * marks a single run. How to read it: benchmarks/README.md")
    if asked.json:
        asked.json.write_text(json.dumps(report.as_json(results, verdicts, machine), indent=1))


if __name__ == "__main__":
    main()
