"""One contestant and one fault in a process of its own: a JSON line for each thing that is done.

``ready`` when the workers are warm, ``answer`` of the map in which the fault happens, ``again``
for a map of good items right after it, ``closed`` when the pool was closed. What is left after the
process has ended is for the one who started it to see (``cells.py``).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.faults import deeds
from benchmarks.faults.catalogue import FAULTS, Fault
from benchmarks.faults.limits import NoAnswerError, limited
from benchmarks.faults.pools import CONTESTANTS, Pool
from benchmarks.faults.scenes import Scene

TEXT, LONG = 600, 4000  # characters of an error that are kept: of itself, with its causes


def main() -> None:
    """Run the cell named by the two arguments."""
    # The real standard output carries answers only, whatever the libraries print.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    name, key = sys.argv[1:]
    fault = FAULTS[key]
    # 2 MB: joblib maps what is above one.
    table = None if fault.table is None else np.full(1 << 18, fault.table)
    pool = CONTESTANTS[name].make(table)
    for stage, said in run(pool, fault, table):
        print(json.dumps({"stage": stage, **said}), file=answers, flush=True)


def run(pool: Pool, fault: Fault, table: np.ndarray | None) -> Any:
    """Each thing that is done, and what came of it."""
    call = partial(pool.map, fault.task, fault.items(), fault.timeout, table)
    scene = Scene(call, set(pool.map(deeds.whoami, deeds.rooms())), table, set(fault.bad))
    fault.before(scene)
    yield "ready", {}
    said = told(call)
    scene.end()
    unharmed = table is None or bool((table == 1).all())
    yield "answer", {**said, "bad": sorted(scene.bad), "unharmed": unharmed}
    yield "again", told(lambda: pool.map(deeds.work, deeds.rooms()))
    yield "closed", told(pool.close)


def told(call: Callable[[], Any]) -> dict[str, Any]:
    """What the call gave or raised, and after how many seconds."""
    began = time.monotonic()
    try:
        with limited():
            given = call()
    except NoAnswerError:
        return {"answered": False, "seconds": seconds_since(began)}
    except BaseException as error:  # noqa: BLE001  a worker's SystemExit must not end the driver
        return {"answered": True, "seconds": seconds_since(began), "raised": described(error)}
    said = {"answered": True, "seconds": seconds_since(began)}
    return said if given is None else {**said, "places": places(given)}


def seconds_since(began: float) -> float:
    return round(time.monotonic() - began, 2)


def places(results: list[Any]) -> list[Any]:
    """For each result whether it is right, or what stands in its place."""
    return [
        described(result) if isinstance(result, BaseException) else bool(result == deeds.right(at))
        for at, result in enumerate(results)
    ]


def described(error: BaseException) -> dict[str, Any]:
    """An error as JSON: its class, its text, the items it names, whether it ends a program."""
    said = [text for link in chain(error) for text in texts(link)]
    counted = {index for link in chain(error) if isinstance(index := index_of(link), int)}
    return {
        "class": type(error).__name__,
        "text": str(error)[:TEXT],
        "names": sorted(counted.union(*map(deeds.rooms_in, said))),
        "says": "\n".join(said)[:LONG],
        "ends": not isinstance(error, Exception),
    }


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of that."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def texts(error: BaseException) -> Iterator[str]:
    """What an error says in words: its text and its attributes; its notes are one of them."""
    yield str(error)
    yield from map(repr, vars(error).values())


def index_of(error: BaseException) -> Any:
    """The number of the item, where an error has it."""
    return getattr(error, "index", None)


if __name__ == "__main__":
    main()
