import copy
import copyreg
import gc
import itertools
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from budget import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import ARROW_ARRAYS, KINDS, N, arrow, of_arrow, table, torch

from sharedtask import (
    CopyOnWrite,
    DefinitionError,
    Shared,
    WorkerDiedError,
    empty,
    parallel,
    register,
    share,
    shutdown,
)
from sharedtask.serialization import codec, kinds
from sharedtask.store.cache import ShareCache
from sharedtask.store.publication import Publication
from sharedtask.testing import arrays, assert_same
from sharedtask.testing.strategies import bits_of, in_segment, views

pytestmark = pytest.mark.timeout(110)

some = settings(
    deadline=None, max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow]
)
few = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))

PLACED = [name for name, kind in KINDS.items() if kind.places is not None]
CHANGED = [name for name, kind in KINDS.items() if kind.change is not None]
# Beside it even a small value is too much for a message.
FILLER = np.zeros(1 << 16, np.uint8)
IS_TENSOR = {name for name in KINDS if name in ("module", "Parameter") or "tensor" in name}
WRITTEN = [n for n, kind in KINDS.items() if kind.write is not None and n not in IS_TENSOR]


def look_at(_x: int, value: Shared[Any], look: Any) -> Any:
    return look(value)


def placed(_x: int, value: Shared[Any], places: Any) -> tuple[bool, bool]:
    found = places(value[0])
    return len(found) > 0, in_segment(*found)


def in_object_store(_x: int, value: Shared[Any], places: Any) -> list[str]:
    """The names of the mappings that the value lies in."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        low, high = (int(word, 16) for word in line.split()[0].split("-"))
        found += [line.split(maxsplit=5)[-1] for at in places(value[0]) if low <= at < high]
    return found


def written(_x: int, value: Shared[Any], write: Any) -> None:
    write(value)


def through(value: Any, *, own: bool = False) -> Any:
    """Encode and decode, over read-only copies of the buffers or over writable ones."""
    payload = codec.encode(value)
    return codec.decode(payload.head, [(bytearray if own else bytes)(b) for b in payload.buffers])


def stored(value: Any) -> int:
    """The bytes of the buffers of a value."""
    return sum(buffer.nbytes for buffer in codec.encode(value).buffers)


# -------------------------------------------------------------------------- every kind


@pytest.mark.parametrize("name", KINDS)
def test_kind_arrives_equal(backend: Any, name: str) -> None:
    """Values, dtype, class, order, mask, index and attributes of every kind reach the task."""
    kind = KINDS[name]
    value = kind.make()
    results = parallel(look_at).with_options(backend=backend).map([0], value=value, look=kind.look)
    assert_same([kind.look(value)], results)


@pytest.mark.parametrize("name", PLACED)
def test_kind_lies_in_the_segment(name: str) -> None:
    """In a worker the memory of every kind that is not copied lies in the mapped segment."""
    kind = KINDS[name]
    task = parallel(placed).with_options(backend="process")
    assert [(True, True)] == task.map([0], value=(kind.make(), FILLER), places=kind.places)


@pytest.mark.parametrize("name", [name for name in PLACED if name not in IS_TENSOR])
def test_kind_lies_in_the_object_store(ray_runtime: None, name: str) -> None:
    """On Ray it lies in the object store."""
    kind = KINDS[name]
    task = parallel(in_object_store).with_options(backend="ray")
    (found,) = task.map([0], value=(kind.make(), FILLER), places=kind.places)
    assert found
    assert all("plasma" in name for name in found), found


@pytest.mark.parametrize("name", KINDS)
def test_repeated_lease_is_a_hit(name: str) -> None:
    """What has not changed is found unchanged, and is not published again."""
    cache, value = ShareCache(), KINDS[name].make()
    try:
        for expected in (False, True, True):
            lease = cache.lease(value, encode=codec.encode_shared)
            assert expected == lease.hit
            lease.release()
    finally:
        cache.clear()


@pytest.mark.parametrize("name", CHANGED)
def test_change_is_seen(name: str) -> None:
    """A value that its owner has changed is published again, and is equal to it."""
    cache, kind = ShareCache(), KINDS[name]
    value = kind.make()
    try:
        cache.lease(value, encode=codec.encode_shared).release()
        assert kind.change is not None
        kind.change(value)
        lease = cache.lease(value, encode=codec.encode_shared)
        assert not lease.hit
        assert_same(kind.look(value), kind.look(lease.publication.value()))
        lease.release()
    finally:
        cache.clear()


@pytest.mark.parametrize("name", WRITTEN)
def test_write_is_refused(backend: Any, name: str) -> None:
    """A write into any kind is refused with our note, and the caller's value stays as it is."""
    kind = KINDS[name]
    value = kind.make()
    before = kind.look(value)
    with pytest.raises((ValueError, TypeError), match="read-only") as caught:
        parallel(written).with_options(backend=backend).map([0], value=value, write=kind.write)
    assert "CopyOnWrite" in " ".join(caught.value.__notes__)
    assert_same(before, kind.look(value))


