# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Shared values: read-only, fresh, and private if they are writable."""

from __future__ import annotations

import dataclasses
import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sharedtask import (
    ChangedValueError,
    ChangedValueWarning,
    ClosedError,
    CopyOnWrite,
    Shared,
    WorkerDiedError,
    share,
)

from .strategies import DTYPES, array_of, assert_same
from .tasks import Model, add_up, by_pointer, identity, on_backend, square, whole_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


class Quantity(np.ndarray):
    """An array with a unit that pickles in its own way, as those of astropy and unyt do."""

    unit = ""

    def __reduce__(self) -> Any:
        reduced: Any = np.ndarray.__reduce__(self)
        build, args, state = reduced
        return build, args, (*state, self.unit)

    def __setstate__(self, state: Any) -> None:
        *own, self.unit = state
        super().__setstate__(tuple(own))


def _add_to(x: int, lengths: Shared[Any]) -> Any:
    if x == 1:
        lengths[0] += 1
    return type(lengths).__name__, lengths.unit, float(lengths.sum())


MASK = [True, False] * 5


def _write(_x: int, array: Shared[Any]) -> None:
    array[...] = array[...].copy()


def _add_unasked(x: int, array: Shared[Any], where: Any) -> float:
    """Native code does not ask numpy whether it may write."""
    if x == 1:
        by_pointer(array)[where] += 1
    return float(array.sum())


def _write_into(_x: int, value: Shared[Any]) -> None:
    value["inner"][0][0] = 7


def _force_write(_x: int, array: Shared[Any]) -> None:
    array.flags.writeable = True
    array[0] = 0


def _scribble(_x: int, array: CopyOnWrite[Any]) -> float:
    seen = float(array.sum())
    array[...] = -1
    return seen


def _scribble_deep(x: int, value: CopyOnWrite[Any]) -> Any:
    seen = (float(value["rows"].sum()), sorted(value), list(value["names"]))
    value["rows"] += x + 1
    value["names"].append(f"name {x}")
    value[f"key {x}"] = x
    return seen


class Slots:
    """A class without ``__dict__``."""

    __slots__ = ("rows", "word")

    def __init__(self, rows: npt.NDArray[Any], word: str) -> None:
        self.rows = rows
        self.word = word

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Slots) and self.word == other.word and (self.rows == other.rows).all()
        )

    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


def _frame() -> Any:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return pandas.DataFrame({"a": np.arange(5.0), "b": list("vwxyz"), "c": np.arange(5)})


def _sparse() -> Any:
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    return sparse.csr_matrix(np.eye(4))


def _classifier() -> Any:
    trees = pytest.importorskip("sklearn.tree", reason="scikit-learn is not installed")
    rows = np.arange(40.0).reshape(20, 2)
    return trees.DecisionTreeClassifier(random_state=0).fit(rows, np.arange(20) % 3)


def _cycle() -> Any:
    value: dict[str, Any] = {"rows": np.arange(4.0)}
    value["me"] = value
    return value


def _in_cycle(value: Any) -> Any:
    return value["me"] is value, value["rows"].tolist()


def _predictions(model: Any) -> Any:
    return model.predict(np.arange(20.0).reshape(10, 2)).tolist()


