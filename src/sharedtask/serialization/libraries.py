"""Values of well-known libraries, recognised by class names, without imports."""

from __future__ import annotations

from typing import Any

# Packages whose properties may be read, and whose values count as a whole.
DATA = frozenset({"numpy", "pandas", "polars", "pyarrow"})


def package(value: Any) -> str:
    """The package of a value's class."""
    return str(getattr(type(value), "__module__", "")).partition(".")[0]


def is_data(value: Any) -> bool:
    """Whether a value is data of a known library, which counts as a whole."""
    return is_data_class(type(value))


def is_data_class(cls: type) -> bool:
    """Whether the values of a class are data of a known library."""
    return str(getattr(cls, "__module__", "")).partition(".")[0] in DATA or _has_storage(cls)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch."""
    return _has_storage(type(value))


def _has_storage(cls: type) -> bool:
    return hasattr(cls, "untyped_storage")


def is_frame(value: Any) -> bool:
    """Whether a value is a DataFrame of pandas, or of a class derived from it."""
    return any(
        cls.__name__ == "DataFrame" and cls.__module__.partition(".")[0] == "pandas"
        for cls in type(value).__mro__
    )
