"""What type checkers see of the library: every line is right, and both of them have to agree."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from pathlib import Path
from typing import Annotated, assert_type

import numpy as np
import numpy.typing as npt

import sharedtask
from sharedtask import (
    CacheInfo,
    CopyOnWrite,
    Handle,
    Partition,
    Partitioned,
    PerWorker,
    Reduced,
    Reduction,
    Rng,
    Shared,
    Task,
    TaskFuture,
    WorkerInfo,
    multi_process,
    parallel,
    partition,
    per_item,
    per_worker,
    share,
    worker_info,
)

Floats = npt.NDArray[np.float64]


@parallel
def score(image: int, model: Shared[dict[str, Floats]], threshold: float = 0.5) -> float:
    """A task as the first page shows it."""
    assert_type(model, dict[str, Floats])
    return float(model["weights"][image].sum()) + threshold


@parallel(workers=2, chunksize="auto", retry_on=[OSError, ValueError], desc="texts")
def text(number: int, /, *parts: str, table: CopyOnWrite[Floats] | None = None) -> str:
    """A task made with options."""
    assert_type(table, Floats | None)
    return "".join(parts) * number


@parallel(shared=["words"], copy_on_write=("scratch",))
def find(word: str, words: list[str], scratch: Floats) -> int | None:
    """A task whose shared parameters are named in the decorator."""
    scratch[0] = 1
    return words.index(word) if word in words else None


@parallel
def square(rows: slice, out: Partitioned[Floats], by: float = 1.0) -> int:
    """A task that writes blocks."""
    assert_type(out, Floats)
    out *= out * by
    return len(out[rows])


@parallel
def paint(
    tile: tuple[slice, float],
    image: Annotated[Floats, Partition(by=0)],
    mask: Annotated[Floats, Partition(by=lambda item: item[0])],
) -> None:
    """A task whose items hold the index of their block."""
    assert_type(image, Floats)
    image += tile[1] * mask


@contextlib.contextmanager
def opened(path: str) -> Generator[sqlite3.Connection]:
    """A context manager, of which a task gets what ``with`` would."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        yield db


@parallel(initializer=(print, ["a worker"]))
def rows(number: int, db: PerWorker[sqlite3.Connection], scale: float = 1.0) -> float:
    """A task with a value that each worker makes."""
    assert_type(db, sqlite3.Connection)
    return scale * len(db.execute("select ?", (number,)).fetchall())


def makes_values(path: str) -> None:
    """A recipe has the type of what it makes."""
    assert_type(per_worker(sqlite3.connect, path, timeout=3.0), sqlite3.Connection)
    assert_type(per_worker(opened, path), sqlite3.Connection)
    assert_type(per_worker(lambda: {"a": 1}), dict[str, int])
    assert_type(rows.map([1], db=per_worker(sqlite3.connect, path)), list[float])
    assert_type(rows.map([1], per_worker(opened, path), scale=2.0), list[float])
    assert_type(rows(1, db=per_worker(sqlite3.connect, path)), float)
    rows.map([1], db=per_worker(sqlite3.connect, path, close=sqlite3.Connection.close))
    rows.with_options(initializer=print).submit(1, per_worker(sqlite3.connect, path))
    info = worker_info()
    if info is not None:
        assert_type(info, WorkerInfo)
        assert_type(info.count, int)


@parallel(seed=7)
def toss(throws: int, rng: Rng = per_item, *, sides: int = 2) -> int:
    """A task with random numbers of its own."""
    assert_type(rng, np.random.Generator)
    return int(rng.integers(sides, size=throws).sum())


@parallel(partitioned=["out"])
def fill(index: int, out: Floats) -> None:
    """A task whose partitioned parameter is named in the decorator."""
    out[...] = index


@parallel
def tally(
    row: int,
    hist: Reduced[Floats],
    best: Annotated[Floats, Reduction("max", deterministic=True)],
    joined: Annotated[Reduced[Floats], Reduction(lambda one, other: one + other, identity=0)],
) -> int:
    """A task that adds to arrays."""
    assert_type(hist, Floats)
    hist[row] += 1
    np.maximum(best, joined, out=best)
    return row


