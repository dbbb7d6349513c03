"""strict=True: a task that changes what is shared gets an error that says what and where."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from changes import CHANGES, Model, frame

from sharedtask import (
    ChangedValueError,
    CopyOnWrite,
    Reduced,
    Shared,
    array,
    defaults,
    multi_process,
    parallel,
    share,
    shutdown,
)
from sharedtask.backends.base import Call, Concurrency
from sharedtask.backends.local import SerialBackend
from sharedtask.backends.worker.mutation_guard import Guard, GuardedValue
from sharedtask.serialization import codec
from sharedtask.serialization.diff import differences
from sharedtask.serialization.snapshot import Original
from sharedtask.store.decoded import Values
from sharedtask.store.stores import BytesStore
from sharedtask.task.chunking import Chunker, Pace
from sharedtask.testing import count_up, counted, no_leaks  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def watching() -> Iterator[None]:
    """All tasks are watched, by two workers."""
    with defaults(workers=2, strict=True):
        yield


LARGE = 1 << 15  # float64: 256 KiB, which no message carries

# ------------------------------------------------------------------------- what is changed


@parallel
def change(i: int, value: Shared[Any], kind: str, at: int = 3) -> int:
    if i == at:
        CHANGES[kind][1](value)
    return i


@pytest.mark.parametrize("kind", CHANGES)
def test_change_is_found(backend: Any, kind: str) -> None:
    """Whatever a task changes around the arrays is an error that names parameter and path."""
    make, _, way = CHANGES[kind]
    task = change.with_options(backend=backend, chunksize=5)
    with pytest.raises(ChangedValueError) as caught:
        task.map(range(5), value=make(), kind=kind)
    assert f"value{way}" == caught.value.path
    assert ("value", range(5)) == (caught.value.parameter, caught.value.items)


def test_text_says_what_to_do(backend: Any) -> None:
    """The error names task, items and path, and the ways out."""
    task = change.with_options(backend=backend, chunksize=10)
    with pytest.raises(ChangedValueError) as caught:
        task.map(range(20), value={}, kind="new key", at=12)
    text = str(caught.value)
    if not caught.value.beside:
        assert text == (
            "change(): one of items 10 to 19 changed value['seen'], which is shared: later items in"
            " this worker would have seen it. Return what you find, or mark the parameter"
            " CopyOnWrite[...]; chunksize=1 shows which item it was."
        )
    assert text.startswith("change(): one of items 10 to 19")


# ------------------------------------------------------------------------ which item it was


@pytest.mark.parametrize("where", ["serial", "process", "ray"])
def test_chunksize_one_names_the_item(where: Any, request: Any) -> None:
    """With one item in a chunk the item is known."""
    if where == "ray":
        request.getfixturevalue("ray_runtime")
    task = change.with_options(backend=where, chunksize=1)
    with pytest.raises(ChangedValueError) as caught:
        task.map(range(8), value={}, kind="new key")
    assert range(3, 4) == caught.value.items
    assert str(caught.value).startswith("change(): item 3 changed value['seen'], which is shared")
    assert "chunksize" not in str(caught.value)


def test_error_stands_at_the_last_item_of_its_chunk(backend: Any) -> None:
    """With return_exceptions all other items have their results."""
    task = change.with_options(backend=backend, chunksize=4, return_exceptions=True, workers=1)
    results: Any = task.map(range(12), value={"a": [1, 2]}, kind="nested list", at=5)
    assert [0, 1, 2, 3, 4, 5, 6] == results[:7]
    assert (range(4, 8), "value['a'][2]") == (results[7].items, results[7].path)
    assert [8, 9, 10, 11] == results[8:]


def test_automatic_chunks_are_watched(backend: Any) -> None:
    """Chunks of any length are looked at; the items named have the culprit among them."""
    with pytest.raises(ChangedValueError) as caught:
        change.with_options(backend=backend).map(range(500), value={}, kind="new key", at=321)
    assert 321 in caught.value.items


@parallel
def fail_and_change(i: int, value: Shared[dict[str, Any]], at: int) -> int:
    if i == at:
        value["seen"] = i
        raise KeyError(i)
    return i


@pytest.mark.parametrize("stops", [True, False])
def test_own_exception_stays(backend: Any, stops: bool) -> None:
    """Where the last item that is run raises by itself, a note on that tells of the change."""
    task = fail_and_change.with_options(
        backend=backend, chunksize=4, workers=1, return_exceptions=not stops
    )
    if stops:
        with pytest.raises(KeyError) as caught:
            task.map(range(4), value={}, at=1)
        error: Any = caught.value
        items = "one of items 0 to 1"
    else:
        error, items = task.map(range(4), value={}, at=3)[3], "one of items 0 to 3"
    assert isinstance(error, KeyError)
    (note,) = [note for note in error.__notes__ if "changed" in note]
    assert f"fail_and_change(): {items} changed value['seen']" in note


def test_last_item_that_cannot_be_unpickled_tells_too() -> None:
    """Where an item fails before the function is called, the change of one before it is told."""
    task = change.with_options(backend="process", chunksize=2, return_exceptions=True)
    results: Any = task.map([3, Unreadable()], value={}, kind="new key")
    assert 3 == results[0]
    assert "one of items 0 to 1 changed value['seen']" in " ".join(results[1].__notes__)


class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_threads_say_that_it_may_have_been_another() -> None:
    """Items that ran at the same time in other threads may have made the change as well."""
    shutdown()  # two threads that begin at once
    both = threading.Barrier(2)

    @parallel(backend="thread", chunksize=1, return_exceptions=True)
    def meet(i: int, value: Shared[dict[int, int]]) -> int:
        both.wait(60)
        value[i] = i
        both.wait(60)
        return i

    errors: Any = meet.map(range(2), value={})
    assert [True, True] == [error.beside for error in errors]
    assert str(errors[0]).startswith(
        "meet(): item 0, or one that ran meanwhile in another thread, changed value["
    )
    assert 'chunksize=1 with backend="serial"' in str(errors[0])


def test_thread_alone_is_exact() -> None:
    """An item beside which nothing ran is named by itself."""
    task = change.with_options(backend="thread", chunksize=1, workers=1)
    with pytest.raises(ChangedValueError) as caught:
        task.map(range(8), value={}, kind="new key")
    assert (False, range(3, 4)) == (caught.value.beside, caught.value.items)


# ------------------------------------------------------------------- what others see of it


@parallel
def look(i: int, value: Shared[dict[str, Any]], at: int = -1) -> bool:
    before = "seen" in value
    if i == at:
        value["seen"] = True
    return before


def test_later_items_see_the_original(backend: Any) -> None:
    """After the change the next chunk gets the value as it was shared."""
    task = look.with_options(backend=backend, chunksize=1, workers=1, return_exceptions=True)
    results = task.map(range(6), value={"a": 1}, at=2)
    assert isinstance(results.pop(2), ChangedValueError)
    assert [False] * 5 == results


def test_later_calls_see_the_original(backend: Any) -> None:
    """After the error the value is right for calls of both kinds, and for the next change."""
    value = {"a": np.ones(LARGE)}
    task = look.with_options(backend=backend, chunksize=1, workers=1)
    for strict in (True, False, True):
        with pytest.raises(ChangedValueError):
            task.map(range(4), value=value, at=3)
        again = task.with_options(strict=strict).map(range(4), value=value)
        assert [False] * 4 == again
    assert ["a"] == list(value)


def test_change_that_was_not_watched_is_not_blamed_on_others(backend: Any) -> None:
    """What tasks of a call without strict have changed, a call with strict does not see."""
    value = {"a": np.ones(LARGE)}
    task = look.with_options(backend=backend, workers=1)
    task.with_options(strict=False).map(range(4), value=value, at=3)
    assert [False] * 4 == task.map(range(4), value=value)
    task.with_options(strict=False).map(range(4), value=value, at=3)
    with pytest.raises(ChangedValueError):
        task.map(range(4), value=value, at=0)


@parallel
def change_once(i: int, value: Shared[dict[str, Any]], folder: str) -> bool:
    before = "seen" in value
    if count_up(folder, i) == 1:
        value["seen"] = True
    return before


def test_retry_sees_the_original(backend: Any, tmp_path: Any) -> None:
    """An item that is run again gets the value as it was shared, and may succeed."""
    task = change_once.with_options(backend=backend, chunksize=1, workers=1, retries=1)
    assert [False] * 3 == task.map(range(3), value={}, folder=str(tmp_path))
    assert {"0": 2, "1": 2, "2": 2} == counted(tmp_path)


def test_equal_value_is_no_change(backend: Any) -> None:
    """A task that sets what is there already changes nothing, however often."""

    @parallel(backend=backend, chunksize=2)
    def set_again(i: int, value: Shared[dict[str, Any]]) -> int:
        value["word"] = str(b"word", "ascii")
        value["weights"] = value["weights"].copy()
        value["words"].add("new")
        value["words"].discard("new")
        return i

    value = {"word": "word", "again": "word", "weights": np.ones(5), "words": {"a", "b"}}
    assert list(range(12)) == set_again.map(range(12), value=value)


# ------------------------------------------------------------------------------ every door


def test_submit(backend: Any) -> None:
    """The future of a task that changes something has the error, the one before it its result."""
    task = change.with_options(backend=backend)
    value: dict[str, Any] = {}
    assert 1 == task.submit(1, value=value, kind="new key").result(60)
    error = task.submit(3, value=value, kind="new key").exception(60)
    assert isinstance(error, ChangedValueError)
    assert (range(1), "value['seen']", False) == (error.items, error.path, error.beside)


def test_streams_and_starmap(backend: Any) -> None:
    """imap, imap_unordered, starmap and aimap raise as map does."""
    task = change.with_options(backend=backend, chunksize=2)
    given: dict[str, Any] = {"value": {}, "kind": "new key"}

    async def stream() -> list[int]:
        return [i async for i in task.aimap(range(6), **given)]

    runs: list[Any] = [
        lambda: list(task.imap(range(6), **given)),
        lambda: list(task.imap_unordered(iter(range(6)), **given)),
        lambda: task.starmap([(i,) for i in range(6)], **given),
        lambda: asyncio.run(stream()),
    ]
    for run in runs:
        with pytest.raises(ChangedValueError) as caught:
            run()
        assert 3 in caught.value.items


def test_result_of_the_failed_item_is_not_written(backend: Any) -> None:
    """map_into leaves the place of the item that got the error as it was."""
    out = np.zeros(6)
    task = change.with_options(backend=backend, chunksize=3, return_exceptions=True, workers=1)
    with pytest.raises(ExceptionGroup) as caught:
        task.map_into(out, range(6), value={}, kind="new key", at=4)
    assert [range(3, 6)] == [error.items for error in caught.value.exceptions]  # type: ignore[union-attr]
    assert [0, 1, 2, 3, 4, 0] == out.tolist()


@parallel
def add(i: int, total: Reduced[np.ndarray[Any, Any]], value: Shared[dict[str, Any]]) -> int:
    total += i
    if i == 4:
        value["seen"] = i
    return i


def test_failed_item_adds_nothing(backend: Any) -> None:
    """What the item that got the error had added does not count."""
    total = np.zeros(1)
    task = add.with_options(backend=backend, chunksize=3, return_exceptions=True, workers=1)
    task.map(range(6), total=total, value={})
    assert 0 + 1 + 2 + 3 + 4 == total[0]


def test_shared_self_is_watched(backend: Any) -> None:
    """An object that is shared as ``self`` counts too."""
    with pytest.raises(ChangedValueError) as caught, defaults(backend=backend, chunksize=1):
        Model().touch.map(range(4))
    assert ("self", "self.name") == (caught.value.parameter, caught.value.path)


def test_handle_is_watched(backend: Any) -> None:
    """What was shared by hand counts too, and stays as it was."""
    task = look.with_options(backend=backend, chunksize=1, workers=1)
    with share({"a": np.ones(5)}) as handle:
        with pytest.raises(ChangedValueError, match=r"value\['seen'\]"):
            task.map(range(4), value=handle, at=1)
        assert [False] * 4 == task.map(range(4), value=handle)
        assert ["a"] == list(handle.value)


def test_copy_on_write_may_be_changed(backend: Any) -> None:
    """A value that is private to the item is no other's business."""

    @parallel(backend=backend)
    def scribble(i: int, mine: CopyOnWrite[dict[str, Any]]) -> int:
        mine["seen"] = i
        mine["a"][0] = i
        return len(mine)

    assert [2] * 6 == scribble.map(range(6), mine={"a": np.zeros(5)})


