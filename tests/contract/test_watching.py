"""strict="auto", the default: a task that changes what is shared is warned of, once per call."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import warnings
from collections import OrderedDict, UserDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from changes import CHANGES

from sharedtask import (
    ChangedValueWarning,
    CopyOnWrite,
    Shared,
    defaults,
    multi_process,
    parallel,
    share,
)
from sharedtask.annotations import Role
from sharedtask.backends.worker.call_header import CallHeader, SharedParameter
from sharedtask.backends.worker.watching import Watcher, seconds_for
from sharedtask.serialization import codec
from sharedtask.serialization.container_snapshot import Snapshot
from sharedtask.store.decoded import Values
from sharedtask.store.stores import BytesStore
from sharedtask.task.callsite import Callsite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def two_workers() -> Iterator[None]:
    with defaults(workers=2):
        yield


def warned(call: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What a call gives, and the warnings of changes that it shows."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        result = call()
    return result, [w for w in shown if w.category is ChangedValueWarning]


@dataclass
class Layer:
    seen: list[int] = field(default_factory=list)


class Model:
    """Keeps a count, a cache that it hides, and one that Python keeps for it."""

    def __init__(self) -> None:
        self.weights = np.ones(10)
        self.layers = [Layer() for _ in range(3)]
        self.runs = 0
        self._known: dict[int, int] = {}

    @functools.cached_property
    def total(self) -> float:
        return float(self.weights.sum())

    @parallel
    def touch(self: Shared[Any], i: int) -> int:
        self.runs += 1
        return i


def set_in(value: Any, name: Any, new: Any) -> None:
    value[name] = new


WRITES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "dict": (lambda: {"a": 1}, lambda v: set_in(v, "seen", 1), "['seen']"),
    "list": (lambda: {"seen": []}, lambda v: v["seen"].append(1), "['seen'][0]"),
    "set": (lambda: {"seen": {0}}, lambda v: v["seen"].add(1), "['seen']"),
    "deque": (lambda: [deque([0])], lambda v: v[0].append(1), "[0][1]"),
    "bytearray": (lambda: [bytearray(9)], lambda v: set_in(v[0], 0, 1), "[0]"),
    "attribute": (Model, lambda v: setattr(v, "runs", 1), ".runs"),
    "list of an attribute": (Model, lambda v: v.layers[1].seen.append(1), ".layers[1].seen[0]"),
    "array of objects": (
        lambda: np.array([[1], None], object),
        lambda v: v[0].append(2),
        "[0][1]",
    ),
    "missing key that is read": (lambda: defaultdict(list), lambda v: v["new"], "['new']"),
}


@parallel
def write(i: int, value: Shared[Any], kind: str, at: int = 3) -> int:
    if i == at:
        WRITES[kind][1](value)
    return i


@pytest.mark.parametrize("kind", WRITES)
def test_change_is_warned_of(backend: Any, kind: str) -> None:
    """A task that changes a container gets its result, and the caller a warning with the path."""
    make, _, way = WRITES[kind]
    task = write.with_options(backend=backend)
    result, shown = warned(lambda: task.map(range(20), value=make(), kind=kind))
    assert list(range(20)) == result
    (warning,) = [w.message for w in shown]
    assert ("write", "value", f"value{way}") == (
        warning.function,
        warning.parameter,
        warning.path,
    )
    assert 3 in warning.items


@parallel
def count(i: int, value: Shared[dict[str, Any]]) -> int:
    value["seen"].append(i)
    return len(value["seen"])


def test_one_warning_for_a_call(backend: Any) -> None:
    """However many chunks change something, a call warns once."""
    task = count.with_options(backend=backend, chunksize=2)
    _, shown = warned(lambda: task.map(range(40), value={"seen": []}))
    assert 1 == len(shown)


def test_later_calls_see_what_was_shared(backend: Any) -> None:
    """The changed copy is dropped: each call begins with the value as the caller has it."""
    value: dict[str, Any] = {"seen": [], "weights": np.ones(1 << 15)}
    task = count.with_options(backend=backend, chunksize=100)
    for _ in range(3):
        result, shown = warned(lambda: task.map(range(5), value=value))
        assert ([1, 2, 3, 4, 5], 1) == (result, len(shown))
    assert [] == value["seen"]


def test_later_chunks_see_what_was_shared(backend: Any) -> None:
    """Where a look follows each chunk, a change is seen by no other chunk."""
    task = count.with_options(backend=backend, chunksize=1)
    first, _ = warned(lambda: task.map(range(1), value={"seen": []}))
    assert [1] == first


def test_text_says_what_and_what_to_do(backend: Any) -> None:
    """The warning names task, item and path, and the ways out."""
    task = write.with_options(backend=backend, workers=1, chunksize=1)
    _, shown = warned(lambda: task.map(range(4), value={}, kind="dict"))
    text = str(shown[0].message)
    assert text.startswith("write(): item 3 changed value['seen'], which is shared.")
    for word in ("CopyOnWrite", "strict=True", "strict=False", "your own object stays as it is"):
        assert word in text


def test_warning_stands_where_the_user_calls(backend: Any) -> None:
    """File and line are those of the call, whichever thread or worker has found the change."""
    task = write.with_options(backend=backend)
    here = Callsite.here()
    _, shown = warned(lambda: task.map(range(5), value={}, kind="dict"))
    assert (__file__, here.line + 1) == (shown[0].filename, shown[0].lineno)


# ------------------------------------------------------------------------------- every door


def _in_a_loop(task: Any, given: dict[str, Any]) -> Any:
    async def run() -> Any:
        return await task.amap(range(6), **given)

    return asyncio.run(run())


def _as_a_stream(task: Any, given: dict[str, Any]) -> Any:
    async def run() -> Any:
        return [i async for i in task.aimap(range(6), **given)]

    return asyncio.run(run())


DOORS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "map": lambda task, given: task.map(range(6), **given),
    "map_into": lambda task, given: task.map_into(np.zeros(6), range(6), **given),
    "starmap": lambda task, given: task.starmap([(i,) for i in range(6)], **given),
    "imap": lambda task, given: list(task.imap(range(6), **given)),
    "imap_unordered": lambda task, given: list(task.imap_unordered(range(6), **given)),
    "submit": lambda task, given: task.submit(3, **given).result(60),
    "amap": _in_a_loop,
    "aimap": _as_a_stream,
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_warns(backend: Any, door: str) -> None:
    """All ways to run a task warn, in the caller's line."""
    task = write.with_options(backend=backend)
    given: dict[str, Any] = {"value": {}, "kind": "dict"}
    _, shown = warned(lambda: DOORS[door](task, given))
    assert ["value['seen']"] == [w.message.path for w in shown]
    assert __file__ == shown[0].filename


