"""Records as tables of pandas, which is imported only here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .records import Recorded

__all__ = ["chunks_of"]

_COLUMNS = (
    "number",
    "call",
    "task",
    "worker",
    "first",
    "count",
    "sent",
    "start",
    "stop",
    "received",
    "bytes_out",
    "bytes_back",
    "outcome",
)


def chunks_of(recorded: Recorded) -> Any:
    """A row for each chunk; seconds of each phase are in columns of their own."""
    import pandas as pd

    tasks = {call.number: call.task for call in recorded.calls}
    rows: list[dict[str, Any]] = []
    for chunk in recorded.chunks:
        row = {name: getattr(chunk, name) for name in _COLUMNS if name != "task"}
        rows.append({**row, "task": tasks.get(chunk.call, ""), **chunk.phases()})
    others = sorted({name for row in rows for name in row} - set(_COLUMNS))
    return pd.DataFrame(rows, columns=[*_COLUMNS, *others])
