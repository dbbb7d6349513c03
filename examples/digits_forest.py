"""A fitted scikit-learn model is the shared value; images are classified one by one on all cores.

The same function runs three times: here in this process, in parallel with the model copied to the
workers with every chunk of work (what an unmarked parameter means), and in parallel with the model
shared.
"""

import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from sharedtask import Shared, parallel


def predict(image: np.ndarray, forest: RandomForestClassifier) -> int:
    """Which digit is on the image?"""
    return int(forest.predict(image[np.newaxis])[0])


@parallel(chunksize=4)
def predict_copied(image: np.ndarray, forest: RandomForestClassifier) -> int:
    return predict(image, forest)


@parallel(chunksize=4)
def predict_shared(image: np.ndarray, forest: Shared[RandomForestClassifier]) -> int:
    return predict(image, forest)


digits = load_digits()
known, new = digits.data[:1500], digits.data[1500:1600]
forest = RandomForestClassifier(200, random_state=0).fit(known, digits.target[:1500])

runs = {
    "serial, in this process": lambda: [predict(image, forest) for image in new],
    "parallel, model copied": lambda: predict_copied.map(new, forest=forest),
    "parallel, model shared": lambda: predict_shared.map(new, forest=forest),
    "the same again": lambda: predict_shared.map(new, forest=forest),
}

answers = {}
print(f"{len(new)} images, a forest of {len(forest.estimators_)} trees")
for name, run in runs.items():
    start = time.perf_counter()
    answers[name] = run()
    print(f"  {name:26}{time.perf_counter() - start:6.2f} s")

first, *others = answers.values()
right = np.mean(np.array(first) == digits.target[1500:1600])
agree = all(first == other for other in others)
print(f"all four agree: {agree}, {right:.0%} of the digits are right")
