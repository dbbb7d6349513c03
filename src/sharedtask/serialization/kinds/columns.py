"""Columns of pandas that are Arrow arrays: without the copy that pandas makes to pickle."""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharedtask.serialization.buffer_collector import Outgoing

_NEW: Any = vars(copyreg)["__newobj__"]


def reduce_arrow_backed(values: Any, out: Outgoing) -> Any:
    """As pandas pickles it, with a single chunk itself; several are joined, with a copy."""
    del out
    state = dict(vars(values))
    chunks = state.get("_pa_array")
    if chunks is None or chunks.num_chunks != 1:
        return NotImplemented
    state["_pa_array"] = chunks.chunk(0)
    if "_cache" in state:
        state["_cache"] = {}
    return _NEW, (type(values),), state
