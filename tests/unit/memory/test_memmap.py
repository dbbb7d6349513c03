import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from sharedtask import CopyOnWrite, Shared, SharedTaskError, parallel
from sharedtask.memory import proc_maps
from sharedtask.testing import assert_same

pytestmark = pytest.mark.timeout(60)


def seen(_x: int, table: Shared[Any]) -> tuple[float, bool, Any, str]:
    return float(table[..., -1].sum()), table.flags.writeable, table.shape, str(table.dtype)


def mapped_file(_x: int, table: Shared[Any]) -> str:
    """The file in which the array stands, in the worker."""
    at = table.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if start <= at < end:
            return line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) > 5 else ""
    return "nowhere"


def scribble(_x: int, table: CopyOnWrite[Any]) -> float:
    found = float(table.sum())
    table[...] = -1
    return found


def write(_x: int, table: Shared[Any]) -> None:
    table[0] = 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 100,000 numbers."""
    where = tmp_path / "numbers.dat"
    np.arange(100_000.0).tofile(where)
    return where


MODES = ["r", "r+", "c"]


@pytest.mark.parametrize("mode", MODES)
def test_memmap_equals_a_loop(backend: Any, path: Path, mode: Any) -> None:
    """A memory-mapped array is seen with its values, shape and dtype, read-only."""
    table = np.memmap(path, np.float64, mode)
    task = parallel(seen).with_options(backend=backend)
    assert [(99_999.0, False, (100_000,), "float64")] * 3 == task.map(range(3), table=table)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_memmap_is_shared_by_its_file(path: Path, mode: Any) -> None:
    """The worker maps the file itself: nothing is copied into a segment."""
    table = np.memmap(path, np.float64, mode)
    task = parallel(mapped_file).with_options(backend="process")
    assert [str(path)] * 2 == task.map(range(2), table=table)
    assert 10_000 > task.cache_info().nbytes


def test_memmap_inside_a_value(path: Path) -> None:
    """A memory-mapped array inside a dict is shared by its file as well."""

    def look(_x: int, value: Shared[Any]) -> tuple[float, bool]:
        return float(value["rows"].sum()), value["rows"].flags.writeable

    table = np.memmap(path, np.float64, "r")
    task = parallel(look).with_options(backend="process")
    assert [(float(table.sum()), False)] == task.map([0], value={"rows": table})
    assert 10_000 > task.cache_info().nbytes


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[10:],
        lambda t: t[:7],
        lambda t: t[::2],
        lambda t: t[::-1],
        lambda t: t.reshape(1000, 100),
        lambda t: t.reshape(1000, 100).T,
        lambda t: t.reshape(1000, 100)[5:20, 3:4],
        lambda t: t.reshape(10, 100, 100)[3],
        lambda t: t.view(np.int32),
        lambda t: t[5000:].view(np.complex128),
    ],
    ids=["tail", "head", "steps", "reversed", "2-D", "F", "block", "slab", "int32", "complex"],
)  # fmt: skip
def test_view_of_a_memmap(backend: Any, path: Path, view: Any) -> None:
    """A view of a memory-mapped array is that view, wherever it begins and however it steps."""

    def whole(_x: int, table: Shared[Any]) -> Any:
        return np.array(table, order="C")

    table = view(np.memmap(path, np.float64, "r"))
    task = parallel(whole).with_options(backend=backend)
    (result,) = task.map([0], table=table)
    assert_same(np.array(table, order="C"), result)


@pytest.mark.parametrize("offset", [0, 8, 4096, 4104])
def test_memmap_with_an_offset(path: Path, offset: int) -> None:
    """A mapping that begins inside the file shows the same numbers."""
    table = np.memmap(path, np.float64, "r", offset=offset, shape=(50,))
    task = parallel(seen).with_options(backend="process")
    assert [(offset / 8 + 49, False, (50,), "float64")] == task.map([0], table=table)


def test_private_changes_are_seen(path: Path) -> None:
    """With ``mode="c"`` what was changed here, and not in the file, is what tasks see."""
    table = np.memmap(path, np.float64, "c")
    task = parallel(seen).with_options(backend="process")
    table[-1] = 5
    assert [5.0] == [found[0] for found in task.map([0], table=table)]
    table[-1] = 6
    assert [6.0] == [found[0] for found in task.map([0], table=table)]
    assert 99_999.0 == np.fromfile(path)[-1]


def test_change_of_the_file_is_seen(path: Path) -> None:
    """A write through the mapping or into the file is seen by the next map."""
    table = np.memmap(path, np.float64, "r+")
    task = parallel(seen).with_options(backend="process")
    assert [99_999.0] == [found[0] for found in task.map([0], table=table)]
    table[-1] = 7
    assert [7.0] == [found[0] for found in task.map([0], table=table)]
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(np.float64(8).tobytes())
    assert [8.0] == [found[0] for found in task.map([0], table=table)]


def test_copy_on_write_leaves_the_file_alone(backend: Any, path: Path) -> None:
    """A copy-on-write parameter over a file is private to its item; the file stays as it was."""
    table = np.memmap(path, np.float64, "r+")
    total = float(table.sum())
    task = parallel(scribble).with_options(backend=backend)
    assert [total] * 4 == task.map(range(4), table=table)
    assert total == np.fromfile(path).sum()


def test_write_is_refused(backend: Any, path: Path) -> None:
    """A shared memory-mapped array is read-only, opened for writing or not."""
    table = np.memmap(path, np.float64, "r+")
    with pytest.raises(ValueError, match="read-only") as caught:
        parallel(write).with_options(backend=backend).map([0], table=table)
    assert "CopyOnWrite" in " ".join(caught.value.__notes__)
    assert 0.0 == np.fromfile(path)[0]


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_file_that_is_gone(path: Path, how: str) -> None:
    """When the path no longer leads to the mapped file, tasks still see what is mapped here."""
    table = np.memmap(path, np.float64, "r")
    path.unlink()
    if how == "replaced":
        np.zeros(100_000).tofile(path)
    task = parallel(seen).with_options(backend="process")
    assert [99_999.0] == [found[0] for found in task.map([0], table=table)]


def test_file_that_is_replaced_between_two_maps(path: Path) -> None:
    """A file that was replaced is an error or the mapped values, never others."""
    table = np.memmap(path, np.float64, "r")
    task = parallel(seen).with_options(backend="process")
    assert [99_999.0] == [found[0] for found in task.map([0], table=table)]
    path.unlink()
    np.zeros(100_000).tofile(path)
    found: Any = task.with_options(return_exceptions=True).map([0], table=table)[0]
    if isinstance(found, SharedTaskError):
        assert "replaced" in str(found)
    else:
        assert 99_999.0 == found[0]


@pytest.mark.parametrize("dtype", [">i4", "float32", "datetime64[s]", "S3", "i4,f8", "bool"])
def test_memmap_of_every_kind(tmp_path: Path, dtype: str) -> None:
    """The dtype of the mapping is kept."""

    def whole(_x: int, table: Shared[Any]) -> Any:
        return table.copy()

    where = tmp_path / "kind.dat"
    where.write_bytes(bytes(k % 2 for k in range(1200)))
    table = np.memmap(where, dtype, "r")
    (result,) = parallel(whole).with_options(backend="process").map([0], table=table)
    assert np.asarray(table).tobytes() == np.asarray(result).tobytes()
    assert table.dtype == result.dtype


def test_mappings_are_listed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file is mapped is looked for at the first use, and again if it has moved."""
    looked = mock.Mock(wraps=proc_maps.region_at)
    monkeypatch.setattr(proc_maps, "region_at", looked)
    table: Any = np.memmap(path, np.float64, "r")
    found = [proc_maps.source_of(table[k:]) for k in range(3)]
    assert [0, 8, 16] == [view.offset for view in found if view is not None]
    assert 1 == looked.call_count
    proc_maps._seen.put(table._mmap, (0, table.nbytes, None))  # as if it had been elsewhere
    assert proc_maps.source_of(table) == found[0]