VALUES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "dict": (lambda: {"a": np.arange(3.0), "b": {"c": [1, 2]}}, identity),
    "list": (lambda: [np.arange(3), "x", None], identity),
    "tuple": (lambda: (np.ones(2), (1, (2,))), identity),
    "set": (lambda: {1, 2, 3}, identity),
    "str": (lambda: "text" * 1000, identity),
    "bytes": (lambda: bytes(1000), identity),
    "None": (lambda: None, identity),
    "int": (lambda: 12, identity),
    "function": (lambda: square, identity),
    "lambda": (lambda: lambda x: x + 1, lambda f: f(2)),
    "class": (lambda: Model, identity),
    "0-d array": (lambda: np.array(2.5), identity),
    "size-0 array": (lambda: np.zeros((0, 5)), identity),
    "size-0 F array": (lambda: np.zeros((3, 0), order="F"), identity),
    "empty dict": (dict, identity),
    "strided array": (lambda: np.arange(24).reshape(4, 6)[::2, ::-3], identity),
    "broadcast array": (lambda: np.broadcast_to(np.float64(2), (3, 4)), identity),
    "large array": (lambda: np.arange(300_000.0), identity),
    "dataclass": (lambda: Model(np.arange(3.0), 0.5, [np.ones(2)]), dataclasses.asdict),
    "slots": (lambda: Slots(np.arange(3), "w"), lambda s: (s.rows.tolist(), s.word)),
    "cycle": (_cycle, _in_cycle),
    "aliases": (lambda: [np.arange(3)] * 2, lambda v: (v[0] is v[1], v[0].tolist())),
    "DataFrame": (_frame, lambda f: (f.to_dict("list"), f.dtypes.astype(str).to_dict())),
    "empty DataFrame": (lambda: _frame().iloc[:0], lambda f: f.to_dict("list")),
    "Series": (lambda: _frame()["a"], lambda s: s.tolist()),
    "sparse matrix": (_sparse, lambda m: m.toarray()),
    "fitted model": (_classifier, _predictions),
}


def _look(_x: int, value: Shared[Any], look: Any) -> Any:
    return look(value)