@pytest.mark.parametrize("door", DOORS)
def test_filter_makes_it_an_error_there(backend: Any, door: str) -> None:
    """With the filter "error" the call raises the warning; a future has it as its outcome."""
    task = write.with_options(backend=backend)
    given: dict[str, Any] = {"value": {}, "kind": "dict"}
    with pytest.raises(ChangedValueWarning) as caught:  # "error" is the filter of this suite
        DOORS[door](task, given)
    assert "value['seen']" == caught.value.path
    assert [1, 2] == task.map([1, 2], **given)


def test_future_that_fails_has_a_note(backend: Any) -> None:
    """Where the item raises and the filter is "error", a note on its exception tells of it."""

    @parallel(backend=backend)
    def fail(i: int, value: Shared[dict[str, Any]]) -> None:
        value["seen"] = i
        raise KeyError(i)

    error = fail.submit(1, value={}).exception(60)
    assert isinstance(error, KeyError)
    assert any("changed value['seen']" in note for note in error.__notes__)


def test_asyncio_gets_the_future(backend: Any) -> None:
    """A future wrapped for asyncio ends, with the warning as its exception."""

    async def run() -> Any:
        future = write.with_options(backend=backend).submit(3, value={}, kind="dict")
        return await asyncio.wait_for(asyncio.wrap_future(future), 60)

    with pytest.raises(ChangedValueWarning):
        asyncio.run(run())


def test_futures_warn_where_they_were_submitted(backend: Any) -> None:
    """Whichever thread waits for a future, the warning has the line of submit."""
    task = write.with_options(backend=backend)

    def run() -> Any:
        futures = [task.submit(3, value={}, kind="dict") for _ in range(3)]
        concurrent.futures.wait(futures, 60)
        return [future.result() for future in futures]

    results, shown = warned(run)
    assert ([3, 3, 3], 3) == (results, len(shown))
    assert {__file__} == {w.filename for w in shown}


def test_self_and_handles_are_watched(backend: Any) -> None:
    """A shared self and a value behind a handle are watched like others."""
    with defaults(backend=backend):
        _, shown = warned(lambda: Model().touch.map(range(3)))
        assert ["self.runs"] == [w.message.path for w in shown]
        with share({"seen": list[int]()}) as handle:
            _, shown = warned(lambda: write.map(range(5), value=handle, kind="list"))
        assert ["value['seen'][0]"] == [w.message.path for w in shown]


