"""What the short form of the tests does without: ``make test`` without CI=true takes minutes."""

import os
from collections.abc import Iterable
from typing import Any

import pytest


def examples(count: int) -> int:
    """So many examples of a property with CI=true, and a third of them otherwise."""
    return count if os.environ.get("CI") else max(count // 3, 10)


def with_long(values: Iterable[Any], *long: Any) -> list[Any]:
    """Parameters of a test, of which some count as long: they tell little that the others do not.

    Where the backend is such a parameter, the test runs on processes in any case.
    """
    values = list(values)
    assert not [value for value in long if value not in values]
    return [_long(value) if value in long else value for value in values]


def _long(value: Any) -> Any:
    several = value if isinstance(value, tuple) else (value,)
    return pytest.param(*several, marks=pytest.mark.long)