@pytest.mark.parametrize("name", [n for n in CHANGED if n not in ("bytearray", "array.array")])
def test_copy_on_write_is_writable(backend: Any, name: str) -> None:
    """A copy-on-write parameter of any kind can be changed as its owner can, for this item."""

    def changed(_x: int, value: CopyOnWrite[Any], change: Any, look: Any) -> Any:
        change(value)
        return look(value)

    kind = KINDS[name]
    value, expected = kind.make(), kind.make()
    assert kind.change is not None
    kind.change(expected)
    task = parallel(changed).with_options(backend=backend, chunksize=2)
    results = task.map(range(2), value=value, change=kind.change, look=kind.look)
    assert_same([kind.look(expected)] * 2, results)
    assert_same(kind.look(kind.make()), kind.look(value))


@pytest.mark.parametrize("name", KINDS)
def test_kind_arrives_by_handle(name: str) -> None:
    """A handle gives every kind back, here as well."""
    kind = KINDS[name]
    value = kind.make()
    with share({"it": value}) as handle:
        assert_same(kind.look(value), kind.look(handle.value["it"]))


LARGE: dict[str, Any] = {
    "datetime64": lambda n: np.arange(n).astype("M8[s]"),
    "column": lambda n: np.ones((n, 2))[:, 1],
    "masked": lambda n: np.ma.MaskedArray(np.ones(n), np.zeros(n, bool)),
    "DataFrame": lambda n: KINDS["DataFrame"].make().iloc[[0] * n][["a"]],
    "Arrow text": lambda n: arrow().array(["eight ch"] * (n // 2)),
    "polars Series": lambda n: pytest.importorskip("polars").Series(np.ones(n)),
    "tensor": lambda n: torch().ones(n, dtype=torch().float64),
}


@pytest.mark.parametrize("name", LARGE)
def test_private_memory_of_a_worker_does_not_grow(name: str) -> None:
    """A worker that has read 64 MB of a shared kind has hardly more memory of its own."""

    def anonymous(_x: int, value: Shared[Any]) -> int:
        codec.encode(value).buffers  # noqa: B018  touches what there is
        for buffer in codec.encode(value).buffers:
            int(buffer[::4096].max())
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    task = parallel(anonymous).with_options(backend="process", workers=1)
    (before,) = task.map([0], value=LARGE[name](20_000))
    (after,) = task.map([0], value=LARGE[name](8 << 20))
    shutdown()
    assert 16 << 20 > after - before


# --------------------------------------------------------------------------- any array


@few
@given(arrays())
def test_any_array_on_the_local_backends(array: Any) -> None:
    """Any dtype, shape, strides and order is the same array in serial and thread tasks."""
    for backend in ("serial", "thread"):
        task = parallel(bits).with_options(backend=backend)
        assert_same([bits(0, array)], task.map([0], value=array))


@settings(few, max_examples=15)
@given(st.lists(arrays(), min_size=1, max_size=8))
def test_any_arrays_in_a_worker(found: list[Any]) -> None:
    """And in a worker."""
    task = parallel(bits_of_all).with_options(backend="process")
    assert_same([bits_of_all(0, found)], task.map([0], value=found))


def bits(_x: int, value: Shared[Any]) -> Any:
    return value.dtype, value.shape, bits_of(value)


def bits_of_all(_x: int, value: Shared[Any]) -> Any:
    return [bits(0, array) for array in value]


# ------------------------------------------------------------------------ views of one base


@some
@given(views(), st.booleans())
def test_views_of_one_base(found: Any, base_first: bool) -> None:
    """Views beside their base show it where they arrive: a write through one is seen in all."""
    base, parts = found
    value = [base, *parts] if base_first else [*parts, base]
    own = through(value, own=True)
    assert_same(value, own)
    assert base.nbytes == stored(value)
    for one, other in itertools.combinations(range(len(value)), 2):
        expected = np.shares_memory(value[one], value[other])
        assert expected == np.shares_memory(own[one], own[other])


@some
@given(views())
def test_views_without_their_base(found: Any) -> None:
    """Views without their base are right, and carry little along that none of them shows."""
    _, parts = found
    assert_same(parts, through(parts))
    assert_same(parts, through(parts, own=True))
    assert stored(parts) <= 2 * sum(part.nbytes for part in parts)


def test_overlapping_slices_are_stored_once() -> None:
    """Two slices that overlap share their common rows, and nothing else of the base is stored."""
    base = table()
    value = {"a": base[100:200], "b": base[150:250]}
    assert base[100:250].nbytes == stored(value)
    own = through(value, own=True)
    own["a"][60, 0] = -1
    assert -1 == own["b"][10, 0]


def test_overlapping_columns_are_stored_once() -> None:
    """Blocks of columns that overlap share them; columns that no one shows are not stored."""
    base = table()
    value = [base[:, 3:5], base[:, 4:6], base[:, 200:201]]
    assert base[:, :4].nbytes == stored(value)
    own = through(value, own=True)
    assert_same([np.array(v) for v in value], [np.array(v) for v in own])
    own[0][7, 1] = -1
    assert -1 == own[1][7, 0]


def test_parts_that_do_not_overlap_are_apart() -> None:
    """Parts of one base that show nothing in common are stored each for itself."""
    base = table()
    assert base[:2].nbytes == stored([base[0], base[200]])
    assert base[:, :2].nbytes == stored([base[:, 0], base[:, 200]])


def test_windows_keep_their_memory() -> None:
    """What lies on itself stays so where it is read, and is copied where it may be written."""
    row = np.arange(1000.0)
    windows = np.lib.stride_tricks.sliding_window_view(row, 100)
    assert row.nbytes == stored(windows)
    assert 8 == stored(np.broadcast_to(np.float64(3), (1000, 1000)))
    own = through(windows, own=True)
    own[0, 5] = -1
    assert 5 == own[5, 0]


@pytest.mark.parametrize(
    "turn",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1].T,
        lambda a: a[10:20][::-1],
    ],
    ids=["rows", "columns", "transposed", "part"],
)
def test_view_that_runs_backwards_is_not_copied(turn: Any) -> None:
    """A view that differs from a dense one in its direction alone is stored as it lies there."""
    base = table()
    view = turn(base)
    (buffer,) = codec.encode(view).buffers
    assert np.shares_memory(base, buffer)
    assert view.nbytes == buffer.nbytes
    again = through(view)
    assert view.strides == again.strides
    assert_same(view, again)
    own = through(view, own=True)
    own[0, 0] = -1
    assert -1 == own[0, 0]
    assert 1 == (own == -1).sum()


