"""Digests of frames: of what they hold, not of what they have been asked."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sharedtask import Shared, parallel
from sharedtask.serialization.hashing import fingerprint


def frame(**attributes: Any) -> Any:
    """A frame with columns of many kinds, whose blocks are not joined yet."""
    made = pd.DataFrame(
        {
            "a": np.arange(5.0),
            "b": list("abcde"),
            "c": pd.Categorical(list("ababa")),
            "d": pd.date_range("2020", periods=5),
            "e": pd.array([1, 2, None, 4, 5], dtype="Int64"),
            "f": pd.to_timedelta(range(5), unit="s"),
            "g": pd.period_range("2020", periods=5, freq="D"),
            "h": [[1], {}, None, "x", 2],
        },
        index=list("vwxyz"),
    )
    made["i"] = np.arange(5.0)
    made.attrs.update(attributes)
    return made


@dataclasses.dataclass
class Holder:
    frame: Any


class Table(pd.DataFrame):  # type: ignore[misc]
    _metadata = ("unit",)

    @property
    def _constructor(self) -> Any:
        return Table


def table(unit: str = "m") -> Any:
    made = Table({"a": [1, 2]})
    made.unit = unit
    return made


VALUES: dict[str, Callable[[], Any]] = {
    "frame": frame,
    "in a dict": lambda: {"k": [frame()]},
    "in a dataclass": lambda: Holder(frame()),
    "column": lambda: frame()["a"],
    "dates": lambda: frame()["d"],
    "categories": lambda: frame()["c"],
    "index": lambda: frame().index,
    "two indices": lambda: frame().set_index(["b", "c"]),
    "index of dates": lambda: frame().set_index("d"),
    "dates as an index": lambda: frame().set_index("d").index,
    "polars": lambda: pl.DataFrame({"a": [1, 2], "s": ["x", None], "l": [[1], []]}),
    "arrow": lambda: pa.table({"a": [1, None], "s": ["x", "y"]}),
    "subclass": table,
}

LOOKS: dict[str, Callable[[Any], Any]] = {
    "printed": repr,
    "as html": lambda v: v._repr_html_(),
    "memory": lambda v: v.memory_usage(deep=True),
    "size": lambda v: v.estimated_size(),
    "info": lambda v: v.info(buf=io.StringIO()),
    "row": lambda v: v.iloc[1],
    "row by label": lambda v: v.loc[v.index[0]],
    "column": lambda v: v["a"],
    "place": lambda v: v.index.get_loc(v.index[1]),
    "place in itself": lambda v: (v.is_unique, v.get_loc(v[0]), v.hasnans, v.inferred_freq),
    "columns": lambda v: v.columns.get_loc("a"),
    "joined blocks": lambda v: (
        v._mgr.consolidate_inplace()
        if hasattr(v._mgr, "consolidate_inplace")
        else v._mgr._consolidate_inplace()
    ),
    "missing": lambda v: (v.isna(), v.null_count),
    "group": lambda v: v.groupby("c", observed=True)["a"].sum(),
    "sorted": lambda v: (v.sort_values("a"), v.sort("a")),
    "merged": lambda v: v.merge(v, left_index=True, right_index=True),
    "numbers": lambda v: v.to_numpy(),
    "years": lambda v: v.dt.year,
    "copy": lambda v: v.copy(),
    "described": lambda v: v.describe(),
}


def inside(value: Any) -> Any:
    """What is looked at."""
    if isinstance(value, Holder):
        return value.frame
    return value["k"][0] if isinstance(value, dict) else value


@pytest.mark.parametrize("what", VALUES)
def test_looking_at_a_frame_leaves_its_digest(what: str) -> None:
    """What was only printed, measured or searched holds what it held."""
    value = VALUES[what]()
    before = fingerprint(value)
    assert before == fingerprint(VALUES[what]())
    for name, look in LOOKS.items():
        with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
            look(inside(value))
        assert (name, before) == (name, fingerprint(value))


DIFFERENT: dict[str, Callable[[], Any]] = {
    "value": lambda: frame().assign(a=[0.0, 1, 2, 3, 5]),
    "dtype": lambda: frame().astype({"a": "float32"}),
    "nullable": lambda: frame().astype({"a": "Float64"}),
    "order of columns": lambda: frame()[list("bacdefghi")],
    "name of a column": lambda: frame().rename(columns={"a": "A"}),
    "label": lambda: frame().rename(index={"v": "V"}),
    "name of the index": lambda: frame().rename_axis("n"),
    "name of the columns": lambda: frame().rename_axis("n", axis=1),
    "categories": lambda: frame().assign(c=pd.Categorical(list("ababa"), list("bac"))),
    "object": lambda: frame().assign(h=[[2], {}, None, "x", 2]),
    "attributes": lambda: frame(unit="m"),
    "flags": lambda: frame().set_flags(allows_duplicate_labels=False),
    "class": lambda: Table(frame()),
    "rows": lambda: frame().iloc[:-1],
    "series": lambda: frame()["a"],
    "its name": lambda: frame()["a"].rename("b"),
    "its values": lambda: frame()["i"],
    "unit m": table,
    "unit s": lambda: table("s"),
}


def test_what_a_frame_holds_counts() -> None:
    """Every value, label, dtype, name, attribute, flag and the class make another digest."""
    digests = {name: fingerprint(make()) for name, make in DIFFERENT.items()}
    digests["frame"] = fingerprint(frame())
    assert len(digests) == len(set(digests.values()))


def test_journal_finds_a_frame_that_was_printed(tmp_path: Path) -> None:
    """Results of a frame are found again after it was looked at, shared, captured or given."""
    data, ran = frame(), tmp_path / "ran"

    @parallel(backend="serial", journal=tmp_path / "journal")
    def look(x: int, shared: Shared[Any], given: Any) -> int:
        with ran.open("a") as file:
            file.write("x")
        return len(shared) + len(given) + len(data) + x

    assert [11, 12] == look.map([0, 1], shared=data, given={"k": data})
    for name in ("printed", "row by label", "joined blocks", "memory"):
        LOOKS[name](data)
        assert [11, 12] == look.map([0, 1], shared=data, given={"k": data})
    assert "xx" == ran.read_text()
