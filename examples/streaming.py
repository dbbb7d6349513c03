"""Draw from an endless stream of work until the answer is good enough, then stop.

A bootstrap of the median: each item is a seed, the seeds never end, and we leave the loop when the
estimate of the standard error is stable. ``imap`` reads only a few seeds ahead of the results, and
leaving the loop stops the workers.
"""

import itertools

import numpy as np
from sklearn.datasets import load_digits

from sharedtask import Shared, parallel


@parallel
def median_of_resample(seed: int, ink: Shared[np.ndarray]) -> float:
    """The median of as many values, drawn with replacement."""
    rng = np.random.default_rng(seed)
    return float(np.median(rng.choice(ink, size=len(ink))))


seeds = itertools.count()  # no end
ink = load_digits().data.sum(axis=1)  # how much ink each digit uses
medians: list[float] = []
settled = 0.0

print("resamples  median  standard error")
for median in median_of_resample.imap(seeds, ink=ink):
    medians.append(median)
    if len(medians) % 500:
        continue
    error = float(np.std(medians))
    print(f"{len(medians):9}  {np.mean(medians):6.1f}  {error:.3f}  {'*' * round(error * 40)}")
    if abs(error - settled) < 0.01:
        break
    settled = error

print(f"settled after {len(medians)} resamples")
print(f"seeds taken from the endless stream: {next(seeds)}")