@pytest.mark.parametrize(
    ("turn", "is_kept"),
    [
        (lambda a: a[:, ::2], True),
        (lambda a: a[::-2], True),
        (lambda a: a[:, :40], True),
        (lambda a: a[::2, ::2], False),
        (lambda a: np.lib.stride_tricks.as_strided(a, (100, 30), (480, 16)), False),
    ],
    ids=[
        "every other column",
        "rows, backwards",
        "half",
        "a quarter",
        "memory of nobody knows what",
    ],
)
def test_view_with_few_gaps_is_not_copied(turn: Any, is_kept: bool) -> None:
    """A view of half of its base or more is stored with its gaps: nothing is copied at a call."""
    base = np.arange(100 * 60.0).reshape(100, 60)
    view = turn(base)
    (buffer,) = codec.encode(view).buffers
    assert is_kept == np.shares_memory(base, buffer)
    assert buffer.nbytes <= 2 * view.nbytes
    again = through(view)
    assert_same(view, again)
    assert is_kept == (view.strides == again.strides)
    own = through(view, own=True)
    own[0, 0] = -1
    assert 1 == (own == -1).sum()
    assert (base != -1).all()


def test_change_of_a_view_with_gaps_is_noticed(backend: Any, request: Any) -> None:
    """What changes in the view is seen by the next call."""
    if backend == "ray":
        request.getfixturevalue("ray_runtime")
    base = np.zeros(4 << 18)
    look: Any = lambda k, table: float(table[k])
    task = parallel(shared=["table"], backend=backend)(look)
    view = base[::2]
    assert [0.0] == task.map([7], table=view)
    base[14] = 3.0
    assert [3.0] == task.map([7], table=view)
    base[15] = 9.0
    assert [3.0] == task.map([7], table=view)


