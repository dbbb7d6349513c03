"""``python -m benchmarks.kinds_page``: renew the table of kinds in ``docs/kinds/index.md``.

What can be said without a clock is found out anew: each kind is shared with a worker, which looks
where it lies. A kind whose library is not installed keeps its row. Figures are those of the results
file, which ``--figures FILE`` renews from what ``python -m benchmarks --rows kinds --json FILE``
wrote. ``--check`` changes nothing, and exits with 1 where the page is not what it should be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kinds_rows import COLUMNS, KIND_ROWS, OURS, RAY_WAY
from benchmarks.kinds_work import KINDS, Kind, installed
from benchmarks.measure import ROOT
from benchmarks.report import number
from sharedtask import Shared, parallel
from sharedtask.memory import mapping
from sharedtask.serialization import codec
from sharedtask.testing.strategies import in_segment

PAGE = ROOT / "docs" / "kinds" / "index.md"
RESULTS = ROOT / "benchmarks" / "results" / "kinds.json"
NBYTES = 1 << 20
BLOCK = "<!-- {} by benchmarks/kinds_page.py -->\n"
END = "<!-- end -->"
FOUND, MEASURED = "found out", "measured"
HERE, NOT_HERE = "yes", "no"
LIMITS = {1_000: "< 1 kB", 10_000: "< 10 kB", 100_000: "< 100 kB"}


# ------------------------------------------------------------------- what needs no clock


@parallel(backend="process", workers=1)
def lies_in_place(_: int, model: Shared[Any]) -> bool:
    """Whether what a worker has of the value is the shared memory itself, or the file.

    The worker's value is taken apart once more: what is not a copy is met at the address where it
    was mapped.
    """
    payload = codec.encode(model[0])
    if payload.held:
        return True
    addresses = [mapping.address_of(buffer) for buffer in payload.buffers if buffer.nbytes > 1]
    inside = sum(buffer.nbytes for buffer in payload.buffers)
    return len(payload.head) < inside and in_segment(*addresses)


def found_out(kind: Kind) -> list[str]:
    """Where the value lies, the bytes that are shared, and those of its pickle."""
    value = kind.make(NBYTES)
    payload = codec.encode(value)
    # What is small on its own would travel in the message.
    (in_place,) = lies_in_place.map([0], model=(value, np.zeros(NBYTES, np.uint8)))
    shared = 0 if payload.held else sum(buffer.nbytes for buffer in payload.buffers)
    parts = f"{shared / NBYTES:.2f} MiB" if shared >= NBYTES / 10 else below(shared)
    return [HERE if in_place else NOT_HERE, parts, below(len(payload.head))]


def below(nbytes: int) -> str:
    """A bound that the next version of a library will keep as well."""
    if not nbytes:
        return "0"
    return next((text for limit, text in LIMITS.items() if nbytes < limit), "< 1 MB")


def found_table(page: str) -> Iterator[str]:
    """One row for each kind; that of a kind which cannot be tried here is kept."""
    yield row(["a value of 1 MiB", "zero-copy", "shared memory", "pickle", ""])
    yield row(["---"] * 5)
    kept = rows_of(page, FOUND)
    for kind in KINDS.values():
        cells = found_out(kind) if installed(kind) else kept.get(kind.title, ["?"] * 4)[:3]
        yield row([kind.title, *cells, kind.why])


# ------------------------------------------------------------------- what was measured


def condensed(files: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all that was measured, what the page shows: medians, and bytes of a worker's own."""
    machine = files[0]["machine"]
    kept = ("date", "cpus", "memory_gib", "python", "versions")
    found: dict[str, Any] = {}
    for figures in files:
        for row in KIND_ROWS:
            if row.key in figures["rows"]:
                found.setdefault(row.name, {}).update(condensed_row(figures, row.key))
    network = next((f["kinds"]["network"] for f in files if f["kinds"]["network"]), None)
    return {"machine": {k: machine[k] for k in kept}, "kinds": found, "network": network}


def condensed_row(figures: Mapping[str, Any], key: str) -> dict[str, Any]:
    cells, private = figures["rows"][key], figures["kinds"]["private"][key]
    return {
        name: {
            **{phase: median(cell) for phase, cell in cells[name].items()},
            "private": plain(private.get(name)),
        }
        for name in COLUMNS
        if name in cells
    }


def median(cell: Mapping[str, Any]) -> float | str:
    return cell["median"] if "median" in cell else cell["failed"]


def plain(value: Any) -> Any:
    return value["failed"] if isinstance(value, Mapping) else value


def measured_table(results: Mapping[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    yield (
        f"64 MiB of each, 8 items, 4 workers; {machine['cpus']} cores, {machine['memory_gib']} "
        f"GiB, Linux, Python {machine['python']}, {machine['date']}. *first* / *repeated* in ms, "
        "and the growth of a worker's private memory in MB."
    )
    yield ""
    yield row(["", "sharedtask", "MB", "joblib", "MB", "Ray, one put", "MB"])
    yield row(["---"] * 7)
    for key, kind in KINDS.items():
        each = results["kinds"].get(key, {})
        cells = (cell for name in (OURS, "joblib", RAY_WAY) for cell in measured_cells(each, name))
        yield row([kind.title, *cells])
    yield from network_line(results["network"])


def network_line(ran: Mapping[str, Any] | None) -> Iterator[str]:
    """What became of a network of torch that ran in four workers."""
    if ran and "grows" in ran:
        yield ""
        same = "identical to" if ran["bits"] else "not the same as"
        yield (
            f"A torch network of 200 MB, run in four workers: memory grows by {ran['grows']:.2f} "
            f"of its size, and the results are {same} serial results, bit for bit."
        )


def measured_cells(each: Mapping[str, Any], name: str) -> tuple[str, str]:
    """First and repeated in one cell, and memory."""
    found = each.get(name)
    if found is None:
        return "-", "-"
    times = dict.fromkeys(shown(found.get(phase, "-")) for phase in ("first", "repeated"))
    return " / ".join(times), megabytes(found["private"])


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)


def megabytes(value: float | str | None) -> str:
    return f"{max(0.0, value) / 1e6:.1f}" if isinstance(value, float) else "-"


# ------------------------------------------------------------------------------ the page


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def block(what: str, page: str) -> re.Match[str]:
    found = re.search(re.escape(BLOCK.format(what)) + rf"(.*?)(?={END})", page, re.DOTALL)
    assert found is not None, f"docs/kinds/index.md has lost its block {what!r}"
    return found


def rows_of(page: str, what: str) -> dict[str, list[str]]:
    """The cells of every row of a block, by the first of them."""
    lines = (line for line in block(what, page)[1].splitlines() if line.startswith("|"))
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {first: others for first, *others in cells}


def renewed(page: str) -> str:
    """The page with both tables as they should be."""
    results = json.loads(RESULTS.read_text())
    for what, lines in ((FOUND, found_table(page)), (MEASURED, measured_table(results))):
        old = block(what, page)
        text = BLOCK.format(what) + "\n" + "\n".join(lines) + "\n\n"
        page = page[: old.start()] + text + page[old.end() :]
    return page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kinds_page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, tell")
    parser.add_argument(
        "--figures", type=Path, nargs="+", metavar="FILE", help="new results, as JSON"
    )
    asked = parser.parse_args()
    if asked.figures:
        files = [json.loads(path.read_text()) for path in asked.figures]
        RESULTS.write_text(json.dumps(condensed(files), indent=1) + "\n")
    page = PAGE.read_text()
    after = renewed(page)
    if asked.check:
        sys.exit(int(after != page))
    PAGE.write_text(after)


if __name__ == "__main__":
    main()