def test_old_calling_convention_warns() -> None:
    """What multi_process shares is watched too."""

    def note(i: int, *, value: Any) -> int:
        value.append(i)
        return i

    def run() -> Any:
        return multi_process(
            note,
            range(4),
            workers=1,
            backend="mp",
            shared_kwargs=["value"],
            value=[],
            progress=False,
        )

    _, shown = warned(run)
    assert ["value"] == [w.message.parameter for w in shown]


def test_strict_decides(backend: Any) -> None:
    """strict=False says nothing; an equal setting in defaults and variables counts as well."""
    task = write.with_options(backend=backend)
    given: dict[str, Any] = {"value": {}, "kind": "dict"}
    assert [3] == task.with_options(strict=False).map([3], **given)
    with defaults(strict=False):
        assert [3] == task.map([3], **given)


def test_variable_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """SHAREDTASK_STRICT has the words auto, 0 and 1."""
    monkeypatch.setenv("SHAREDTASK_STRICT", "0")
    assert [3] == write.with_options(backend="serial").map([3], value={}, kind="dict")
    monkeypatch.setenv("SHAREDTASK_STRICT", "auto")
    with pytest.raises(ChangedValueWarning):
        write.with_options(backend="serial").map([3], value={}, kind="dict")


def test_change_by_tasks_that_were_not_watched_is_not_told(backend: Any) -> None:
    """What a call with strict=False has changed, a later call neither sees nor is blamed for."""
    value = {"weights": np.ones(1 << 15)}
    task = write.with_options(backend=backend, workers=1)
    task.with_options(strict=False).map([3], value=value, kind="dict")

    @parallel(backend=backend, workers=1)
    def look(i: int, value: Shared[dict[str, Any]]) -> list[str]:
        return list(value)

    assert [["weights"]] == look.map([1], value=value)


# ------------------------------------------------------------------------------ no false alarm


@parallel
def read(i: int, model: Shared[Any]) -> float:
    model._known[i] = i
    model._last = i
    return float(model.total)


def test_caches_raise_no_alarm(backend: Any) -> None:
    """Attributes with an underscore and cached properties may be filled by tasks."""
    assert [10.0] * 20 == read.with_options(backend=backend).map(range(20), model=Model())


def test_equal_value_is_no_change(backend: Any) -> None:
    """A task that sets what is there already, by another object, changes nothing."""

    @parallel(backend=backend, chunksize=2)
    def set_again(i: int, value: Shared[dict[str, Any]]) -> int:
        value["word"] = str(b"word", "ascii")
        value["weights"] = value["weights"].copy()
        value["list"] = list(value["list"])
        value["words"].add("new")
        value["words"].discard("new")
        return i

    value = {"word": "word", "weights": np.ones(5), "words": {"a", "b"}, "list": [[1]]}
    assert list(range(12)) == set_again.map(range(12), value=value)


def test_private_copies_may_be_changed(backend: Any) -> None:
    """CopyOnWrite values are the item's own, and are not looked at."""

    @parallel(backend=backend)
    def change(i: int, value: CopyOnWrite[dict[str, Any]]) -> int:
        value["seen"] = i
        return len(value)

    assert [1] * 5 == change.map(range(5), value={})


def test_captured_variables_are_not_looked_at(backend: Any) -> None:
    """A cache that a function captures, or has as a global, is filled once per worker: no alarm."""
    known: dict[int, int] = {}

    @parallel(backend=backend, strict="auto")
    def remember(i: int, value: Shared[dict[str, Any]]) -> int:
        return known.setdefault(i, i)

    assert list(range(10)) == remember.map(range(10), value={})
    strict = remember.with_options(strict=True)
    assert list(range(10)) == strict.map(range(10), value={})


class Told:
    """Says when it is pickled, hashed, compared or asked for its attributes."""

    def __init__(self) -> None:
        self.names = ["a"]

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError

    __eq__ = __ne__ = __repr__ = __getattr__ = __iter__ = __len__ = __bool__ = _refuse
    __hash__ = object.__hash__


def test_no_code_of_a_class_is_run() -> None:
    """To look takes no method of the user's."""
    value = {"told": Told()}
    snapshot = Snapshot(value)
    assert snapshot.change(1.0) is None
    value["told"].names.append("b")
    assert "['told'].names[1]" == snapshot.change(1.0)


# -------------------------------------------------------------------------------- snapshots