def test_repeated_column_is_private_in_every_element() -> None:
    """Gaps that make up for repeated elements do not make a dense array: a write is to one."""
    view = np.lib.stride_tricks.as_strided(np.arange(4.0), (2, 2), (24, 0))
    own = through(view, own=True)
    own[0, 0] = -1
    assert [[-1.0, 0.0], [3.0, 3.0]] == own.tolist()


def test_slice_and_column_ship_their_own_bytes() -> None:
    """A slice of a base that is not shared ships nothing but itself; a column is gathered once."""
    base = table()
    assert base[3:5].nbytes == stored(base[3:5])
    assert base[:, 7].nbytes == stored(base[:, 7])


def test_view_is_republished_when_it_moves() -> None:
    """Another view of the same memory is another value, though every buffer is the same."""
    base = table()
    value = {"base": base, "part": base[10:20]}
    publication = Publication(codec.encode(value), watched=True)
    try:
        assert publication.matches(codec.encode(value))
        value["part"] = base[11:21]
        assert not publication.matches(codec.encode(value))
    finally:
        publication.release()


def test_array_within_itself() -> None:
    """A value that refers to itself, and to an array twice, does so where it arrives."""
    rows = np.arange(10.0)
    value: dict[str, Any] = {"rows": rows, "again": rows, "tail": rows[5:]}
    value["me"] = value
    own = through(value, own=True)
    assert own["me"] is own
    assert own["rows"] is own["again"]
    own["rows"][5] = -1
    assert -1 == own["tail"][0]


def test_subclass_that_refers_to_itself() -> None:
    """An attribute of an array may be, or contain, that array."""
    array = KINDS["subclass"].make()
    array.unit = {"name": "metre", "of": [array]}
    again = through(array)
    assert again.unit["of"][0] is again


def test_subclass_of_objects_keeps_its_attributes() -> None:
    """Where the elements are objects and travel in the pickle, attributes come along as well."""
    array = np.array([{"a": 1}, None], object).view(type(KINDS["subclass"].make()))
    array.unit = "metre"
    again = through(array)
    assert ("metre", [{"a": 1}, None]) == (again.unit, again.tolist())


def test_mask_that_is_shared_stays_shared() -> None:
    """Two masked arrays with one mask have one mask where they arrive."""
    one = np.ma.MaskedArray(np.arange(5.0), np.arange(5) % 2 == 0)
    two = np.ma.MaskedArray(np.ones(5), one.mask, copy=False)
    first, second = through([one, two])
    assert np.shares_memory(np.ma.getmask(first), np.ma.getmask(second))
    assert first.sharedmask == one.sharedmask


def test_views_of_shared_memory_share_a_private_copy() -> None:
    """Two views of an array in shared memory, copied on write, are views of one copy."""

    def overwrite(_x: int, value: CopyOnWrite[Any]) -> float:
        value["all"][3] = -1
        return float(value["part"][0])

    grid = empty(100_000)
    grid[:] = 1
    task = parallel(overwrite).with_options(backend="process")
    assert [-1.0, -1.0] == task.map(range(2), value={"all": grid, "part": grid[3:6]})
    assert 1.0 == grid[3]


def test_strided_view_of_a_file_is_not_copied(tmp_path: Path) -> None:
    """A strided view of a mapped file is a view of the file in the worker, of class memmap."""

    def lies_in(_x: int, value: Shared[Any]) -> tuple[str, bool, Any]:
        at = value["steps"].__array_interface__["data"][0]
        spans = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().split("\n")]
        names = [
            words[-1].strip()
            for words in filter(None, spans)
            if int(words[0].split("-")[0], 16) <= at < int(words[0].split("-")[1], 16)
        ]
        shared = np.shares_memory(value["whole"], value["steps"])
        return names[0], shared, (type(value["steps"]).__name__, value["steps"].tolist()[:3])

    path = tmp_path / "numbers.dat"
    np.arange(10_000.0).tofile(path)
    whole = np.memmap(path, np.float64, "r")
    task = parallel(lies_in).with_options(backend="process")
    value = {"whole": whole, "steps": whole[::-100]}
    expected = (str(path), True, ("memmap", [9999.0, 9899.0, 9799.0]))
    assert [expected] == task.map([0], value=value)
    assert 10_000 > task.cache_info().nbytes


# ------------------------------------------------------------------------- Arrow slices


