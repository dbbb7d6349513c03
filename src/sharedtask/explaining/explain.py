"""``explain(value)``: what is inside a value, and how each part would travel."""

from __future__ import annotations

from sharedtask.memory import capacity

from .describe import look
from .measuring import Measure, told
from .report import Explanation
from .rows import Fold, Ways


def explain(value: object, name: str = "value") -> Explanation:
    """Tell what is inside a value, how each part would travel to the workers, and why.

    Nothing is put into shared memory, and the value is neither changed nor kept. It is pickled and
    unpickled once where that is quick; of very large containers a sample is looked at. It takes
    about two seconds at most.

    Args:
        value: What you would share: anything.
        name: What the paths begin with.

    Returns:
        Rows, totals in bytes and times in seconds; ``print`` it, or call ``show()``.

    Example:
        >>> import numpy as np
        >>> from sharedtask import explain
        >>> told = explain({"weights": np.zeros((1000, 512)), "classes": ["cat", "dog"]}, "model")
        >>> told.rows[0].path, told.rows[0].travels
        ("model['weights']", 'zero-copy')
        >>> told.totals.zero_copy
        4096000
    """
    measure, ways = Measure(), Ways()
    found = measure.measure(measure.walk(), value, name)
    rows = Fold.of(ways, found.weight.nbytes).rows(found.node)
    title = f"{name}: {look(value)}, {capacity.human(found.weight.nbytes)}"
    return told(title, rows, [(found, ways)])
