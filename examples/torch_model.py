"""A PyTorch model is the shared value: batches go through it in four worker processes.

The same function runs in this process, in a pool of multiprocessing (torch puts the tensors into
shared memory there), with joblib, in parallel with nothing marked, and with the model shared.
"""

import importlib.util
import sys
from itertools import pairwise

import numpy as np

if importlib.util.find_spec("torch") is None:
    print("This example needs PyTorch. Its build for CPUs is small:")
    print("    pip install torch --index-url https://download.pytorch.org/whl/cpu")
    sys.exit()

import torch
from support.ways import Way, by_joblib, by_pool, by_task, forked_pool, side_by_side

from sharedtask import Shared, parallel


def network(width: int) -> torch.nn.Module:
    """Five layers: 64 pixels in, ten digits out."""
    torch.manual_seed(0)
    sizes = [64, width, width, width, width, 10]
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    return torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.ReLU())])


def classify(batch: np.ndarray, model: torch.nn.Module) -> np.ndarray:
    """The digit on each image."""
    torch.set_num_threads(1)  # four processes share the cores; the same everywhere, so same bits
    with torch.inference_mode():
        return model(torch.from_numpy(batch)).numpy()


@parallel
def classify_copied(batch: np.ndarray, model: torch.nn.Module) -> np.ndarray:
    return classify(batch, model)


@parallel
def classify_shared(batch: np.ndarray, model: Shared[torch.nn.Module]) -> np.ndarray:
    return classify(batch, model)


pool = forked_pool()
batches = list(np.random.default_rng(0).random((16, 32, 64), np.float32))
weights = sum(weight.nbytes for weight in network(2048).parameters())
print(f"{len(batches)} batches, a model of {weights / 1e6:.0f} MB, 4 workers")

answers = side_by_side(
    network(64),
    lambda: network(2048),
    [
        by_pool(pool, classify, batches, "model"),
        Way("serial", lambda model: [classify(batch, model) for batch in batches]),
        by_joblib(classify, batches, "model"),
        by_task("parallel, nothing marked", classify_copied, batches, "model"),
        by_task("parallel, Shared", classify_shared, batches, "model"),
    ],
)
first, *others = answers
print(f"all results are the same, bit for bit: {all(np.array_equal(first, o) for o in others)}")
