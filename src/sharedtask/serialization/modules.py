"""Which modules another process can import: the others travel with what is used of them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import cloudpickle

__all__ = ["MAIN", "is_importable", "is_made_by_hand", "travels_by_value"]

# Where Cython keeps the types of all that it compiles.
_MADE_IN_C = ("cython_runtime", "_cython_")

# The script; a process that multiprocessing has spawned knows it by the second name.
MAIN = ("__main__", "__mp_main__")


def is_made_by_hand(module: Any) -> bool:
    """Whether the program has made a module itself and entered it among those it has imported.

    What a package has made below its own name is there for all who import the package.
    """
    if type(module) is not ModuleType or getattr(module, "__spec__", None) is not None:
        return False
    name: Any = getattr(module, "__name__", None)
    if not isinstance(name, str) or name in MAIN or name.startswith(_MADE_IN_C):
        return False
    root = sys.modules.get(name.partition(".")[0])
    return root is None or getattr(root, "__spec__", None) is None


def travels_by_value(module: ModuleType) -> bool:
    """Whether the user has said so: ``cloudpickle.register_pickle_by_value(module)``."""
    registered = cloudpickle.list_registry_pickle_by_value()
    if not registered:
        return False
    name = module.__name__
    return any(name == each or name.startswith(f"{each}.") for each in registered)


def is_importable(module: ModuleType) -> bool:
    """Whether what is in a module goes by its name."""
    return not is_made_by_hand(module) and not travels_by_value(module)
