"""Code that writes into its argument works in parallel, and the caller's array does not change.

Each fold of a cross-validation standardises the data in place, as numerical code often does. With
``CopyOnWrite`` every item sees the original and may write anywhere; only the pages that it writes
are copied, in its worker. With ``Shared`` the same write raises an error that says what to do.
"""

import numpy as np
from sklearn.datasets import load_digits

from sharedtask import CopyOnWrite, Shared, parallel

FOLDS = 8


def error_rate(fold: int, data: np.ndarray, target: np.ndarray) -> float:
    """Share of wrong digits when one fold is predicted from all the others."""
    held_out = np.arange(len(data)) % FOLDS == fold
    data -= data[~held_out].mean(axis=0)  # in place!
    data /= data[~held_out].std(axis=0) + 1e-9
    wanted = np.eye(10)[target]
    weights = np.linalg.lstsq(data[~held_out], wanted[~held_out], rcond=None)[0]
    return float(np.mean((data[held_out] @ weights).argmax(axis=1) != target[held_out]))


@parallel
def private(fold: int, data: CopyOnWrite[np.ndarray], target: Shared[np.ndarray]) -> float:
    return error_rate(fold, data, target)


@parallel
def read_only(fold: int, data: Shared[np.ndarray], target: Shared[np.ndarray]) -> float:
    return error_rate(fold, data, target)


digits = load_digits()
data, target = digits.data, digits.target
before = data.copy()

rates = private.map(range(FOLDS), data=data, target=target)
for fold, rate in enumerate(rates):
    print(f"fold {fold}  {rate:5.1%}  {'#' * round(rate * 200)}")
print(f"the caller's array is untouched: {np.array_equal(before, data)}")

serial = [error_rate(fold, data.copy(), target) for fold in range(FOLDS)]
print(f"same as with a copy for each fold: {np.allclose(serial, rates)}")

try:
    read_only.map(range(FOLDS), data=data, target=target)
except ValueError as error:
    print(f"\nwith Shared: {type(error).__name__}: {error}")
    print(*error.__notes__, sep="\n")
