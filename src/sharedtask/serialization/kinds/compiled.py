"""Functions that numba compiles: each process compiles for itself.

numba identifies a function that it has unpickled before by a number, which ``recompile()`` does not
change: a warm worker would keep using the old code, and the old values of globals.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

_MARK = "@"


def reduce_mixin(obj: Any, out: Any) -> Any:
    """The reduction by numba of one of its objects, pickled by our pickler."""
    del out
    states = dict(obj._reduce_states())
    version = ""
    if "uuid" in states and "py_func" in states:
        states["uuid"] = states["uuid"].partition(_MARK)[0]
        content = sys.modules["numba.core.serialize"].dumps(states["py_func"])
        version = hashlib.sha256(content, usedforsecurity=False).hexdigest()[:16]
    return build_mixin, (obj._reduce_class(), version, states)


def build_mixin(cls: Any, version: str, states: dict[str, Any]) -> Any:
    """The object: this process's own, or the one of this version."""
    if version and states["uuid"] not in cls._memo:
        states = {**states, "uuid": states["uuid"] + _MARK + version}
    return cls._rebuild(**states)
