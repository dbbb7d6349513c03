"""``python -m benchmarks.joblib_rows``: scikit-learn and joblib on our backend, beside theirs.

Each backend has a process of its own, and they take turns: ratios of turns side by side count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure import ROOT

JOBS = 4
BACKENDS = ("sharedtask", "loky", "threading", "ray")
FIRST, REPEATED = "first", "repeated"


def same(x: int) -> int:
    return x


class Rows:
    """The work, over one X of so many MiB. Each row is run twice: the second finds X again."""

    def __init__(self, mib: int) -> None:
        rng = np.random.default_rng(0)
        self.X = rng.normal(size=(mib * (1 << 20) // 8 // 50, 50))
        self.y = (self.X[:, 0] > 0).astype(int)

    def grid(self) -> None:
        from sklearn.linear_model import SGDClassifier
        from sklearn.model_selection import GridSearchCV

        model = SGDClassifier(max_iter=1, tol=None, random_state=0)
        GridSearchCV(model, {"alpha": [1e-4, 1e-3]}, cv=2, n_jobs=JOBS).fit(self.X, self.y)

    def cross(self) -> None:
        from sklearn.linear_model import SGDClassifier
        from sklearn.model_selection import cross_val_score

        model = SGDClassifier(max_iter=1, tol=None, random_state=0)
        cross_val_score(model, self.X, self.y, cv=4, n_jobs=JOBS)

    def forest(self) -> None:
        from sklearn.ensemble import RandomForestClassifier

        model = RandomForestClassifier(8, max_depth=2, max_samples=2000, n_jobs=JOBS)
        model.fit(self.X, self.y).predict(self.X[:10_000])

    def permutation(self) -> None:
        from sklearn.inspection import permutation_importance
        from sklearn.linear_model import SGDClassifier

        model = SGDClassifier(max_iter=1, tol=None, random_state=0).fit(
            self.X[:1000], self.y[:1000]
        )
        permutation_importance(model, self.X, self.y, n_repeats=1, max_samples=2000, n_jobs=JOBS)

    def pairwise(self) -> None:
        from sklearn.metrics import pairwise_distances

        pairwise_distances(self.X[:2000], metric="cityblock", n_jobs=JOBS)

    def tiny(self) -> None:
        from joblib import Parallel, delayed

        Parallel(n_jobs=JOBS)(delayed(same)(k) for k in range(10_000))


NAMES = ("grid", "cross", "forest", "permutation", "pairwise", "tiny")


def host(backend: str, mib: int) -> None:
    """Run what is asked for, line by line, and answer with milliseconds."""
    import joblib

    if backend == "sharedtask":
        from sharedtask.joblib import register

        register()
    elif backend == "ray":
        from ray.util.joblib import register_ray

        register_ray()
    began = time.perf_counter()
    with joblib.parallel_config(backend=backend, n_jobs=JOBS):
        joblib.Parallel()(joblib.delayed(same)(k) for k in range(JOBS))
        print(json.dumps((time.perf_counter() - began) * 1000), flush=True)
        rows = Rows(mib)
        for name in map(str.strip, sys.stdin):
            began = time.perf_counter()
            getattr(rows, name)()
            print(json.dumps((time.perf_counter() - began) * 1000), flush=True)


class Host:
    """The process of a backend."""

    def __init__(self, backend: str, mib: int) -> None:
        command = [sys.executable, "-m", __spec__.name, "--host", backend, "--mib", str(mib)]
        self.process: Any = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.cold = self.answer()

    def run(self, name: str) -> float:
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> float:
        return float(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def measure(backends: list[str], mib: int, turns: int) -> Mapping[str, Mapping[str, Any]]:
    """Milliseconds by row and backend: the first run of each row, and the median of the others."""
    hosts = {name: Host(name, mib) for name in backends}
    found: dict[str, dict[str, Any]] = {
        "cold start": {name: {FIRST: h.cold, REPEATED: h.cold} for name, h in hosts.items()}
    }
    try:
        for row in NAMES:
            spent: dict[str, list[float]] = {name: [] for name in hosts}
            order = list(hosts.items())
            for _ in range(turns + 1):
                for name, each in order:
                    spent[name].append(each.run(row))
                order.append(order.pop(0))
            found[row] = {
                name: {FIRST: ms[0], REPEATED: median(ms[1:])} for name, ms in spent.items()
            }
    finally:
        for each in hosts.values():
            each.close()
    return found


def table(found: Mapping[str, Mapping[str, Any]], backends: list[str]) -> None:
    print("| row | " + " | ".join(f"{name}, {w}" for name in backends for w in (FIRST, REPEATED)))
    for row, cells in found.items():
        shown = [f"{cells[name][w]:,.0f}" for name in backends for w in (FIRST, REPEATED)]
        print(f"| {row} | " + " | ".join(shown))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joblib_rows", description=__doc__)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--backends", default="sharedtask,loky,threading")
    parser.add_argument("--host")
    asked = parser.parse_args()
    if asked.host:
        host(asked.host, asked.mib)
        return
    missing: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is None  # noqa: E731
    chosen = [b for b in asked.backends.split(",") if b in BACKENDS]
    if missing("ray"):
        chosen = [name for name in chosen if name != "ray"]
    table(measure(chosen, asked.mib, asked.turns), chosen)


if __name__ == "__main__":
    main()