@pytest.mark.parametrize("kind", [k for k in CHANGES if k not in {"new attribute", "own reduce"}])
def test_snapshot_finds_what_strict_finds(kind: str) -> None:
    """The same ways as with strict=True, in the same words."""
    make, change, way = CHANGES[kind]
    payload = codec.encode(make())
    value = codec.decode(payload.head, map(bytearray, payload.buffers))
    snapshot = Snapshot(value)
    assert snapshot.change(1.0) is None
    change(value)
    assert way == snapshot.change(1.0)


def test_private_attributes_do_not_count() -> None:
    """Nor does what they hold."""
    model = Model()
    snapshot = Snapshot(model)
    model._known[1] = 1
    model._more = [1]  # type: ignore[attr-defined]
    assert 10.0 == model.total
    assert snapshot.change(1.0) is None
    model.runs += 1
    assert ".runs" == snapshot.change(1.0)


class Lazy:
    """Opens what it keeps from pickle when it is first needed."""

    def __init__(self) -> None:
        self.names = ["a"]
        self.file: Any = None

    def __getstate__(self) -> Any:
        return {"names": self.names}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state, file=None)


def test_what_a_class_keeps_from_pickle_does_not_count() -> None:
    """It is made where it is needed, in each worker."""
    value = Lazy()
    snapshot = Snapshot(value)
    value.file = object()
    assert snapshot.change(1.0) is None
    value.names.append("b")
    assert ".names[1]" == snapshot.change(1.0)


def test_loggers_are_not_followed() -> None:
    """What pickles by its name is the process's own."""
    import logging

    value = {"log": logging.getLogger("test_watching")}
    snapshot = Snapshot(value)
    logging.getLogger("test_watching.more").setLevel(10)
    value["log"].setLevel(10)
    assert snapshot.change(1.0) is None


def test_large_containers_are_sampled() -> None:
    """Of a container of a million, its length and some entries are looked at."""
    table = {str(i): float(i) for i in range(1_000_000)}
    snapshot = Snapshot(table)
    assert snapshot.seconds < 5e-3
    assert snapshot.change(1.0) is None
    table["0"] = -1.0  # the first is in each sample
    assert "" == snapshot.change(1.0)
    table["0"] = 0.0
    snapshot = Snapshot(table)
    table["new"] = 1.0
    assert "" == snapshot.change(1.0)


def test_whole_look_fits_into_five_ms() -> None:
    """By its own estimate, whatever the value: what is too much is left out."""
    values: list[Any] = [
        [{"a": [i]} for i in range(20_000)],
        {str(i): i for i in range(100_000)},
        [{str(i): i for i in range(50_000)} for _ in range(9)],
    ]
    for value in values:
        assert Snapshot(value).seconds < 10e-3


def test_look_goes_on_where_the_last_one_ended() -> None:
    """With less time than it takes, several looks come to the end."""
    value = [[i] for i in range(200)]
    snapshot = Snapshot(value)
    value[150].append(1)
    ways = [snapshot.change(2e-5) for _ in range(20)]
    assert not snapshot.is_whole
    assert "[150][1]" in ways


def test_value_that_contains_itself_is_looked_at() -> None:
    """Each container is looked at once."""
    value: dict[str, Any] = {"list": []}
    value["self"] = value
    snapshot = Snapshot(value)
    assert snapshot.change(1.0) is None
    value["list"].append(1)
    assert "['list'][0]" == snapshot.change(1.0)