def test_npy_file(tmp_path: Path) -> None:
    """What ``np.load(..., mmap_mode="r")`` gives is shared by its file, F order included."""
    where = tmp_path / "rows.npy"
    np.save(where, np.asfortranarray(np.arange(20_000.0).reshape(200, 100)))
    table = np.load(where, mmap_mode="r")
    task = parallel(mapped_file).with_options(backend="process")
    assert [str(where)] == task.map([0], table=table)
    found = parallel(seen).with_options(backend="process").map([0], table=table)
    assert [(float(table[..., -1].sum()), False, (200, 100), "float64")] == found


def test_relative_path_and_another_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was mapped by a relative path is found after the folder was changed."""
    monkeypatch.chdir(path.parent)
    table = np.memmap(path.name, np.float64, "r")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    task = parallel(seen).with_options(backend="process")
    assert [99_999.0] == [found[0] for found in task.map([0], table=table)]


def test_empty_and_whole_file(tmp_path: Path) -> None:
    """An odd number of bytes, and one element, are mapped exactly."""
    where = tmp_path / "odd.dat"
    where.write_bytes(bytes(range(7)))
    table = np.memmap(where, np.uint8, "r")
    task = parallel(seen).with_options(backend="process")
    assert [(6.0, False, (7,), "uint8")] == task.map([0], table=table)