def test_value_in_two_parameters(backend: Any) -> None:
    """One value that two parameters have is one object in the task, and watched as both."""

    @parallel(backend=backend, chunksize=1)
    def compare(i: int, left: Shared[list[int]], right: Shared[list[int]]) -> bool:
        if i == 2:
            right.append(i)
        return left == right

    value = [1]
    assert [True, True] == compare.map(range(2), left=value, right=value)
    with pytest.raises(ChangedValueError):
        compare.map(range(4), left=value, right=value)


def test_unmarked_arguments_are_not_watched(backend: Any) -> None:
    """What has no annotation is a copy, and may be changed."""

    @parallel(backend=backend)
    def keep(i: int, mine: dict[int, int]) -> int:
        mine[i] = i
        return i

    assert [0, 1, 2] == keep.map(range(3), mine={})


def test_multi_process_takes_it_from_defaults() -> None:
    """The function for undecorated work follows the option as well."""

    def note(i: int, seen: Any) -> int:
        seen[i] = i
        return i

    with pytest.raises(ChangedValueError, match="seen"):
        multi_process(note, range(4), backend="mp", shared_kwargs=["seen"], seen={})


# --------------------------------------------------------------------------- no false alarm


class Counts:
    """Counts how often it was pickled."""

    def __init__(self) -> None:
        self.pickled, self.items = 0, [1]

    def __getstate__(self) -> Any:
        self.pickled += 1
        return dict(vars(self))


