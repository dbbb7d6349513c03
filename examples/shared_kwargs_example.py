"""``multi_process``: a map in one call, over functions without a decorator.

Three jobs: one shared model, timed with and without sharing; several shared objects with a small
unshared one; a classification from end to end. They run on Ray; with ``--backend mp``, on worker
processes of this machine.
"""

import argparse
import time

import numpy as np

from sharedtask import multi_process

WORKERS = 4

parser = argparse.ArgumentParser(description="Three jobs for multi_process.")
parser.add_argument("--backend", choices=["ray", "mp"], default="ray")
backend = parser.parse_args().backend
rng = np.random.default_rng(8)

# --- one shared model --------------------------------------------------------------------------

large_model = {"weights": rng.normal(size=(1000, 1000)), "bias": np.array([1.5])}  # 8 MB


def process_item(item_id: int, model: dict) -> float:
    """One weight and the bias."""
    return float(model["weights"][item_id % 100, 0] + model["bias"][0])


def timed(shared: list[str] | None) -> tuple[float, list[float]]:
    """Seconds and results of 100 items."""
    start = time.perf_counter()
    results = multi_process(
        process_item,
        items=range(100),
        workers=WORKERS,
        backend=backend,
        shared_kwargs=shared,
        progress=False,
        model=large_model,
    )
    return time.perf_counter() - start, results


# The first map starts the workers, which is not part of the comparison.
multi_process(abs, range(2 * WORKERS), workers=WORKERS, backend=backend, progress=False)

unshared, copied = timed(None)
first, results = timed(["model"])
again, _ = timed(["model"])
print(f"100 items, {WORKERS} workers, backend {backend!r}, a model of 8 MB\n")
print(f"{'the model is':24}{'ms':>8}")
print(f"{'copied to the workers':24}{unshared * 1e3:8.1f}")
print(f"{'shared, first call':24}{first * 1e3:8.1f}")
print(f"{'shared, again':24}{again * 1e3:8.1f}{unshared / again:8.0f} times faster")
print(f"\nsame results: {results == copied}\n")

# --- several shared objects --------------------------------------------------------------------

model = {"weights": rng.normal(size=(500, 500))}
lookup_table = rng.normal(size=(1000, 100))
config = {"threshold": 0.5}


def compare(item_id: int, model: dict, lookup: np.ndarray, config: dict) -> int:
    """How many entries of a row of the table agree with the model's beyond the threshold."""
    row = model["weights"][item_id % 500, :100]
    return int(np.count_nonzero(np.abs(row - lookup[item_id]) > config["threshold"]))


counts = multi_process(
    compare,
    range(1000),
    workers=WORKERS,
    backend=backend,
    shared_kwargs=["model", "lookup"],
    progress=False,
    model=model,
    lookup=lookup_table,
    config=config,  # small: copied with the work
)
print(f"Two shared objects: {np.mean(counts):.1f} of 100 entries differ, on average\n")

# --- from end to end ---------------------------------------------------------------------------


def classify_image(img_id: int, model: dict, config: dict) -> int:
    """Is the image positive? Every image id picks a row of weights."""
    features = model["weights"][img_id % 100]
    return int(features.mean() > config["threshold"])


labels = multi_process(
    classify_image,
    items=range(1000),
    workers=WORKERS,
    backend=backend,
    shared_kwargs=["model"],
    desc="Classifying images",
    model={"weights": rng.normal(size=(1000, 512)), "name": "ResNet50"},
    config={"threshold": 0.0, "batch_size": 32},
)
print(f"Classified {len(labels)} images")
print(f"Positive: {sum(labels)}")