def test_reading_a_frame_is_no_change() -> None:
    """Frames of pandas put their blocks together when they are asked for all values."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({f"c{i}": np.arange(9.0) for i in range(5)})
    frame["text"] = pandas.Series(list("abcabcabc"), dtype=object)
    for i in range(5):
        frame[f"d{i}"] = i
    snapshot = Snapshot({"frame": frame})
    frame.mean(numeric_only=True)
    assert (9, 11) == frame.to_numpy().shape
    frame.groupby("text").sum()
    assert snapshot.change(1.0) is None
    frame.loc[3, "text"] = "z"
    assert "['frame']['text']" == snapshot.change(1.0)


def test_frames_tell_the_column() -> None:
    """A new, a replaced and a renamed column, and another index."""
    pandas = pytest.importorskip("pandas")

    def way(change: Callable[[Any], Any]) -> str | None:
        frame = pandas.DataFrame({"a": [1, 2], "b": [1.0, 2.0]})
        snapshot = Snapshot(frame)
        change(frame)
        return snapshot.change(1.0)

    assert "['c']" == way(lambda f: set_in(f, "c", 1))
    assert "['a']" == way(lambda f: set_in(f, "a", [2, 3]))
    assert way(lambda f: set_in(f, "a", [1, 2])) is None
    assert "['x']" == way(lambda f: setattr(f, "columns", ["x", "b"]))
    assert ".index" == way(lambda f: setattr(f, "index", [5, 6]))


def test_derived_containers_are_looked_at_in_both_ways() -> None:
    """Their entries and their attributes count; their own methods are not called."""

    class Table(dict[str, int]):
        def __init__(self) -> None:
            super().__init__(a=1)
            self.name = "table"

        def __len__(self) -> int:
            raise AssertionError

        __iter__ = keys = values = items = __getitem__ = __len__  # type: ignore[assignment]

    for change, way in (
        (lambda t: set_in(t, "b", 1), "['b']"),
        (lambda t: setattr(t, "name", ""), ".name"),
    ):
        table = Table()
        snapshot = Snapshot(table)
        assert snapshot.change(1.0) is None
        change(table)  # type: ignore[no-untyped-call]
        assert way == snapshot.change(1.0)


@pytest.mark.parametrize("make", [UserDict, OrderedDict])
def test_other_dicts_are_looked_at(make: Any) -> None:
    """A dict behind an attribute, and one that keeps its own order."""
    value = make(a=1, b=2)
    snapshot = Snapshot(value)
    assert snapshot.change(1.0) is None
    value["c"] = 3
    assert snapshot.change(1.0) is not None


# ---------------------------------------------------------------------------- when to look


def header_of(*, current: bool) -> CallHeader:
    parameters = (SharedParameter("value", 1, Role.SHARED, current),)
    return CallHeader(
        task="f",
        function=2,
        shared=parameters,
        star=False,
        timed=False,
        fail_fast=True,
        of_submits=False,
        strict="auto",
        bound_name=None,
        blas_threads=0,
        randomness=None,
        settings=3,
        cwd="/",
        workers=1,
        retries=False,
    )


def values_of(value: Any) -> Values:
    values = Values()
    values.attach(1, BytesStore.of(codec.encode(value)))
    return values


def test_each_chunk_that_is_long_enough_is_looked_at() -> None:
    """2 % of a chunk's time may be spent."""
    snapshot = Snapshot([[i] for i in range(1000)])
    assert 0.0 == seconds_for(snapshot.seconds, snapshot.seconds * 49, is_first=False, trusts=False)
    assert snapshot.seconds < seconds_for(
        snapshot.seconds, snapshot.seconds * 51, is_first=False, trusts=True
    )


def test_first_chunk_is_looked_at_in_any_case() -> None:
    """For 5 ms; for less in a call that has not looked at the value itself."""
    snapshot = Snapshot([[i] for i in range(1000)])
    assert 5e-3 == seconds_for(snapshot.seconds, 1e-6, is_first=True, trusts=False)
    assert 5e-5 == seconds_for(snapshot.seconds, 1e-6, is_first=True, trusts=True)


def test_chunk_without_a_look_is_settled_by_the_next_call() -> None:
    """What a short chunk has changed is found before another call begins, and dropped."""
    head, values = header_of(current=True), values_of([[i] for i in range(1000)])
    watcher = Watcher(values)

    def run(call: int, items: tuple[int, int]) -> Any:
        watcher.check_earlier(head, call)
        value = values.value_to_watch(1)
        if items[0] == 10:
            value[3].append("x")
        return watcher.check(head, call, items, 1e-6), value

    assert run(1, (0, 9))[0] is None
    told, changed = run(1, (10, 19))
    assert told is None
    told, fresh = run(2, (0, 9))
    assert ("value[3][1]", None) == (told.path, told.first)
    assert ([3, "x"], [3]) == (changed[3], fresh[3])
    assert "an item of an earlier call changed value[3][1]" in str(told.warning("f"))


def test_items_since_the_last_look_are_named() -> None:
    """Those of chunks of the same call that were not looked at are among them."""
    head, values = header_of(current=True), values_of([[i] for i in range(1000)])
    watcher = Watcher(values)
    value = values.value_to_watch(1)
    assert watcher.check(head, 1, (0, 9), 1e-6) is None
    assert watcher.check(head, 1, (10, 19), 1e-6) is None
    value[0].append(1)
    told: Any = watcher.check(head, 1, (40, 49), 1.0)
    assert (10, 49) == (told.first, told.last)


def test_dropped_value_is_not_kept() -> None:
    """A value that was changed is decoded again, and the changed one goes."""
    head, values = header_of(current=True), values_of({"model": Model()})
    watcher = Watcher(values)
    value = values.value_to_watch(1)
    value["model"].runs = 1
    assert watcher.check(head, 1, (0, 0), 1.0) is not None
    assert value is not values.value_to_watch(1)
    del value
    gc.collect()
    assert 1 == sum(type(o) is Model for o in gc.get_objects())
