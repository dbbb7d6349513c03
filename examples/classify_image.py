"""The smallest whole program: a model shared with every call, a small config copied, a bar.

Only ``model`` is marked. It goes into shared memory once, for any number of images and calls of
``map``; ``config`` is small and travels with the work.
"""

import numpy as np

from sharedtask import Shared, parallel


@parallel(desc="Classifying images")
def classify_image(image_id: int, model: Shared[dict], config: dict) -> int:
    """Is the image positive? Every image id picks a row of weights."""
    features = model["weights"][image_id % 100]
    return int(features.mean() > config["threshold"])


rng = np.random.default_rng(50)
model = {"name": "ResNet50", "weights": rng.normal(size=(1000, 512))}  # 4 MB
config = {"threshold": 0.0, "batch_size": 32}

labels = classify_image.map(range(1_000), model=model, config=config)
print(f"Classified {len(labels)} images with {model['name']}")
print(f"Positive: {sum(labels)}")

stricter = classify_image.map(range(1_000), model=model, config={**config, "threshold": 0.05})
print(f"Positive above 0.05: {sum(stricter)}")
print(f"The model was stored once and used again: {classify_image.cache_info()}")
