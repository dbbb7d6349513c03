"""Frames and series of polars: through Arrow, which uses their memory without a copy."""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharedtask.serialization.buffer_collector import Outgoing


def reduce_frame(frame: Any, out: Outgoing) -> Any:
    """Reduce a frame to its columns."""
    del out
    return (build_frame, (frame.get_columns(),)) if frame.width else NotImplemented


def build_frame(columns: list[Any]) -> Any:
    """A frame of these columns."""
    pl = import_module("polars")

    return pl.DataFrame(columns)


def reduce_series(series: Any, out: Outgoing) -> Any:
    """Reduce a series if pyarrow is installed and has its type; else as polars pickles it."""
    del out
    table = _table(series)
    return NotImplemented if table is None else (build_series, (table, _order(series)))


def build_series(table: Any, order: bool | None) -> Any:
    """The only column of a table, over its memory."""
    series = _read(table)
    return series if order is None else series.set_sorted(descending=order)


def _table(series: Any) -> Any:
    """An Arrow table that becomes an equal series; None if there is none.

    A table, since it keeps the chunks of a series without joining them.
    """
    pl = import_module("polars")

    if not _has_arrow():
        return None
    try:
        table = series.to_frame().to_arrow(compat_level=pl.CompatLevel.newest())
        field = table.schema.field(0)
        said = tuple((field.metadata or {}).items())
        again = _read(table).dtype if _may_fail(table) else _type_read(field.type, said)
    except Exception:  # noqa: BLE001  columns of Python objects, types that Arrow does not have
        return None
    return table if again == series.dtype else None


@functools.lru_cache(1024)
def _type_read(kind: Any, said: tuple[tuple[bytes, bytes], ...]) -> Any:
    """The type of the series from a column of this type with this metadata."""
    pa = import_module("pyarrow")

    schema = pa.schema([pa.field("", kind, metadata=dict(said))])
    return _read(schema.empty_table()).dtype


def _may_fail(table: Any) -> bool:
    """Whether the table has lists of one length, for which the round trip is tested."""
    return "fixed_size_list" in str(table.schema)


def _read(table: Any) -> Any:
    pl = import_module("polars")

    frame: Any = pl.from_arrow(table, rechunk=False)
    series: Any = frame.to_series()
    return series


def _order(series: Any) -> bool | None:
    """Whether it is known to be sorted, and descending: flags outside of the memory."""
    flags = series.flags
    if flags.get("SORTED_ASC"):
        return False
    return True if flags.get("SORTED_DESC") else None


@functools.cache
def _has_arrow() -> bool:
    return find_spec("pyarrow") is not None
