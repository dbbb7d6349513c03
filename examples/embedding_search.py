"""Find the nearest neighbours of many queries in a large matrix that all workers share.

200,000 embeddings of 128 numbers (102 MB) are made from scikit-learn's handwritten digits: each is
a noisy copy of one of 1,500 images, described by its pixels and its horizontal edges. The queries
are images that the matrix has never seen, so their neighbours should show the same digit.
"""

import time

import numpy as np
from sklearn.datasets import load_digits
from support.measure import measure

from sharedtask import Shared, parallel

TOP = 5


def embed(images: np.ndarray) -> np.ndarray:
    """Images ``(n, 8, 8)`` to unit vectors ``(n, 128)``."""
    edges = images - np.roll(images, 1, axis=2)
    vectors = np.concatenate([images, edges], axis=2, dtype=np.float32).reshape(len(images), -1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@parallel
def search(query: np.ndarray, matrix: Shared[np.ndarray]) -> np.ndarray:
    """Rows of the matrix with the highest cosine similarity, best first."""
    scores = matrix @ query
    best = np.argpartition(scores, -TOP)[-TOP:]
    return best[np.argsort(-scores[best])]


rng = np.random.default_rng(0)
digits = load_digits()
source = rng.integers(0, 1500, 200_000)
noise = rng.normal(0, 2, (200_000, 8, 8)).astype(np.float32)
matrix = embed(digits.images[source] + noise)
queries = embed(digits.images[1500:1700])
labels, truth = digits.target[source], digits.target[1500:1700]

print(f"{len(queries)} queries in {len(matrix):,} embeddings ({matrix.nbytes / 1e6:.0f} MB)\n")

start = time.perf_counter()
serial = [search(query, matrix=matrix) for query in queries]
print(f"serial          {time.perf_counter() - start:5.2f} s")
for name in ("first call", "again"):
    cost = measure(lambda: search.map(queries, matrix=matrix))
    print(f"{name:16}{cost.seconds:5.2f} s, {cost.memory / 1e6:4.0f} MB more in all processes")

print("\nquery   its five neighbours")
for index in range(0, 50, 10):
    print(f"  {truth[index]}       {' '.join(map(str, labels[cost.result[index]]))}")

same = np.mean(labels[np.array(cost.result)] == truth[:, np.newaxis])
print(f"\nneighbours that show the digit of their query: {same:.1%}")
print(f"same rows as serial: {np.array_equal(serial, cost.result)}")
print(search.cache_info())