@pytest.mark.parametrize("name", ARROW_ARRAYS)
@pytest.mark.parametrize(
    ("start", "count"), [(1003, 100), (8, 8), (N - 7, 7), (0, 100), (5, 0)], ids=str
)
def test_arrow_slice_travels_without_its_parent(name: str, start: int, count: int) -> None:
    """A slice of any Arrow array is equal, and the rest of its parent stays here."""
    whole = ARROW_ARRAYS[name](arrow())
    part = whole.slice(start, count)
    again = through(part)
    assert_same(of_arrow(part), of_arrow(again))
    assert part.null_count == again.null_count
    assert stored(whole) / 40 > stored(part) - part.nbytes
    assert_same(of_arrow(part.slice(1, 3)), of_arrow(through(part.slice(1, 3))))


def test_arrow_column_met_twice_is_stored_once() -> None:
    """Two tables over one column, or a slice beside its parent, store it once."""
    column = arrow().array(range(N))
    one, two = arrow().table({"a": column}), arrow().table({"b": column.slice(10, 100)})
    assert column.nbytes == stored([one, two])
    assert list(range(10, 110)) == through([one, two])[1]["b"].to_pylist()


# ---------------------------------------------------------------------------------- torch


def test_tensors_share_storage_as_before() -> None:
    """Views of one tensor have one storage where they arrive; a numpy view shows it as well."""
    base = torch().arange(1000.0).reshape(100, 10)
    value = {"base": base, "rows": base[5:], "column": base[:, 2], "numpy": base.numpy()[7]}
    assert 4000 == stored(value)
    own = through(value, own=True)
    own["rows"][2, 2] = -1
    assert [-1.0, -1.0, -1.0] == [own["base"][7, 2], own["column"][7], own["numpy"][2]]
    storages = {own[name].untyped_storage().data_ptr() for name in ("base", "rows", "column")}
    assert 1 == len(storages)


def test_part_of_a_tensor_travels_alone() -> None:
    """A part of a tensor does not bring its storage along."""
    assert 40 == stored(torch().zeros(1000, 10)[3])


def _add_in_place(x: int, tensor: Shared[Any]) -> float:
    if x == 1:
        tensor.add_(1)
    return float(tensor[0])


@pytest.mark.parametrize("size", [100, N])
@pytest.mark.parametrize("where", ["process", "ray"])
def test_tensor_written_in_a_worker_is_told(request: Any, where: Any, size: int) -> None:
    """Writing to a tensor cannot be refused: the worker dies, its error says why, others go on."""
    tensor = torch().zeros(size)
    if where == "ray":
        request.getfixturevalue("ray_runtime")
    task = parallel(_add_in_place).with_options(backend=where, return_exceptions=True, chunksize=1)
    results: list[Any] = task.map(range(3), tensor=tensor)
    first, error, last = results
    assert [0.0, 0.0] == [first, last]
    assert isinstance(error, WorkerDiedError)
    assert "torch" in error.__notes__[-1]
    assert 0 == tensor.count_nonzero()


@pytest.mark.parametrize("where", ["serial", "thread", "handle"])
def test_tensor_written_elsewhere_is_a_copy(where: Any) -> None:
    """Where no worker of ours would die of it, a write reaches neither the caller nor others."""
    tensor = torch().zeros(N)
    if where == "handle":
        with share(tensor) as handle:
            handle.value.add_(1)
            assert [0.0] == parallel(_add_in_place).with_options(backend="process").map(
                [0], tensor=handle
            )
    else:
        parallel(_add_in_place).with_options(backend=where).map(range(2), tensor=tensor)
        assert [0.0] == parallel(_add_in_place).with_options(backend=where).map([0], tensor=tensor)
    assert 0 == tensor.count_nonzero()


def _as_parameter(dtype: str, requires_grad: bool) -> Any:
    data = torch().arange(6.0).reshape(2, 3).to(getattr(torch(), dtype))
    return torch().nn.Parameter(data, requires_grad)


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64"])
def test_parameter_arrives_as_one(dtype: str, requires_grad: bool) -> None:
    """A parameter keeps its class, its type, its numbers, and whether it has a gradient."""
    parameter = _as_parameter(dtype, requires_grad)
    again = through(parameter)
    assert type(parameter) is type(again)
    assert (parameter.dtype, requires_grad) == (again.dtype, again.requires_grad)
    assert torch().equal(parameter, again)
    assert again.is_leaf