class Names:
    """Gives another pickle each time."""

    def __init__(self) -> None:
        self.items = [1]

    def __getstate__(self) -> Any:
        return {"items": self.items, uuid.uuid4().hex: 1}


class Stamped:
    """Is another one after each unpickling."""

    def __init__(self) -> None:
        self.items, self.stamp = [1], ""

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state, stamp=uuid.uuid4().hex)


class Node:
    """Knows itself, and is hashed by its identity."""

    def __init__(self) -> None:
        self.items: list[Any] = [self]
        self.others = {object_of(k) for k in range(9)}


class Other:
    def __init__(self, k: int) -> None:
        self.k = k


def object_of(k: int) -> Other:
    return Other(k)


def mixed() -> Any:
    base = np.arange(100.0)
    views = {"all": base, "back": base[::-1], "column": base.reshape(10, 10)[:, 3]}
    words = {"words": {f"word {k}" for k in range(100)}, "large": np.zeros(1 << 17)}
    return {
        **views,
        **words,
        "born": array([1.0, 2.0]),
        "ma": np.ma.masked_array([1, 2], [False, True]),
    }


def unsteady(kind: type) -> Callable[[], Any]:
    return lambda: {"odd": kind(), "array": np.ones(5)}


def use_frame(value: Any) -> Any:
    value.groupby("b")["a"].mean()
    value.mean(numeric_only=True)
    value.set_index("b").loc["x"]
    return value.index.is_unique, value.to_numpy(), value.sort_values("a"), value.T


