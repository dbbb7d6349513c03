"""Two fitted scikit-learn models are shared: one of plain arrays, and a forest.

The same function runs in this process, in a pool of multiprocessing, with joblib, in parallel with
nothing marked, and with the model shared. Arrays are shared without a copy; each worker builds the
trees of a forest once, because scikit-learn copies their tables when it loads them.
"""

import copy

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neighbors import KNeighborsClassifier
from support.ways import Way, by_joblib, by_pool, by_task, forked_pool, side_by_side

from sharedtask import Shared, parallel


def predict(images: np.ndarray, model: object) -> list[int]:
    """The digit on each image."""
    return model.predict(images).tolist()


@parallel
def predict_copied(images: np.ndarray, model: object) -> list[int]:
    return predict(images, model)


@parallel
def predict_shared(images: np.ndarray, model: Shared[object]) -> list[int]:
    return predict(images, model)


def noisy(images: np.ndarray, count: int) -> np.ndarray:
    """Each is one of the images, with its own noise."""
    rng = np.random.default_rng(0)
    return images[np.arange(count) % len(images)] + rng.normal(0, 2, (count, images.shape[1]))


pools = [forked_pool(), forked_pool()]
digits = load_digits()
known, truth = digits.data[:1500], digits.target[:1500]
batches = np.split(digits.data[1500:1628], 16)
answers = []
for title, count, model in (
    ("nearest neighbours, 60,000 images", 60_000, KNeighborsClassifier(1, algorithm="brute")),
    ("a forest of 40 trees, 8,000 images", 8_000, ExtraTreesClassifier(40, random_state=0)),
):
    small = copy.deepcopy(model).fit(known[:500], truth[:500])
    fitted = model.fit(noisy(known, count), truth[np.arange(count) % len(truth)])
    print(f"{title}; 16 batches of 8 images, 4 workers")
    answers.append(
        side_by_side(
            small,
            lambda fitted=fitted: copy.deepcopy(fitted),
            [
                by_pool(pools.pop(), predict, batches, "model"),
                Way("serial", lambda model: [predict(batch, model) for batch in batches]),
                by_joblib(predict, batches, "model"),
                by_task("parallel, nothing marked", predict_copied, batches, "model"),
                by_task("parallel, Shared", predict_shared, batches, "model"),
            ],
        )
    )
    print()
same = all(found[0] == other for found in answers for other in found)
print(f"all ways give the same digits: {same}")