def test_parameter_with_attributes_keeps_them() -> None:
    """What a library has hung on a parameter comes along."""
    parameter = _as_parameter("float32", True)
    parameter.sharding = ["rows", np.arange(3)]
    kept, array = through(parameter).sharding
    assert ("rows", [0, 1, 2]) == (kept, array.tolist())


def test_tied_parameters_stay_tied() -> None:
    """One parameter in two layers is one where it arrives; a view of it has the same storage."""
    one, two = torch().nn.Linear(3, 3), torch().nn.Linear(3, 3)
    two.weight = one.weight
    model, row = through((torch().nn.Sequential(one, two), one.weight.detach()[1]))
    assert model[0].weight is model[1].weight
    storage = model[0].weight.untyped_storage().data_ptr()
    assert storage == row.untyped_storage().data_ptr()
    assert 3 == row.storage_offset()


def test_parameter_registered_with_copyreg_goes_its_way(clean_copyreg: None) -> None:
    """A reduction that somebody gives to copyreg counts, also when parameters went before."""
    parameter = _as_parameter("float32", True)
    through(parameter)
    copyreg.pickle(type(parameter), lambda _: (int, (7,)))
    assert 7 == through(parameter)


def _network() -> Any:
    nn = torch().nn
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))


def _hook(*_: Any) -> None:
    pass


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda m: m[0].weight.data.__setitem__((0, 0), 9.0),
    "weight rebound": lambda m: setattr(m[0], "weight", torch().nn.Parameter(m[0].weight + 1)),
    "weight tied": lambda m: setattr(m[3], "weight", m[0].weight),
    "data rebound": lambda m: setattr(m[0].weight, "data", m[0].weight.data + 1),
    "frozen": lambda m: m[0].weight.requires_grad_(False),
    "attribute of a weight": lambda m: setattr(m[0].weight, "note", 1),
    "type": lambda m: m.half(),
    "buffer": lambda m: m[1].running_mean.add_(1),
    "eval": lambda m: m.eval(),
    "part in eval": lambda m: m[2].eval(),
    "hyper-parameter": lambda m: setattr(m[2], "p", 0.25),
    "hook": lambda m: m[0].register_forward_hook(_hook),
    "hook before": lambda m: m[3].register_forward_pre_hook(_hook),
    "layer added": lambda m: m.append(torch().nn.ReLU()),
    "layer replaced": lambda m: m.__setitem__(2, torch().nn.Dropout(0.25)),
    "attribute of a dict": lambda m: setattr(m._forward_hooks, "note", 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_a_module_is_seen(change: str) -> None:
    """Whatever changes in a module of torch, the next use publishes it again; nothing else does."""
    model = _network()
    publication = Publication(codec.encode_shared(model), watched=True)
    assert publication.matches(codec.encode_shared(model))
    CHANGES[change](model)
    assert not publication.matches(codec.encode_shared(model))
    publication.release()


def test_module_is_seen_changed_in_a_task(backend: Any) -> None:
    """A weight that is written between two calls is new in the second."""
    task = parallel(look_at).with_options(backend=backend)
    model = torch().nn.Linear(2, 2)
    for number in (1.0, 2.0, 2.0):
        model.weight.data[0, 0] = number
        assert [number] == task.map([0], value=model, look=lambda m: m.weight[0, 0].item())


# ------------------------------------------------------------------------------- register


class Image:
    """A class of a library: it pickles its pixels in a way of its own."""

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels

    def __reduce__(self) -> Any:
        return Image, (self.pixels.tolist(),)


class Photo(Image):
    pass


class Drawing(Image):
    def __reduce__(self) -> Any:
        return Drawing, ("lines",)


@pytest.fixture
def registered() -> Any:
    """Images, taken apart so that their pixels are shared."""
    register(Image, lambda image: (type(image), (image.pixels,)))
    yield
    kinds._registered.clear()
    kinds.found.clear()


def of_image(image: Any) -> Any:
    return type(image).__name__, image.pixels.tolist()


def test_registered_class_is_shared(registered: None, backend: Any) -> None:
    """Arrays in an object of a registered class are read-only, and those of derived ones."""
    value = [Image(np.arange(3.0)), Photo(np.arange(4.0))]
    task = parallel(look_at).with_options(backend=backend)
    expected = [("Image", [0.0, 1.0, 2.0]), ("Photo", [0.0, 1.0, 2.0, 3.0])]
    assert [expected] == task.map([0], value=value, look=lambda v: [of_image(i) for i in v])
    with pytest.raises(ValueError, match="read-only"):
        task.map([0], value=value, look=lambda v: v[0].pixels.sort())


def test_registered_class_lies_in_the_segment(registered: None) -> None:
    """They are not copied."""
    task = parallel(placed).with_options(backend="process")
    value = Image(np.arange(float(N))), None
    assert [(True, True)] == task.map([0], value=value, places=_pixels_at)


def _pixels_at(image: Any) -> list[int]:
    return [image.pixels.__array_interface__["data"][0]]


def test_class_with_its_own_way_keeps_it(registered: None) -> None:
    """A class derived from a registered one that pickles in its own way goes on doing so."""
    assert "lines" == through(Drawing(np.arange(3))).pixels


def test_registered_state_is_set(registered: None) -> None:
    """The third part of what the function returns is the object's state."""
    register(Image, lambda image: (Image, (None,), {"pixels": image.pixels, "seen": True}))
    again = through(Image(np.arange(3)))
    assert ([0, 1, 2], True) == (again.pixels.tolist(), again.seen)


@pytest.mark.parametrize(
    ("cls", "reduce", "word"),
    [
        ("Image", len, "'Image'"),
        (Image, "reduce", "'reduce'"),
        (Image, None, "None"),
        (dict, dict.items, "dict"),
        (int, int, "int"),
        (object, repr, "object"),
        (np.ndarray, np.copy, "ndarray"),
        (memoryview, bytes, "memoryview"),
    ],
)  # fmt: skip
def test_nonsense_is_not_registered(cls: Any, reduce: Any, word: str) -> None:
    """What is no class, is no function, or has its own way already is a DefinitionError."""
    with pytest.raises(DefinitionError, match="register") as caught:
        register(cls, reduce)
    assert word in str(caught.value)


@pytest.mark.parametrize("parts", [None, "Image", (Image,), ("Image", ()), (Image, [1])], ids=str)
def test_nonsense_of_a_registered_function(registered: None, parts: Any) -> None:
    """A function that does not return a function and its arguments is a DefinitionError."""
    register(Image, lambda _: parts)
    with pytest.raises(DefinitionError, match="Image"):
        codec.encode(Image(1))


# ------------------------------------------------------------- what is decided for each class


class Ordered(OrderedDict[Any, Any]):
    pass


def _with_attribute() -> Any:
    value: Any = OrderedDict(a=1)
    value.note = np.arange(3)
    return value


@pytest.mark.parametrize("cls", [OrderedDict, Ordered])
def test_ordered_dict_arrives_as_it_is(cls: Any) -> None:
    """Class, items and their order, whether there are any or none, and the same one twice."""
    empty, full = cls(), cls(b=np.arange(3), a=[1])
    value = [empty, full, cls(), empty]
    again = through(value)
    assert [cls] * 4 == [type(each) for each in again]
    assert [[], ["b", "a"], [], []] == [list(each) for each in again]
    assert again[0] is again[3]
    assert again[0] is not again[2]
    assert [0, 1, 2] == again[1]["b"].tolist()


def test_ordered_dict_keeps_its_attributes() -> None:
    """One that somebody has given attributes has them where it arrives."""
    again = through(_with_attribute())
    assert [("a", 1)] == list(again.items())
    assert [0, 1, 2] == again.note.tolist()


def test_ordered_dict_that_holds_itself() -> None:
    """A cycle through an ordered dict is one where it arrives."""
    value: Any = OrderedDict()
    value["self"] = value
    again = through(value)
    assert again is again["self"]


@pytest.fixture
def clean_copyreg() -> Any:
    """What a test registers with copyreg goes with it."""
    before = dict(copyreg.dispatch_table)
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


class Plain:
    """Pickled as Python does it."""

    def __init__(self) -> None:
        self.number = 1


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    pass


@pytest.mark.parametrize("make", [OrderedDict, Ordered, Plain, WithMeta])
def test_later_word_of_copyreg_counts(clean_copyreg: None, make: Any) -> None:
    """What is given to copyreg counts from then on, also for a class that was met before."""
    through(make())
    copyreg.pickle(make, lambda _: (int, (7,)))
    assert 7 == through(make())
    del copyreg.dispatch_table[make]
    assert make is type(through(make()))


@pytest.mark.parametrize("make", [OrderedDict, Ordered, Plain, WithMeta])
def test_later_registration_counts(registered: None, make: Any) -> None:
    """What is registered counts from then on, also for a class that was met before."""
    through(make())
    register(make, lambda _: (int, (7,)))
    assert 7 == through(make())


@pytest.mark.parametrize("way", ["__reduce__", "__reduce_ex__", "__getstate__"])
def test_class_that_gets_its_own_way_later(monkeypatch: Any, way: str) -> None:
    """A class that is given a way to be pickled after it was met is pickled in that way."""
    through(Plain())
    other = {"number": 7} if way == "__getstate__" else (int, (7,))
    monkeypatch.setattr(Plain, way, lambda *_: other, raising=False)
    again = through(Plain())
    assert 7 == (again.number if way == "__getstate__" else again)


def test_object_with_its_own_way() -> None:
    """Pickle asks the object before its class, and so it is here, though its class was met."""
    through(Plain())
    odd: Any = Plain()
    odd.__reduce_ex__ = lambda _: (int, (7,))
    assert 7 == through(odd)


def test_object_that_changes_its_class() -> None:
    """An object that is made one of another class is one where it arrives."""
    value: Any = Plain()
    payload = codec.encode(value)
    value.__class__ = Image
    value.pixels = np.arange(2)
    assert payload.head != codec.encode(value).head
    assert Image is type(through(value))


CODE = {"class": Plain, "class with a metaclass": WithMeta, "function": of_image}


@pytest.mark.parametrize("code", CODE.values(), ids=CODE)
def test_code_goes_by_name_while_it_has_one(monkeypatch: Any, code: Any) -> None:
    """A class or function whose name refers to another one by now goes by value, and back."""
    by_name = codec.encode(code).head
    monkeypatch.setitem(globals(), code.__name__, None)
    assert len(codec.encode(code).head) > 3 * len(by_name)
    assert code.__name__ == through(code).__name__
    monkeypatch.undo()
    assert by_name == codec.encode(code).head


@pytest.mark.parametrize("code", CODE.values(), ids=CODE)
def test_module_registered_by_value_goes_by_value(code: Any) -> None:
    """What is in a module goes by value once cloudpickle is told so, though it was met before."""
    home = sys.modules[__name__]
    short = len(codec.encode(code).head)
    cloudpickle.register_pickle_by_value(home)
    try:
        assert len(codec.encode(code).head) > 3 * short
    finally:
        cloudpickle.unregister_pickle_by_value(home)
    assert short == len(codec.encode(code).head)


@pytest.mark.parametrize("made", [Plain, Meta("WithMeta", (), {})], ids=["type", "metaclass"])
def test_class_by_value_is_seen_changed(made: Any) -> None:
    """An attribute of a class without a name is part of the value."""
    cls = type(made)("Made", (), {"factor": 1})
    value = cls()
    publication = Publication(codec.encode_shared(value), watched=True)
    assert publication.matches(codec.encode_shared(value))
    cls.factor = 2
    assert not publication.matches(codec.encode_shared(value))
    publication.release()


def test_class_by_value_is_the_same_after_its_use() -> None:
    """What Python notes in a class while it is used is no change of it."""
    cls = type("Used", (), {"factor": 1})
    before = codec.encode(cls).head
    copy.copy(cls())
    assert "__slotnames__" in vars(cls)
    assert before == codec.encode(cls).head
    assert {} == cls.__annotations__  # a protocol asks for them
    assert before == codec.encode(cls).head
    cls.__annotations__ = {"factor": int}
    assert before != codec.encode(cls).head


def test_class_without_a_module_goes() -> None:
    """A class that says nothing sensible of its module goes by value."""
    cls = type("Homeless", (), {"__module__": 3, "x": 1})
    assert 1 == through(cls).x


def test_class_that_is_gone_is_forgotten() -> None:
    """What is known of a class goes with it."""

    class Passing:
        pass

    codec.encode(Passing())
    key = id(Passing)
    assert key in kinds.found
    del Passing
    gc.collect()
    assert key not in kinds.found


def test_class_of_a_recarray_is_not_copied() -> None:
    """A recarray stays one in a process that has never loaded ``numpy.rec``."""
    code = """
import sys
import numpy as np
from sharedtask import parallel
assert "numpy.rec" not in sys.modules
records = np.zeros(3, [("a", "i8")]).view(np.recarray)
ask = parallel(lambda k, table: (isinstance(table, np.recarray), int(table.a[k])), shared=["table"])
for backend in ("serial", "process"):
    assert [(True, 0)] == ask.with_options(backend=backend).map([1], table=records)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
