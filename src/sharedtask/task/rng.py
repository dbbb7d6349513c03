"""The annotation of a parameter that gets random numbers, and its default value."""

from typing import Annotated, Any, Final

import numpy as np

from sharedtask.annotations import Made, as_annotation

__all__ = ["Rng", "per_item"]

# A module of its own: naming the class loads numpy.random, which takes longer than this package.
Rng = Annotated[np.random.Generator, Made.RNG]
"""A separate generator for each item, made from the option ``seed`` and the item's index."""
as_annotation(Rng)


class _PerItem:
    """The placeholder that a plain function gets as the default of such a parameter."""

    def __repr__(self) -> str:
        return "per_item"

    def __call__(self, *_given: object) -> Any:
        msg = "per_item is a value and is not called: write rng: Rng = per_item."
        raise TypeError(msg)


per_item: Final[Any] = _PerItem()
"""A default for parameters annotated ``Rng``, so that type checkers accept calls without them."""
