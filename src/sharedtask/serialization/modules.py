"""The modules that another process can import; of the others the used parts are sent."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import cloudpickle

__all__ = ["MAIN", "is_importable", "is_made_by_hand", "travels_by_value"]

# Where Cython keeps the types of all compiled code.
_MADE_IN_C = ("cython_runtime", "_cython_")

# The script; a process that multiprocessing has spawned has it under the second name.
MAIN = ("__main__", "__mp_main__")


def is_made_by_hand(module: Any) -> bool:
    """Whether the program has created a module itself and entered it into ``sys.modules``.

    Modules that a package creates below its own name exist for all that import the package.
    """
    if type(module) is not ModuleType or getattr(module, "__spec__", None) is not None:
        return False
    name: Any = getattr(module, "__name__", None)
    if not isinstance(name, str) or name in MAIN or name.startswith(_MADE_IN_C):
        return False
    root = sys.modules.get(name.partition(".")[0])
    return root is None or getattr(root, "__spec__", None) is None


def travels_by_value(module: ModuleType) -> bool:
    """Whether the user has requested it: ``cloudpickle.register_pickle_by_value(module)``."""
    registered = cloudpickle.list_registry_pickle_by_value()
    if not registered:
        return False
    name = module.__name__
    return any(name == each or name.startswith(f"{each}.") for each in registered)


def is_importable(module: ModuleType) -> bool:
    """Whether objects of a module are sent by name."""
    return not is_made_by_hand(module) and not travels_by_value(module)
