"""What `make demo` runs: two real jobs, each done in the usual ways and with sharedtask.

Job 1 classifies handwritten digits with a fitted random forest, one image per call. Job 2 finds the
nearest neighbours of query images in 200,000 embeddings (102 MB). Both need a large value in every
call: the forest, the matrix.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import joblib
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from support.measure import Cost, measure

from sharedtask import Shared, parallel, shutdown

WORKERS = len(os.sched_getaffinity(0))
TOP = 5

Row = tuple[str, Cost]


def classify(image: np.ndarray, forest: RandomForestClassifier) -> int:
    """Which digit is on the image?"""
    return int(forest.predict(image[np.newaxis])[0])


def search(queries: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """For each query the rows of the matrix with the highest cosine similarity, best first."""
    found = np.empty((len(queries), TOP), np.intp)
    for index, query in enumerate(queries):
        scores = matrix @ query
        best = np.argpartition(scores, -TOP)[-TOP:]
        found[index] = best[np.argsort(-scores[best])]
    return found


# This is all that sharedtask asks for: say which parameter is shared.
@parallel
def shared_classify(image: np.ndarray, forest: Shared[RandomForestClassifier]) -> int:
    return classify(image, forest)


@parallel
def shared_search(queries: np.ndarray, matrix: Shared[np.ndarray]) -> np.ndarray:
    return search(queries, matrix)


def with_futures(work: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
    """The large value is pickled into every task, as any argument is."""
    with ProcessPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, items))


def with_joblib(work: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
    """Large arrays go into a memory-mapped file automatically, other values are pickled."""
    return joblib.Parallel(WORKERS)(joblib.delayed(work)(item) for item in items)


def compare(
    plain: Callable[..., Any], task: Any, items: Iterable[Any], shared: dict[str, Any]
) -> list[Row]:
    """Do the same job in five ways."""
    work = partial(plain, **shared)
    rows = [
        ("serial", measure(lambda: [work(item) for item in items])),
        ("concurrent.futures", measure(lambda: with_futures(work, items))),
        ("joblib", measure(lambda: with_joblib(work, items))),
    ]
    joblib.externals.loky.get_reusable_executor().shutdown()
    rows += [
        ("sharedtask, first call", measure(lambda: task.map(items, **shared))),
        ("sharedtask, again", measure(lambda: task.map(items, **shared))),
    ]
    shutdown()
    reference = rows[0][1].result
    for name, cost in rows:
        if not all(np.array_equal(*pair) for pair in zip(reference, cost.result, strict=True)):
            message = f"{name} gives other results than serial"
            raise RuntimeError(message)
    return rows


def show(console: Console, title: str, rows: list[Row]) -> None:
    """One table: seconds, memory, and how many times faster than the two ways people use."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("way")
    for heading in ("time", "memory added", "against serial", "against unshared"):
        table.add_column(heading, justify="right")
    serial, unshared = rows[0][1].seconds, rows[1][1].seconds
    for name, cost in rows:
        table.add_row(
            name,
            f"{cost.seconds:.2f} s",
            f"{cost.memory / 1e6:.0f} MB",
            f"{serial / cost.seconds:.1f} x",
            f"{unshared / cost.seconds:.1f} x",
            style="bold" if name.startswith("sharedtask") else "",
        )
    console.print(table)


def forest_job() -> tuple[str, list[Row]]:
    """Digits with a fitted forest."""
    digits = load_digits()
    known, new = slice(0, 1500), slice(1500, 1580)
    forest = RandomForestClassifier(200, random_state=0)
    forest.fit(digits.data[known], digits.target[known])
    rows = compare(classify, shared_classify, digits.data[new], {"forest": forest})
    right = np.mean(np.array(rows[-1][1].result) == digits.target[new])
    return f"80 digits, a forest of 200 trees ({right:.0%} of the answers are right)", rows


def embed(images: np.ndarray) -> np.ndarray:
    """Images ``(n, 8, 8)`` to unit vectors ``(n, 128)``: pixels and horizontal edges."""
    edges = images - np.roll(images, 1, axis=2)
    vectors = np.concatenate([images, edges], axis=2, dtype=np.float32).reshape(len(images), -1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def search_job() -> tuple[str, list[Row]]:
    """Nearest neighbours among noisy copies of digits."""
    rng = np.random.default_rng(0)
    digits = load_digits()
    source = rng.integers(0, 1500, 200_000)
    noise = rng.normal(0, 2, (len(source), 8, 8)).astype(np.float32)
    matrix = embed(digits.images[source] + noise)
    queries = embed(digits.images[1500:1620]).reshape(12, 10, -1)
    rows = compare(search, shared_search, queries, {"matrix": matrix})
    found = digits.target[source][np.concatenate(rows[-1][1].result)]
    same = np.mean(found == digits.target[1500:1620, np.newaxis])
    size = f"{len(matrix):,} embeddings ({matrix.nbytes / 1e6:.0f} MB)"
    return f"120 queries in {size} ({same:.0%} of the neighbours show the same digit)", rows


# The guard is for the others: concurrent.futures and joblib may run this file again in their
# workers. sharedtask never does.
if __name__ == "__main__":
    console = Console(width=100, highlight=False)
    console.print(f"[bold]sharedtask demo[/bold], {WORKERS} workers\n")
    for job in (forest_job, search_job):
        show(console, *job())
    console.print("All ways gave the same results. Memory is what all processes added (PSS).")
    console.print("A first call starts the workers and has them import numpy and scikit-learn.")