@parallel(reduced={"hist": "sum", "best": np.maximum})
def tally_plain(row: int, hist: Floats, best: Floats) -> None:
    """A task whose arrays are named in the decorator, with what combines them."""
    hist[row] += best[row]


class Model:
    """Methods of every kind are tasks."""

    @parallel
    def predict(self, row: int, *, scale: float = 1.0) -> float:
        return row * scale

    @parallel(timeout=3, shared=["self"])
    def label(self, row: int) -> str:
        return str(row)

    @parallel
    @staticmethod
    def twice(number: int) -> int:
        return 2 * number

    @staticmethod
    @parallel
    def thrice(number: int) -> int:
        return 3 * number

    @parallel
    @classmethod
    def named(cls, number: int, suffix: str = "") -> str:
        return f"{cls.__name__} {number}{suffix}"


class Larger(Model):
    """Inherits its tasks."""


model: dict[str, Floats] = {"weights": np.eye(3)}
numbers: list[int] = [1, 2, 3]


def a_task_is_its_function() -> None:
    """Called, it takes what the function takes, by position or by name."""
    assert_type(score(1, model), float)
    assert_type(score(image=1, model=model, threshold=0.25), float)
    assert_type(text(2, "a", "b", table=None), str)
    assert_type(find("a", ["a"], np.zeros(1)), int | None)


def many_items() -> None:
    """Items are what the first parameter takes; the rest is as in a call."""
    assert_type(score.map(range(3), model), list[float])
    assert_type(score.map(numbers, model=model, threshold=1), list[float])
    assert_type(score.map((n for n in numbers), model=model), list[float])
    assert_type(score.map(np.arange(3).tolist(), model=model), list[float])
    assert_type(score.starmap([(1, model), (2, model)], threshold=0.1), list[float])
    assert_type(score.imap(numbers, model=model), Generator[float, None, None])
    assert_type(score.imap_unordered(numbers, model=model), Generator[float, None, None])
    assert_type(score.submit(1, model=model), TaskFuture[float])
    assert_type(score.submit(1, model=model).result(), float)
    assert_type(score.submit(1, model=model).kill(), bool)
    assert_type(text.map([1], "a", "b", table=np.zeros(1)), list[str])
    assert_type(toss.map(numbers), list[int])
    assert_type(toss.with_options(seed=[1, 2]).imap(numbers, sides=6), Generator[int, None, None])
    assert_type(toss(3, np.random.default_rng(1)), int)
    assert_type(find.map({"a", "b"}, words=["a"], scratch=np.zeros(1)), list[int | None])


def totals(hist: Floats) -> None:
    """What tasks add to are the caller's own arrays."""
    assert_type(tally.map(numbers, hist=hist, best=hist.copy(), joined=hist.copy()), list[int])
    assert_type(tally_plain.map(numbers, hist, hist.copy()), list[None])
    assert_type(tally_plain.submit(3, hist=hist, best=hist.copy()), TaskFuture[None])


def blocks(out: Floats) -> None:
    """Arrays of any making are written by blocks; those in shared memory are plain arrays."""
    assert_type(partition(10, 3), list[slice])
    assert_type(square.map(partition(10, 3), out=out), list[int])
    assert_type(square.starmap([(slice(1),), (slice(1, 2),)], out=out, by=2), list[int])
    assert_type(square.imap(partition(10, 3), out), Generator[int, None, None])
    assert_type(square.submit(slice(3), out=sharedtask.zeros(10)), TaskFuture[int])
    assert_type(square(slice(3), out), int)
    assert_type(paint.map([(slice(3), 0.5)], image=out, mask=out.copy()), list[None])
    assert_type(fill.map(range(3), out=sharedtask.array([1.0, 2.0, 3.0])), list[None])
    made: Floats = sharedtask.empty((2, 3), dtype=np.float64, order="F")
    assert_type(fill.map(numbers, made), list[None])