class SharingContract:
    """Shared values: equal, read-only, private where asked for, never stale."""

    @pytest.mark.parametrize("name", VALUES)
    def test_shared_value_is_equal(self, backend: str, name: str) -> None:
        """For every kind of shared value, tasks see an equal value."""
        make, look = VALUES[name]
        value = make()
        results = on_backend(backend, _look).map(range(3), value=value, look=look)
        assert_same([look(value)] * 3, results)

    def test_identity_within_a_value_is_kept(self, backend: str) -> None:
        """Two references to one object stay references to one object."""
        rows = np.arange(4.0)
        task = on_backend(backend, _look)
        assert [True] == task.map([0], value={"a": rows, "b": rows}, look=_is_one)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_shared_array_is_read_only(self, backend: str, dtype: str) -> None:
        """A write into a shared array is numpy's own error with our note, for every dtype."""
        array = array_of(dtype)
        before = array.tolist()
        with pytest.raises(ValueError, match="read-only") as caught:
            on_backend(backend, _write).map(range(3), array=array)
        advice = " ".join(caught.value.__notes__)
        assert "'array'" in advice
        assert "CopyOnWrite" in advice
        assert before == array.tolist()
        assert array.flags.writeable

    @pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (2, 3), (300_000,)], ids=str)
    def test_every_shape_is_read_only(self, backend: str, shape: tuple[int, ...]) -> None:
        """Small, large, empty and 0-d arrays arrive with their shape and read-only."""
        results = on_backend(backend, _look).map([0], value=np.ones(shape), look=_shape_and_flag)
        assert [(shape, False)] == results

    def test_array_inside_a_value_is_read_only(self, backend: str) -> None:
        """Arrays inside dicts and lists are read-only as well, with the same note."""
        with pytest.raises(ValueError, match="read-only") as caught:
            on_backend(backend, _write_into).map(range(2), value={"inner": [np.ones(3)]})
        assert "CopyOnWrite" in " ".join(caught.value.__notes__)

    def test_read_only_cannot_be_switched_off(self, backend: str) -> None:
        """``flags.writeable = True`` on a shared array is a ValueError, never a crash."""
        array = np.ones(300_000)
        with pytest.raises(ValueError, match="WRITEABLE"):
            on_backend(backend, _force_write).map(range(2), array=array)
        assert 300_000.0 == array.sum()

    @pytest.mark.parametrize("where", [[0], slice(1, 3), MASK], ids=str)
    def test_write_that_asks_nobody_is_told(self, backend: str, where: Any) -> None:
        """Code that bypasses numpy's flag fails at its item, and changes no other item's data."""
        array, flat = np.ones((4, 5)), np.ones(20)
        for given in (flat[::2], *([] if where is MASK else [array, flat])):
            task = on_backend(backend, _add_unasked, return_exceptions=True, chunksize=4)
            total = float(given.sum())
            found = task.map(range(4), array=given, where=where)
            assert [total] * 3 == [found[0], *found[2:]]
            assert isinstance(found[1], ChangedValueError | WorkerDiedError)
            told = " ".join([str(found[1]), *getattr(found[1], "__notes__", [])])
            assert "array" in told
            assert "CopyOnWrite" in told
            assert [total] == task.map([0], array=given, where=where)
        assert (20.0, 20.0) == (array.sum(), flat.sum())

    def test_array_that_pickles_in_its_own_way_is_read_only(self, backend: str) -> None:
        """So is an array of a class with a ``__reduce__`` of its own."""
        lengths = np.ones(3).view(Quantity)
        lengths.unit = "m"
        task = on_backend(backend, _add_to, return_exceptions=True, chunksize=3)
        for shared in (lengths, lengths.copy()):
            shared.unit = "m"
            found = task.map(range(3), lengths=shared)
            assert [("Quantity", "m", 3.0)] * 2 == [found[0], found[2]]
            assert "read-only" in str(found[1])
        assert lengths.flags.writeable

    def test_write_into_a_handle_that_asks_nobody(self, backend: str) -> None:
        """So does a write into a value that was shared by a handle."""
        with share(np.ones(5)) as handle:
            task = on_backend(backend, _add_unasked, return_exceptions=True)
            found = task.map([1], array=handle, where=[0])
            assert isinstance(found[0], ChangedValueError | WorkerDiedError)
            assert [5.0] == task.map([0], array=handle, where=[0])

    def test_change_around_the_arrays_is_told_and_dropped(self, backend: str) -> None:
        """A task that changes a list of a shared value: one warning; later calls see nothing."""
        task, model = on_backend(backend, _note, chunksize=9), {"seen": [], "rows": np.ones(9)}
        for _ in range(2):
            with pytest.warns(ChangedValueWarning, match=r"model\['seen'\]\[0\]") as told:
                assert list(range(1, 6)) == task.map(range(5), model=model)
            assert 1 == len(told)
        assert [] == model["seen"]

    @pytest.mark.parametrize("size", [5, 300_000])
    def test_copy_on_write_is_private_to_the_item(self, backend: str, size: int) -> None:
        """Every item sees the original and may write; its writes are invisible to all others."""
        array = np.ones(size)
        task = on_backend(backend, _scribble, chunksize=5)
        assert [float(size)] * 10 == task.map(range(10), array=array)
        assert float(size) == array.sum()

    def test_copy_on_write_of_a_read_only_array(self, backend: str) -> None:
        """A copy-on-write parameter is writable even where the caller's own array is not."""
        array = np.ones(300_000)
        array.flags.writeable = False
        assert [300_000.0] * 4 == on_backend(backend, _scribble).map(range(4), array=array)
        assert [6.0] * 4 == on_backend(backend, _scribble).map(
            range(4), array=np.broadcast_to(1.0, (6,))
        )

    def test_copy_on_write_of_a_nested_value(self, backend: str) -> None:
        """Dicts and lists in a copy-on-write value are private to the item too."""
        value = {"rows": np.zeros(3), "names": ["a"]}
        results = on_backend(backend, _scribble_deep, chunksize=4).map(range(8), value=value)
        assert [(0.0, ["names", "rows"], ["a"])] * 8 == results
        assert_same({"rows": np.zeros(3), "names": ["a"]}, value)

    @pytest.mark.parametrize("size", [4, 400_000])
    def test_change_in_place_is_seen(self, backend: str, size: int) -> None:
        """A value that changed between two maps is shared again."""
        array = np.zeros(size)
        task = on_backend(backend, add_up)
        assert [0.0, 1.0] == task.map(range(2), model=array)
        array[-1] = 5
        assert [5.0, 6.0] == task.map(range(2), model=array)
        array[0] = 1
        assert [6.0, 7.0] == task.map(range(2), model=array)

    def test_change_in_a_nested_value_is_seen(self, backend: str) -> None:
        """New keys, changed arrays and changed numbers inside a dict are seen."""
        value: dict[str, Any] = {"a": np.zeros(3), "b": [1]}
        task = on_backend(backend, add_up)
        assert [1.0] == task.map([0], model=value)
        value["a"][1] = 2
        assert [3.0] == task.map([0], model=value)
        value["b"][0] = 5
        assert [7.0] == task.map([0], model=value)
        value["c"] = 10
        assert [17.0] == task.map([0], model=value)

    def test_handle_stands_for_its_value(self, backend: str) -> None:
        """A handle is passed instead of its value, any number of times."""
        with share({"a": np.ones(3)}) as handle:
            task = on_backend(backend, add_up)
            assert [3.0, 4.0] == task.map(range(2), model=handle)
            assert [3.0, 4.0] == task.map(range(2), model=handle)

    def test_handle_is_a_snapshot(self, backend: str) -> None:
        """What changes after ``share()`` is not seen through the handle."""
        array = np.ones(400_000)
        with share(array) as handle:
            array[:] = 0
            assert [400_000.0] == on_backend(backend, add_up).map([0], model=handle)

    def test_handle_is_read_only(self, backend: str) -> None:
        """A value that is shared by handle is read-only like any other."""
        with share(np.ones(4)) as handle, pytest.raises(ValueError, match="read-only"):
            on_backend(backend, _write).map(range(2), array=handle)

    def test_handle_for_copy_on_write(self, backend: str) -> None:
        """A handle may be given to a copy-on-write parameter."""
        with share(np.ones(4)) as handle:
            assert [4.0] * 6 == on_backend(backend, _scribble, chunksize=3).map(
                range(6), array=handle
            )
            assert 4.0 == handle.value.sum()

    def test_closed_handle_is_refused(self, backend: str) -> None:
        """A map over a closed handle is ClosedError before anything runs."""
        handle = share(np.ones(4))
        handle.close()
        with pytest.raises(ClosedError):
            on_backend(backend, add_up).map(range(2), model=handle)

    def test_result_may_be_the_shared_value(self, backend: str) -> None:
        """A shared array, or a view of it, may be returned and stays right afterwards."""
        array = np.arange(300_000.0)
        task = on_backend(backend, whole_of)
        results = task.map(range(2), value=array)
        view = on_backend(backend, _look).map([0], value=array, look=_first_rows)
        task.cache_clear()
        del task
        gc.collect()
        assert_same([array.copy()] * 2, results)
        assert_same([array[:3].copy()], [np.ascontiguousarray(v) for v in view])

    def test_several_shared_values(self, backend: str) -> None:
        """Two parameters may be shared, and may even be the same object."""
        rows = np.arange(5.0)
        task = on_backend(backend, _both)
        assert [20.0, 20.0] == task.map(range(2), left=rows, right=rows)
        assert [15.0, 15.0] == task.map(range(2), left=rows, right=np.ones(5))

    def test_shared_value_has_a_default(self, backend: str) -> None:
        """A shared parameter with a default may be left out."""
        assert [0, 0] == on_backend(backend, _with_default).map(range(2))
        assert [3, 3] == on_backend(backend, _with_default).map(range(2), table=[1, 2, 3])


def _note(x: int, model: Shared[Any]) -> int:
    model["seen"].append(x)
    return len(model["seen"])


def _is_one(value: Any) -> bool:
    return value["a"] is value["b"]


def _shape_and_flag(array: Any) -> Any:
    return array.shape, array.flags.writeable


def _first_rows(array: Any) -> Any:
    return array[:3]


def _both(_x: int, left: Shared[Any], right: Shared[Any]) -> float:
    return float(left.sum() + right.sum())


def _with_default(_x: int, table: Shared[Any] = ()) -> int:
    return len(table)
