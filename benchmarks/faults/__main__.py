"""``python -m benchmarks.faults``: what a map does when something goes wrong, beside its peers."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.__main__ import listed
from benchmarks.faults import page
from benchmarks.faults.catalogue import FAULTS, QUICK
from benchmarks.faults.cells import Cell, DriverError
from benchmarks.faults.judge import Observed
from benchmarks.faults.pools import CONTESTANTS, missing
from benchmarks.machine import facts

QUICK_COLUMNS = tuple(name for name in CONTESTANTS if name != "ray")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four faults, without Ray")
    parser.add_argument("--faults", type=listed, help=f"some of {', '.join(FAULTS)}")
    parser.add_argument("--peers", type=listed, help=f"some of {', '.join(CONTESTANTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was seen there")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the table between the markers of that page"
    )
    parsed = parser.parse_args()
    unknown = {*(parsed.faults or ())} - {*FAULTS} | {*(parsed.peers or ())} - {*CONTESTANTS}
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    return parsed


def measured(keys: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Observed | str]]:
    """Every cell, one after the other, saying on standard error how it went."""
    results: dict[str, dict[str, Observed | str]] = {}
    for key in keys:
        results[key] = {name: observed(name, key) for name in names}
        shown = (f"{name} {page.shown(key, seen)}" for name, seen in results[key].items())
        print(f"{time.strftime('%X')} {key}: {', '.join(shown)}", file=sys.stderr, flush=True)
    return results


def observed(name: str, key: str) -> Observed | str:
    """One cell, or the words that stand in its place."""
    if missing(name):
        return "not installed"
    try:
        return Cell(name, key).run()
    except DriverError as error:
        print(error, file=sys.stderr)
        return "no start"


def heading(machine: dict[str, Any]) -> str:
    """Machine and versions, as they stand beside every figure."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['platform']}, {machine['cpus']} CPUs, Python {machine['python']}, {versions}"


def main() -> None:
    asked = arguments()
    keys = asked.faults or (QUICK if asked.quick else tuple(FAULTS))
    names = asked.peers or (QUICK_COLUMNS if asked.quick else tuple(CONTESTANTS))
    machine, began = facts(), time.monotonic()
    results = measured(keys, names)
    print(heading(machine), "", *page.table(results, names), "", sep="\n")
    print(*page.reasons(results, names), sep="\n")
    print(f"\n{time.monotonic() - began:.0f} s. The rules: docs/faults-table.md")
    if asked.json:
        figures = {"machine": machine, "faults": page.as_json(results)}
        asked.json.write_text(json.dumps(figures, indent=1))
    if asked.write:
        lines = [*page.markdown(results, names), "", f"{heading(machine)}."]
        page.write(asked.write, "\n".join(lines))


if __name__ == "__main__":
    main()
