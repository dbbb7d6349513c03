"""Digits in a notebook: a shared reference, a second call that sends nothing, and what travels.

Each part that begins with ``# %%`` is a cell. The build of the documentation runs the cells and
offers the notebook with its output; editors that support such cells open this file as a notebook.
"""

# %% [markdown]
# # Which digit is it?
#
# For each of 300 handwritten digits, find the most similar one among 1,497 others. Every call
# needs all of the others, so they are shared.

# %%
import numpy as np
from sklearn.datasets import load_digits

from sharedtask import Shared, parallel

digits = load_digits()
known = {"pixels": digits.data[300:].astype(np.float32), "labels": digits.target[300:]}
known["pixels"].shape

# %% [markdown]
# A cell needs no module to move the function into, and no pool.


# %%
@parallel
def guess(pixels: np.ndarray, known: Shared[dict]) -> int:
    """The digit that the most similar known image shows."""
    distances = ((known["pixels"] - pixels) ** 2).sum(axis=1)
    return int(known["labels"][distances.argmin()])


guesses = guess.map(digits.data[:300], known=known)
right = np.mean(np.array(guesses) == digits.target[:300])
print(f"{right:.0%} of the digits are right")

# %% [markdown]
# The second call finds the value in shared memory: a hit.

# %%
guess.map(digits.data[:300], known=known) == guesses

# %%
guess.cache_info()

# %% [markdown]
# What travels, and how:

# %%
guess.explain(known=known)
