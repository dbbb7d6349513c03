"""``explain(value)``: the parts of a value, and how each would be sent."""

from __future__ import annotations

from sharedtask.memory import capacity
from sharedtask.system.tracebacks import shortened

from .describe import description
from .measuring import Measure, explanation_of
from .report import Explanation
from .rows import Fold, Transfers


@shortened
def explain(value: object, name: str = "value") -> Explanation:
    """Explain the parts of a value, how each would be sent to the workers, and why.

    Nothing is put into shared memory, and the value is neither changed nor kept. It is pickled and
    unpickled once if that is quick; very large containers are sampled. It takes
    about two seconds at most.

    Args:
        value: Any value that you would share.
        name: Start of the paths.

    Returns:
        Rows, totals in bytes and times in seconds; ``print`` it, or call ``show()``.

    Examples:
        >>> import numpy as np
        >>> from sharedtask import explain
        >>> told = explain({"weights": np.zeros((1000, 512)), "classes": ["cat", "dog"]}, "model")
        >>> told.rows[0].path, told.rows[0].travels
        ("model['weights']", 'zero-copy')
        >>> told.totals.zero_copy
        4096000
    """
    measure, transfers = Measure(), Transfers()
    found = measure.measure(measure.walk(), value, name)
    rows = Fold.of(transfers, found.weight.nbytes).rows(found.node)
    title = f"{name}: {description(value)}, {capacity.human(found.weight.nbytes)}"
    return explanation_of(title, rows, [(found, transfers)])