def wide_frame() -> Any:
    made = frame()
    for k in range(5):
        made[f"column {k}"] = [k, k]
    return made


def forest() -> Any:
    ensemble = pytest.importorskip("sklearn.ensemble")
    rows = np.random.default_rng(0).normal(size=(60, 3))
    return ensemble.RandomForestClassifier(5, random_state=0).fit(rows, rows[:, 0] > 0)


def arrow() -> Any:
    table = pytest.importorskip("pyarrow").table({"a": range(1000), "b": ["x"] * 1000})
    return [table, table.slice(10)]


def polars() -> Any:
    return pytest.importorskip("polars").DataFrame({"a": [1, 2], "b": ["x", "y"]})


def tensors() -> Any:
    torch = pytest.importorskip("torch")
    whole = torch.arange(12.0)
    return {"whole": whole, "part": whole[3:], "large": torch.zeros(1 << 18)}


READ: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "arrays": (mixed, lambda v: (v["all"].sum(), "word 3" in v["words"], v["born"][0])),
    "array": (lambda: np.ones((9, 9)), lambda v: v.sum()),
    "none": (lambda: None, lambda v: v),
    "counts its pickles": (unsteady(Counts), lambda v: v["odd"].items),
    "another pickle each time": (unsteady(Names), lambda v: v["odd"].items),
    "another object each time": (unsteady(Stamped), lambda v: v["odd"].items),
    "cycle": (Node, lambda v: v.items[0].others),
    "function": (lambda: {"f": lambda x: x + 1}, lambda v: v["f"](1)),
    "frame": (frame, use_frame),
    "frame in pieces": (wide_frame, use_frame),
    "forest": (forest, lambda v: v.predict(np.ones((4, 3)))),
    "arrow": (arrow, lambda v: v[1]["a"].to_pylist()),
    "polars": (polars, lambda v: v.sum()),
    "tensors": (tensors, lambda v: (v["whole"].sum(), v["part"][0])),
}


