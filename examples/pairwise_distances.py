"""How far is every handwritten digit from every other? Tiles of one large matrix.

The 1,797 images of scikit-learn's digits give 3.2 million distances. Each item is a tile: it names
its position in the matrix, and the task writes that block. ``python pairwise_distances.py out.png``
draws the matrix, dark where two images are alike.
"""

import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from sklearn.datasets import load_digits
from support.picture import save_matrix

from sharedtask import OverlapError, Partition, Shared, parallel, partition, zeros

CUTS = 6


@dataclass(frozen=True, slots=True)
class Tile:
    """A block of the matrix of distances: from these images to those."""

    rows: slice
    columns: slice

    @property
    def place(self) -> tuple[slice, slice]:
        """Its index in the matrix."""
        return self.rows, self.columns


@parallel(workers=4)
def measure(
    tile: Tile, images: Shared[np.ndarray], out: Annotated[np.ndarray, Partition(by="place")]
) -> None:
    """Fill one tile with Euclidean distances."""
    these, those = images[tile.rows], images[tile.columns]
    squares = (these**2).sum(axis=1)[:, np.newaxis] + (those**2).sum(axis=1)
    np.sqrt(np.maximum(squares - 2 * these @ those.T, 0), out=out)


digits = load_digits()
order = np.argsort(digits.target, kind="stable")
images, labels = digits.data[order], digits.target[order]
count = len(images)
cuts = partition(count, CUTS)
tiles = [Tile(rows, columns) for rows in cuts for columns in cuts]

distances = zeros((count, count))
start = time.perf_counter()
measure.map(tiles, images=images, out=distances)
print(f"{count:,} images, {len(tiles)} tiles: {distances.nbytes / 1e6:.1f} MB of distances")
print(f"  first call {time.perf_counter() - start:7.3f} s")
start = time.perf_counter()
measure.map(tiles, images=images, out=distances)
print(f"  again      {time.perf_counter() - start:7.3f} s")

expected = np.linalg.norm(images[:, np.newaxis] - images[:50], axis=2)
print(f"same as numpy, first 50 columns: {np.allclose(expected, distances[:, :50], atol=1e-5)}")

np.fill_diagonal(distances, np.inf)
nearest = distances.argmin(axis=1)
print(f"nearest neighbour shows the same digit: {np.mean(labels[nearest] == labels):.1%}")

try:
    measure.map([*tiles, Tile(slice(0, 10), slice(0, 10))], images=images, out=distances)
except OverlapError as error:
    print(textwrap.fill(f"one tile too many: {error}", 98))

if len(sys.argv) > 1:
    np.fill_diagonal(distances, 0)
    save_matrix(Path(sys.argv[1]), distances)
