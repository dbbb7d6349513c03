"""Values of well-known libraries, told by the names of their classes: none of them is imported."""

from __future__ import annotations

from typing import Any

# Packages whose own properties may be asked, and whose values are one thing and not their parts.
DATA = frozenset({"numpy", "pandas", "polars", "pyarrow"})


def package(value: Any) -> str:
    """The package that a value's class comes from."""
    return str(getattr(type(value), "__module__", "")).partition(".")[0]


def is_data(value: Any) -> bool:
    """Whether a value is data of a known library: one thing, whatever it is made of."""
    return package(value) in DATA or is_tensor(value)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch."""
    return hasattr(type(value), "untyped_storage")


def is_frame(value: Any) -> bool:
    """Whether a value is a DataFrame of pandas."""
    return package(value) == "pandas" and type(value).__name__ == "DataFrame"