@parallel
def read(i: int, value: Shared[Any], kind: str) -> int:
    READ[kind][1](value)
    return i


@pytest.mark.parametrize("kind", READ)
def test_reading_is_no_change(backend: Any, kind: str) -> None:
    """A value that is only read gives no error, whatever it is and however it pickles."""
    task = read.with_options(backend=backend, chunksize=2)
    assert list(range(8)) == task.map(range(8), value=READ[kind][0](), kind=kind)


@parallel
def add_item(i: int, value: Shared[Any]) -> int:
    if i == 3:
        value["odd"].items.append(i)
    return i


@pytest.mark.parametrize("kind", [Counts, Names, Stamped])
def test_change_beside_an_unsteady_pickle_is_found(backend: Any, kind: Any) -> None:
    """Where pickling tells nothing, what can be compared is compared."""
    task = add_item.with_options(backend=backend, chunksize=2)
    with pytest.raises(ChangedValueError) as caught:
        task.map(range(8), value={"odd": kind()})
    assert "value['odd'].items[1]" == caught.value.path


def test_tensor_that_is_written_here_is_found() -> None:
    """Tensors are copies on serial, and a write into one is a change like any other."""
    torch = pytest.importorskip("torch")
    whole = torch.arange(12.0)

    @parallel(backend="serial", chunksize=1)
    def write(i: int, value: Shared[Any]) -> int:
        if i == 2:
            value["part"][0] = -1
        return i

    with pytest.raises(ChangedValueError, match=r"item 2 changed value\["):
        write.map(range(4), value={"whole": whole, "part": whole[3:]})


# ----------------------------------------------------------------------------- what it costs


class Told:
    """Writes down each time that it is pickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __getstate__(self) -> Any:
        count_up(self.folder, "pickled")
        return {"folder": self.folder}


@parallel
def nothing(i: int, value: Shared[Any]) -> int:
    return i


def test_nothing_is_pickled_for_chunks_without_strict(backend: Any, tmp_path: Any) -> None:
    """Without the option no chunk pickles what is shared; with it, each does once."""
    task = nothing.with_options(backend=backend, chunksize=1, workers=1, verify="identity")
    value = Told(str(tmp_path))
    task.with_options(strict=False).map(range(1), value=value)
    before = counted(tmp_path)["pickled"]
    task.with_options(strict=False).map(range(20), value=value)
    per_call = counted(tmp_path)["pickled"] - before
    assert per_call == (1 if backend in {"serial", "thread"} else 0)
    task.map(range(20), value=value)
    for_strict = counted(tmp_path)["pickled"] - before - 2 * per_call
    # Two before the first chunk in a worker: that they are equal has to be seen.
    assert for_strict in ({22, 24} if backend == "ray" else {22})


@pytest.mark.parametrize(("seconds", "size"), [(None, 25), (1.0, 25), (1e-6, 200)])
def test_automatic_chunks_are_few(seconds: Any, size: int) -> None:
    """However long the items take, a CPU gets no more than four chunks: each costs a look."""
    pace = Pace()
    pace.seconds = seconds
    chunker = Chunker(range(200), 200, "auto", Concurrency(4, 2), pace, costly=True)
    sizes = []
    while (chunk := chunker.next(None)) is not None and chunk.items:
        sizes.append(len(chunk.items))
    assert size == sizes[0]
    assert 200 == sum(sizes)
    assert len(sizes) <= 8


@pytest.mark.parametrize("strict", [True, False])
def test_chunks_are_not_cut(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has nothing to do gets no part of a chunk whose end has to be known."""
    calls: list[Call] = []
    session = SerialBackend.session

    def note(backend: SerialBackend, call: Call, sink: Any) -> Any:
        calls.append(call)
        return session(backend, call, sink)

    monkeypatch.setattr(SerialBackend, "session", note)
    nothing.with_options(backend="serial", strict=strict).map(range(3), value=1)
    assert [not strict] == [call.splits for call in calls]