async def in_an_event_loop() -> None:
    """The coroutines take the same arguments."""
    assert_type(await score.amap(numbers, model=model), list[float])
    assert_type(score.aimap(numbers, model=model), AsyncGenerator[float, None])
    async for result in score.aimap(numbers, model):
        assert_type(result, float)
    both = await asyncio.gather(score.amap(numbers, model), text.amap([1], "a"))
    assert_type(both, tuple[list[float], list[str]])


def other_options() -> None:
    """``with_options`` changes nothing about the arguments."""
    faster = score.with_options(backend="thread", workers=None, verify="identity", retries=1)
    assert_type(faster.map(numbers, model=model), list[float])
    limited = score.with_options(memory_limit="2GiB", tasks_per_worker=100, logs=False)
    assert_type(limited.with_options(memory_limit=10**9).map(numbers, model), list[float])
    with sharedtask.defaults(chunksize=10, progress=True, retry_on=OSError):
        assert_type(score.map(numbers, model), list[float])
    recorded = score.with_options(journal=Path("run.sqlite"))
    assert_type(recorded.with_options(journal=None).map(numbers, model), list[float])
    assert_type(score.cache_info(), CacheInfo)
    assert_type(score.cache_info().nbytes, int)


def methods(one: Model, larger: Larger) -> None:
    """A method that is taken from an object has lost its ``self``, one of a class its ``cls``."""
    assert_type(one.predict(1, scale=2.0), float)
    assert_type(one.predict.map(numbers, scale=2.0), list[float])
    assert_type(one.predict.with_options(workers=2).imap(numbers), Generator[float, None, None])
    assert_type(one.label.submit(1), TaskFuture[str])
    assert_type(larger.predict.map(numbers), list[float])
    assert_type(Model.predict(one, 1), float)
    assert_type(Model.twice(1), int)
    assert_type(Model.twice.map(numbers), list[int])
    assert_type(Model.thrice.map(numbers), list[int])
    assert_type(Model.named(1), str)
    assert_type(Model.named.map(numbers, suffix="!"), list[str])
    assert_type(one.named.map(numbers, suffix="!"), list[str])
    assert_type(Larger.named.with_options(workers=2).map(numbers), list[str])


def handles() -> None:
    """A handle stands where its value would stand, and knows the type of its value."""
    with share(model) as handle:
        assert_type(handle, Handle[dict[str, Floats]])
        assert_type(handle.value, dict[str, Floats])
        assert_type(handle.nbytes, int)
        assert_type(score.map(numbers, handle), list[float])
        assert_type(score.map(numbers, model=handle), list[float])
        assert_type(score(1, model=handle), float)
        assert_type(score.submit(1, model=handle, threshold=0.1), TaskFuture[float])
        assert_type(find.map(["a"], words=share(["a"]), scratch=np.zeros(1)), list[int | None])


def functions_of_others(run: Callable[[int, str], bytes], anything: Callable[..., bool]) -> None:
    """Whatever can be called becomes a task of the same type."""
    assert_type(parallel(run), Task[[int, str], bytes])
    assert_type(parallel(run).map(numbers, "a"), list[bytes])
    assert_type(parallel(workers=2)(run), Task[[int, str], bytes])
    assert_type(parallel(anything).map(numbers, option=1), list[bool])
    assert_type(parallel(len).map(["a"]), list[int])


def as_a_parameter(task: Task[[int], float], items: Iterable[int]) -> list[float]:
    """A task can be asked for by its type."""
    assert_type(task(1), float)
    return task.map(items)


def in_one_call(run: Callable[[int, str], bytes], anything: Callable[..., bool]) -> None:
    """``multi_process`` returns what the function returns, or paths."""
    shared = multi_process(run, numbers, backend="mp", shared_kwargs=["a"], desc="b", a="c")
    assert_type(shared, list[bytes])
    assert_type(multi_process(run, items=numbers, workers=2, gpus=0.5), list[bytes])
    assert_type(multi_process(run, inputs=range(3), progress=False), list[bytes])
    assert_type(multi_process(anything, ["a"]), list[bool])
    assert_type(multi_process(score, numbers, model=model), list[float])
    assert_type(multi_process(Model().predict, numbers, scale=2.0), list[float])
    assert_type(multi_process(score, numbers, lazy_output=True, workers=2), list[str])