def test_look_is_not_the_time_of_the_item() -> None:
    """What the look takes is not counted by a timeout, nor by what learns how long items take."""
    guard = Guard(
        "f",
        range(1),
        fail_fast=True,
        guarded_values=[GuardedValue("x", 1, Slow(), bool, bool)],
        position=int,
    )
    told: list[float] = []
    guard.begins, guard.ended = lambda: told.append(-1.0), told.append
    assert 5 == guard.after(lambda x: x)(5)
    assert [-1.0, guard.seconds] == told
    assert guard.seconds >= 0.02


class Slow(Original):
    """Takes its time to see that nothing was changed."""

    def __init__(self) -> None: ...

    def change(self, value: Any) -> str | None:
        end = time.monotonic() + 0.02
        while time.monotonic() < end:
            pass
        return None


def test_original_is_made_once_per_worker() -> None:
    """A value that was given back is passed again as it is; one that was not is decoded again."""
    payload = codec.encode({"a": [1]})
    store = BytesStore.of(payload)
    values = Values()
    values.attach(1, store)
    value, original = values.take(1)
    values.give_back(1, original)
    assert values.can_take(1)
    again, same = values.take(1)
    assert (True, True) == (value is again, original is same)
    assert not values.can_take(1)
    third, _ = values.take(1)
    assert third is not value


def test_use_without_strict_ends_the_trust() -> None:
    """A value that was given to tasks that are not watched is decoded again for those that are."""
    values = Values()
    values.attach(1, BytesStore.of(codec.encode({"a": [1]})))
    value, original = values.take(1)
    values.give_back(1, original)
    assert values.value(1) is value
    assert values.take(1)[0] is not value


def test_large_results_do_not_hide_a_change(ray_runtime: Any) -> None:
    """On Ray a chunk ends after a large result: what was changed is told at the next item."""

    @parallel(backend="ray", chunksize=4, workers=1, return_exceptions=True)
    def large(i: int, value: Shared[dict[str, Any]]) -> Any:
        before = "seen" in value
        if i == 0:
            value["seen"] = i
        return np.full(1 << 17, float(before))

    results = large.map(range(4), value={})
    errors = [r for r in results if isinstance(r, ChangedValueError)]
    assert ["value['seen']"] == [error.path for error in errors]
    assert 0 in errors[0].items
    assert [0.0] * 3 == [r[0] for r in results if not isinstance(r, ChangedValueError)]


@pytest.mark.usefixtures("no_leaks")
def test_nothing_is_left() -> None:
    """Values that were decoded again, and those that were let go, leave no memory."""
    value = {"a": np.ones(1 << 17)}
    task = look.with_options(backend="process", chunksize=1, return_exceptions=True)
    assert 1 == sum(isinstance(r, ChangedValueError) for r in task.map(range(9), value=value, at=4))
    shutdown()


# ------------------------------------------------------------------------------- differences


def test_no_difference_in_a_round_trip() -> None:
    """Two decoded copies of a value do not differ."""
    for make, _, _ in CHANGES.values():
        value = make()
        payload = codec.encode(value)
        copies = [codec.decode(payload.head, map(bytearray, payload.buffers)) for _ in range(2)]
        assert [] == list(differences(*copies))


def test_all_differences_are_told_in_order() -> None:
    """Each difference has its way, in the order in which pickle comes to them."""
    one = {"a": [1, 2], "b": {"c": 1.0}, "d": (1, [2])}
    other = {"a": [1, 3], "b": {"c": 2.0}, "d": (1, [2, 3]), "e": 1}
    assert ["['a'][1]", "['b']['c']", "['d'][1][1]", "['e']"] == list(differences(one, other))


def test_deep_value_is_compared() -> None:
    """Depth is no matter: nothing here recurs."""
    one: list[Any] = []
    other: list[Any] = [1]
    for _ in range(5000):
        one, other = [one], [other]
    assert ["[0]" * 5001] == list(differences(one, other))


def test_equality_of_user_classes_is_not_asked() -> None:
    """A class whose ``==`` says anything is compared by what it holds."""

    class Liar:
        def __init__(self, x: int) -> None:
            self.x = x

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert [".x"] == list(differences(Liar(1), Liar(2)))


def test_value_that_no_longer_pickles_is_changed() -> None:
    """What cannot be encoded any more is not what it was."""
    made: dict[str, Any] = {"a": 1}
    original = Original(made, lambda: {"a": 1})
    assert original.change(made) is None
    made["lock"] = threading.Lock()
    assert "['lock']" == original.change(made)
