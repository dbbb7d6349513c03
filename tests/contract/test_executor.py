"""``Executor``: what the standard says of one, and what this one adds."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import (
    Executor,
    InitializerError,
    OptionsError,
    SerializationError,
    TaskTimeoutError,
    WorkerDiedError,
    parallel,
)
from sharedtask.backends import registry
from sharedtask.backends.base import Chunk
from sharedtask.backends.process import backend as process
from sharedtask.testing import count_up, counted

pytestmark = pytest.mark.timeout(90)

LARGE = 1 << 17  # numbers of eight bytes: a megabyte


@pytest.fixture
def executor(backend: str) -> Iterator[Executor]:
    with Executor(2, backend=backend) as made:
        yield made


# ------------------------------------------------------------------------ functions and helpers


def add(x: int, y: int = 0, *, more: int = 0) -> int:
    return x + y + more


def pid(_: object = None) -> int:
    return os.getpid()


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def begin(folder: str, name: str, among: int = 1) -> int:
    """Runs until so many have begun; returns how many had when it began."""
    found = count_up(folder, name)
    while counted(folder)[name] < among:
        time.sleep(0.002)
    return found


def span(_: object = None) -> tuple[float, float]:
    began = time.monotonic()
    time.sleep(0.01)
    return began, time.monotonic()


def at_once(spans: list[tuple[float, float]]) -> int:
    """How many of the spans overlap at most."""
    steps = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    return max(itertools.accumulate(change for _, change in steps))


class UserError(Exception):
    pass


def fail(x: int) -> int:
    raise UserError(x)


def fail_at(x: int, at: int) -> int:
    return fail(x) if x == at else x


def until(what: Callable[[], Any]) -> None:
    limit = time.monotonic() + 40
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.002)


# ------------------------------------------------------------------------------------- submit


def test_submit_calls_any_function(executor: Executor) -> None:
    """Functions of modules, closures, lambdas, methods and builtins are called as they are."""
    given = 3
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (add, (1, 2)),
        (lambda x: x + given, (4,)),
        (functools.partial(add, 1), (5,)),
        ([1, 2].count, (2,)),
        (pow, (2, 3)),
        (str.upper, ("a",)),
        (parallel(add), (1, 1)),
    ]
    found = [executor.submit(function, *args).result() for function, args in calls]
    assert [3, 7, 6, 1, 8, "A", 2] == found


def test_submit_passes_keywords(executor: Executor) -> None:
    """Every keyword is the function's, also those that the executor has names for."""
    taken = executor.submit(lambda *args, **kwargs: (args, kwargs), 1, self=2, fn=3)
    assert ((1,), {"self": 2, "fn": 3}) == taken.result()
    assert 6 == executor.submit(add, 1, y=2, more=3).result()


def test_arguments_are_as_at_the_submit(executor: Executor) -> None:
    """What the caller changes after a submit, or a call changes, is not seen by the other side."""
    given, array = [1], np.zeros(3)

    def change(values: list[int], numbers: Any) -> list[int]:
        values.append(2)
        numbers[0] = 1
        return values

    future = executor.submit(change, given, array)
    given.append(3)
    assert [1, 2] == future.result()
    assert 0 == array[0]


def test_error_is_that_of_its_future(executor: Executor) -> None:
    """An exception arrives as itself, with the function's name, and harms no other call."""
    failed, fine = executor.submit(fail, 7), executor.submit(add, 1, 2)
    assert 3 == fine.result()
    with pytest.raises(UserError, match="7") as caught:
        failed.result()
    assert ["in fail()"] == caught.value.__notes__


def test_retries(executor: Executor, tmp_path: Path, backend: str) -> None:
    """Options of tasks hold for calls."""

    def second(folder: str) -> int:
        tried = count_up(folder, "tried")
        return tried if tried > 1 else fail(tried)

    with Executor(2, backend=backend, retries=1) as trying:
        assert 2 == trying.submit(second, str(tmp_path)).result()


def test_unpicklable_argument_is_a_failed_future(tmp_path: Path) -> None:
    """A call that cannot be sent raises nothing at the submit; its error names the part."""
    with Executor(2, backend="process") as executor:
        future = executor.submit(repr, {"lock": threading.Lock()})
    with pytest.raises(SerializationError, match=r"repr\(\).* argument 1\['lock'\] is a _thread"):
        future.result()


def test_unpicklable_result_names_the_function() -> None:
    """A result that cannot be sent is an error of its call."""
    with Executor(2, backend="process") as executor:
        future = executor.submit(lambda: threading.Lock())  # noqa: PLW0108
        with pytest.raises(
            SerializationError, match=r"^<lambda>\(\): its result cannot be pickled"
        ):
            future.result()


def test_argument_that_cannot_be_unpickled() -> None:
    """An argument that does not arrive is an error of its call."""
    with Executor(2, backend="process") as executor:
        future = executor.submit(repr, _Breaks())
        with pytest.raises(SerializationError, match="cannot be unpickled in a worker: UserError"):
            future.result()
        assert 1 == executor.submit(add, 1).result()


class _Breaks:
    def __reduce__(self) -> Any:
        return fail, (1,)


def test_changed_function_is_the_new_one() -> None:
    """What a closure or a function of a script refers to is compared at each submit."""
    with Executor(2, backend="process") as executor:
        given = 1

        def use() -> int:
            return given

        assert 1 == executor.submit(use).result()
        given = 2
        assert 2 == executor.submit(use).result()


def test_context_variables_come_along() -> None:
    """Calls read the context variables that their caller has set, as tasks do."""
    before = VARIABLE.set("of the caller")
    try:
        with Executor(2, backend="process") as executor:
            assert "of the caller" == executor.submit(read_variable).result()
            VARIABLE.set("another")
            assert "another" == executor.submit(read_variable).result()
    finally:
        VARIABLE.reset(before)


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="")


def read_variable() -> str:
    return VARIABLE.get()


def test_calls_of_many_functions_are_sent_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Quick calls that wait go out in one message, whatever they call."""
    for name in ("QUICK_SECONDS", "CHUNK_SECONDS", "WORTH_SECONDS"):
        monkeypatch.setattr(f"sharedtask.task.gathering.{name}", 1e9)
    sent: list[int] = []
    submit = process._ProcessSession.submit

    def noted(self: Any, chunk: Chunk) -> None:
        sent.append(len(chunk.items))
        submit(self, chunk)

    monkeypatch.setattr(process._ProcessSession, "submit", noted)
    functions: list[Callable[[int], int]] = [add, lambda x: x, int]
    with Executor(1, backend="process") as executor:
        executor.submit(add, 0).result()
        first = executor.submit(begin, str(tmp_path), "first", 2)
        others = [executor.submit(functions[k % 3], k) for k in range(30)]
        count_up(str(tmp_path), "first")
        assert [1, *range(30)] == [future.result() for future in (first, *others)]
    assert [1, 1, 30] == sent


# ---------------------------------------------------------------------------------------- map


def test_map_is_in_order(executor: Executor) -> None:
    """Results are in the order of the iterables, to the end of the shortest."""
    assert [0, 2, 4] == list(executor.map(add, range(3), itertools.count()))
    assert [x + 1 for x in range(100)] == list(executor.map(lambda x: x + 1, range(100)))
    assert [5, 7] == list(executor.map(add, iter([5, 7]), chunksize=1))
    assert [] == list(executor.map(add, []))
    assert [] == list(executor.map(add))


def _append(index: int, seen: list[int]) -> int:
    seen.append(index)
    return len(seen)


def _add_one(_: int, array: Any) -> float:
    array[0] += 1
    return float(array[0])


def _draw(_: int, rng: np.random.Generator) -> float:
    return float(rng.random())


def _append_inside(item: tuple[int, dict[str, Any]]) -> int:
    return _append(item[0], item[1]["seen"].numbers)


class _Holder:
    def __init__(self) -> None:
        self.numbers: list[int] = []


def test_objects_of_a_map_are_copied_for_each_call(executor: Executor) -> None:
    """Calls with one argument get an object each, also inside other objects."""
    numbers, repeat = range(300), itertools.repeat
    rng = np.random.default_rng(0)
    first = float(np.random.default_rng(0).random())
    inside = {"seen": _Holder()}
    assert {1} == set(executor.map(_append, numbers, repeat([])))
    assert {1.0} == set(executor.map(_add_one, numbers, repeat(np.zeros(3))))
    assert {first} == set(executor.map(_draw, numbers, repeat(rng)))
    assert {1} == set(executor.map(_append_inside, [(k, inside) for k in numbers]))
    assert {1} == set(executor.map(_append, numbers, repeat([]), chunksize=50))


def test_class_and_large_array_of_a_map_are_common_to_its_calls(executor: Executor) -> None:
    """A large array is read-only in each call, and a class of the script is one class."""

    class Local:
        table = np.zeros(LARGE)

    def look(array: Any, cls: type, made: Local, seen: list[int]) -> tuple[bool, bool, int]:
        seen.append(1)
        return bool(array.flags.writeable), isinstance(made, cls), len(seen)

    one, several = np.zeros(LARGE), itertools.repeat
    given: Any = [one] * 40, several(Local), [Local() for _ in range(40)], several([])
    assert {(False, True, 1)} == set(executor.map(look, *given, chunksize=20))


def test_large_arrays_of_a_map_keep_their_order(executor: Executor) -> None:
    """Their memory has the order that it has at the caller's."""
    columns = np.asfortranarray(np.ones((LARGE // 64, 64)))
    given = [(columns, 0), (columns, 1)]
    assert [True] * 2 == list(executor.map(lambda pair: pair[0].flags.f_contiguous, given))


OURS = np.zeros(LARGE)


@pytest.mark.parametrize("local", ["serial", "thread"])
def test_large_array_of_a_map_is_not_the_callers_memory(local: Any) -> None:
    """What writes to it in spite of numpy changes nothing here."""
    with Executor(2, backend=local) as executor:
        given = [(OURS, 0), (OURS, 1)]
        assert [False] * 2 == list(executor.map(_shows_ours, given))


def _shows_ours(pair: tuple[Any, int]) -> bool:
    return np.shares_memory(OURS, pair[0])


def test_arrays_of_a_map_may_be_copied(backend: str) -> None:
    """With ``captured="copy"`` each call of a map has large arrays of its own."""
    with Executor(2, backend=backend, captured="copy") as executor:
        given = range(6), itertools.repeat(np.zeros(LARGE))
        assert {1.0} == set(executor.map(_add_one, *given, chunksize=3))


def test_argument_of_a_map_that_does_not_pickle_is_that_calls_error() -> None:
    """The error of one call names it, and the others have their results."""
    lists: list[Any] = [[1], [threading.Lock()], [3]]
    with Executor(2, backend="process", return_exceptions=True) as executor:
        results: list[Any] = list(executor.map(len, lists, chunksize=3))
    assert (1, 1) == (results[0], results[2])
    assert isinstance(results[1], SerializationError)
    assert "item 1" in str(results[1])


def test_map_raises_an_error_at_its_turn(executor: Executor) -> None:
    """What comes before a failed call is given, and the error names the item."""
    results = executor.map(fail_at, range(10), itertools.repeat(3))
    assert [0, 1, 2] == list(itertools.islice(results, 3))
    with pytest.raises(UserError, match="3") as caught:
        next(results)
    assert ["in fail_at(), item 3"] == caught.value.__notes__
    assert [] == list(results)


def test_map_gives_exceptions_as_results(backend: str) -> None:
    """An exception that a call returns is a result; with ``return_exceptions`` those raised too."""
    with Executor(2, backend=backend) as executor:
        assert ["KeyError(0)"] == list(map(repr, executor.map(KeyError, [0])))
    with Executor(2, backend=backend, return_exceptions=True) as executor:
        assert ["UserError(0)", "1"] == list(map(repr, executor.map(fail_at, [0, 1], [0, 0])))


def test_map_runs_without_its_results(executor: Executor, tmp_path: Path) -> None:
    """The calls begin at once, all of them, and whether or not one fails."""
    executor.map(lambda k: (count_up(str(tmp_path), "calls"), fail_at(k, 0)), range(20))
    executor.shutdown()
    assert 20 == counted(str(tmp_path))["calls"]


def test_map_times_out(tmp_path: Path) -> None:
    """A result that is not there in time is a TimeoutError."""
    with Executor(2, backend="process") as executor:
        assert [0, 1] == list(executor.map(add, range(2), timeout=60))
        results = executor.map(begin, [str(tmp_path)], ["begun"], [2], timeout=0.1)
        with pytest.raises(TimeoutError):
            next(results)
        count_up(str(tmp_path), "begun")


def test_map_reads_as_results_are_taken(executor: Executor) -> None:
    """With ``buffersize`` the iterables may be endless: so many calls are ahead of the caller."""
    read: list[int] = []

    def given() -> Iterator[int]:
        for k in itertools.count():
            read.append(k)
            yield k

    results = executor.map(add, given(), buffersize=3)
    assert [0, 1, 2] == read
    assert [0, 1] == list(itertools.islice(results, 2))
    assert [0, 1, 2, 3, 4] == read


def test_map_refuses_sizes_that_are_none(executor: Executor) -> None:
    """A chunksize or buffersize below 1 is a ValueError at the call."""
    with pytest.raises(ValueError, match="chunksize must be a whole number"):
        executor.map(add, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize must be a whole number"):
        executor.map(add, [1], buffersize=0)


def test_map_that_is_left_begins_no_more(tmp_path: Path) -> None:
    """Leaving the loop ends the map: what has not begun is not begun any more."""

    def call(k: int) -> None:
        count_up(str(tmp_path), "calls")
        time.sleep(k / 1000)

    with Executor(1, backend="process") as executor:
        results: Any = executor.map(call, [0, *[50] * 100], chunksize=1)
        next(results)
        results.close()
    assert counted(str(tmp_path))["calls"] < 50


# ----------------------------------------------------------------------------------- shutdown


def test_shut_down_executor_takes_no_calls(executor: Executor) -> None:
    """After a shutdown ``submit`` and ``map`` are errors, as in the standard library."""
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(add, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(add, [1])


def test_shutdown_waits(executor: Executor) -> None:
    """On return all calls have ended, and their callbacks were called."""
    called: list[int] = []
    futures = [executor.submit(span) for _ in range(4)]
    for future in futures:
        future.add_done_callback(lambda done: called.append(done.result() is not None))
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert 4 == len(called)


def test_shutdown_cancels_what_waits(tmp_path: Path) -> None:
    """With ``cancel_futures`` running calls are finished, and the others cancelled."""
    executor = Executor(1, backend="process")
    first = executor.submit(begin, str(tmp_path), "first", 2)
    until(lambda: counted(str(tmp_path)).get("first"))
    rest = [executor.submit(add, k) for k in range(10)]
    results = executor.map(add, range(10))
    executor.shutdown(wait=False, cancel_futures=True)
    count_up(str(tmp_path), "first")
    assert 1 == first.result()
    assert all(future.cancelled() for future in rest)
    with pytest.raises(CancelledError):
        list(results)


def test_shutdown_leaves_the_workers_to_others() -> None:
    """The workers are those of all tasks of the process, and no executor ends them."""
    one, other = Executor(2, backend="process"), Executor(2, backend="process")
    found = {one.submit(pid).result() for _ in range(8)}
    one.shutdown()
    assert not found.isdisjoint(parallel(pid).with_options(backend="process").map(range(20)))
    assert not found.isdisjoint({other.submit(pid).result() for _ in range(8)})
    other.shutdown()


# -------------------------------------------------------------------------- workers, and faults


def test_max_workers_bounds_calls_together(backend: Any) -> None:
    """Submits and maps of one executor together run at most so many at once."""
    two = parallel(abs).with_options(backend=backend, workers=2, chunksize=1)
    two.map(range(4))  # so many workers are there
    with Executor(1, backend=backend) as executor:
        futures = [executor.submit(span) for _ in range(4)]
        results = executor.map(span, range(6))
        futures += [executor.submit(span) for _ in range(4)]
        spans = [future.result() for future in futures] + list(results)
    assert 1 == at_once(spans)


def test_executors_do_not_bound_each_other(tmp_path: Path) -> None:
    """Two executors of one worker run two calls at once."""
    with Executor(1, backend="process") as one, Executor(1, backend="process") as other:
        futures = [each.submit(begin, str(tmp_path), "both", 2) for each in (one, other)]
        assert {1, 2} == {future.result() for future in futures}


@pytest.mark.parametrize("where", ["process", "ray"])
def test_dead_worker_fails_its_own_future(where: str, request: pytest.FixtureRequest) -> None:
    """Calls beside and behind a death are run, and the executor goes on."""
    if where == "ray":
        request.getfixturevalue("ray_runtime")
    with Executor(2, backend=where) as executor:
        futures = [executor.submit(add, k) for k in range(20)]
        dead = executor.submit(die, 1)
        futures += [executor.submit(add, k) for k in range(20)]
        with pytest.raises(concurrent.futures.BrokenExecutor, match=r"in die\(\)"):
            dead.result()
        assert [*range(20), *range(20)] == [future.result() for future in futures]
        with pytest.raises(WorkerDiedError, match=r"in die\(\), item 0"):
            list(executor.map(die, [1]))
        assert 5 == executor.submit(add, 5).result()


def test_death_in_a_map_is_of_its_item() -> None:
    """The results of other items are kept."""
    with Executor(2, backend="process", return_exceptions=True) as executor:
        found = list(executor.map(lambda k: die() if k == 3 else k, range(10)))
    assert [0, 1, 2, 4, 5, 6, 7, 8, 9] == [x for x in found if not isinstance(x, Exception)]
    assert isinstance(found[3], WorkerDiedError)
    assert 3 == found[3].index


def test_kill_ends_a_running_call(tmp_path: Path) -> None:
    """A killed call is cancelled, and the next one runs."""
    with Executor(1, backend="process") as executor:
        future = executor.submit(begin, str(tmp_path), "begun", 2)
        until(lambda: counted(str(tmp_path)).get("begun"))
        behind = executor.submit(add, 1, 2)
        assert executor.kill(future)
        assert future.cancelled()
        assert 3 == behind.result()
        assert not executor.kill(behind)


def test_call_takes_too_long() -> None:
    """The option ``timeout`` ends a call and no other."""
    with Executor(1, backend="process", timeout=0.3) as executor:
        future, behind = executor.submit(time.sleep, 60), executor.submit(add, 1)
        with pytest.raises(TaskTimeoutError, match=r"^sleep\(\), took longer"):
            future.result()
        assert 1 == behind.result()


# ------------------------------------------------------------------------------- large arrays


def stored() -> set[int]:
    """The publications that the process backend has."""
    found: Any = registry.get("process")
    return {publication.token for publication in found._cache.publications()}


def test_large_arrays_are_shared_by_themselves() -> None:
    """An array is published once for all calls, wherever it is in the arguments."""
    table, before = np.ones(LARGE), stored()
    with Executor(2, backend="process") as executor:
        calls = [executor.submit(lambda t: t["x"].sum(), {"x": table}) for _ in range(3)]
        assert [LARGE] * 3 == [call.result() for call in calls]
        known = stored()
        assert LARGE + 1 == executor.submit(lambda t, x: t.sum() + x, table, x=1).result()
        assert [LARGE] == list(executor.map(lambda _: table.sum(), [0]))
        published = {p.token for p in _publications() if p.nbytes >= table.nbytes} - before
        assert 1 == len(published)
        assert published <= known


def _publications() -> list[Any]:
    found: Any = registry.get("process")
    return list(found._cache.publications())


def test_large_array_is_as_at_the_submit(executor: Executor) -> None:
    """A change of an array since an earlier call is seen by the next one."""
    table = np.zeros(LARGE)
    assert 0 == executor.submit(np.max, table).result()
    table[-1] = 5
    assert 5 == executor.submit(np.max, table).result()


def test_large_array_is_read_only(executor: Executor) -> None:
    """The caller would not see writes: they are an error that names the argument."""

    def write(x: Any) -> None:
        x[0] = 1

    with pytest.raises(ValueError, match="read-only") as caught:
        executor.submit(write, np.zeros(LARGE)).result()
    assert any("argument 1 of write()" in note for note in caught.value.__notes__)


def test_large_array_may_be_copied() -> None:
    """With ``captured="copy"`` each call has arrays of its own."""

    def write(x: Any) -> float:
        x[0] = 1
        return float(x[0])

    with Executor(2, backend="process", captured="copy") as executor:
        table = np.zeros(LARGE)
        assert 1 == executor.submit(write, table).result()
        assert 0 == table[0]


# ------------------------------------------------------------------------------------ options


def test_options_that_are_said_elsewhere() -> None:
    """What an executor says in another way is refused, with the way to say it."""
    with pytest.raises(OptionsError, match=r"no workers=: say max_workers="):
        Executor(workers=2)
    with pytest.raises(OptionsError, match=r"no chunksize=: give it to map\(\)"):
        Executor(chunksize=2)
    with pytest.raises(OptionsError, match="there is no option worker"):
        Executor(worker=2)


@pytest.mark.parametrize("wrong", [0, -1])
def test_max_workers_is_above_none(wrong: int) -> None:
    """The number of workers is checked as the standard library does."""
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        Executor(wrong)


def test_executor_is_not_pickled() -> None:
    """An executor belongs to its process."""
    with Executor() as executor, pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(executor)


def test_executor_inside_a_task() -> None:
    """Within a task calls run there: a worker has no workers of its own."""

    def nested(x: int) -> list[int]:
        with Executor(2) as executor:
            return [executor.submit(add, x).result(), *executor.map(add, [x, x])]

    with Executor(2, backend="process") as executor:
        assert [1, 1, 1] == executor.submit(nested, 1).result()


# ------------------------------------------------------------------------- forks, ends, threads


def test_forked_child_begins_calls_of_its_own() -> None:
    """In a forked child the executor begins with nothing: what was submitted is the parent's."""
    executor = Executor(2, backend="process")
    future = executor.submit(time.sleep, 0.2)
    child = os.fork()
    if not child:
        ok = 3 == executor.submit(add, 1, 2).result() and [1] == list(executor.map(add, [1]))
        executor.shutdown()
        sharedtask.shutdown()
        os._exit(0 if ok else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert future.result() is None
    executor.shutdown()


def test_submits_of_many_threads(executor: Executor) -> None:
    """Threads submit at the same time, and each gets its own results."""
    found: dict[int, list[int]] = {}

    def submit(k: int) -> None:
        futures = [executor.submit(add, 100 * k, j) for j in range(20)]
        found[k] = [future.result() for future in futures]

    threads = [threading.Thread(target=submit, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {k: [100 * k + j for j in range(20)] for k in range(4)} == found


END = """
import sys, time
import sharedtask

def say(text):
    time.sleep(0.3)
    print(text, flush=True)

def begun(name):
    executor = sharedtask.Executor(2, backend="process")
    executor.submit(say, f"submitted, {name}")
    executor.map(say, [f"mapped, {name}"])
    executor.submit(lambda: say(f"a lambda, {name}"))
    return executor

kept = begun("kept")
begun("dropped")
begun("shut").shutdown(wait=False)
"""


def test_what_was_begun_is_finished_at_the_end(run: Callable[..., str]) -> None:
    """The interpreter ends after the calls, also those of an executor that was dropped."""
    said = sorted(run(END).splitlines())
    ways = "a lambda", "mapped", "submitted"
    assert [f"{way}, {how}" for way in ways for how in ("dropped", "kept", "shut")] == said


def test_no_calls_after_the_end(run: Callable[..., str]) -> None:
    """A submit by an exit handler is an error, as in the standard library."""
    said = run(
        "import atexit, sharedtask\n"
        "executor = sharedtask.Executor(2)\n"
        "def late():\n"
        "    try:\n"
        "        executor.submit(id, None)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
        "atexit.register(late)\n"
    )
    assert "cannot schedule new futures after interpreter shutdown\n" == said


def test_dropped_executor_finishes_its_calls(tmp_path: Path) -> None:
    """A future outlives its executor."""
    executor = Executor(1, backend="process")
    future = executor.submit(begin, str(tmp_path), "begun", 2)
    del executor
    count_up(str(tmp_path), "begun")
    assert future.result() in (1, 2)


# ---------------------------------------------------------------------------- other libraries


def test_event_loop_runs_calls_in_it(executor: Executor) -> None:
    """It is an executor for ``run_in_executor``."""

    async def together() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, add, k) for k in range(5)))

    assert [0, 1, 2, 3, 4] == asyncio.run(together())


def test_standard_library_waits_for_its_futures(executor: Executor) -> None:
    """``wait`` and ``as_completed`` take its futures."""
    futures = [executor.submit(add, k) for k in range(5)]
    assert set(futures) == concurrent.futures.wait(futures).done
    assert {0, 1, 2, 3, 4} == {f.result() for f in concurrent.futures.as_completed(futures)}


def test_dask_computes_in_it() -> None:
    """It is a scheduler for dask."""
    from dask.delayed import delayed

    with Executor(2, backend="process") as executor:
        parts = [delayed(add)(k, 1) for k in range(5)]
        assert 15 == delayed(sum)(parts).compute(scheduler=executor)


def test_scipy_maps_with_it() -> None:
    """``executor.map`` is a map for ``scipy.optimize``."""
    from scipy.optimize import differential_evolution

    def bowl(x: Any) -> float:
        return float(((x - 1) ** 2).sum())

    with Executor(2, backend="process") as executor:
        found = differential_evolution(
            bowl, [(-3, 3)], maxiter=3, popsize=5, rng=1, workers=executor.map, updating="deferred"
        )
    alone = differential_evolution(
        bowl, [(-3, 3)], maxiter=3, popsize=5, rng=1, updating="deferred"
    )
    assert alone.fun == found.fun


def test_emcee_samples_with_it() -> None:
    """It is a ``pool`` for emcee."""
    import emcee

    def bell(x: Any) -> float:
        return float(-0.5 * (x**2).sum())

    def sampled(pool: Any) -> Any:
        sampler = emcee.EnsembleSampler(4, 1, bell, pool=pool)
        sampler._random.seed(1)
        sampler.run_mcmc(np.arange(4.0).reshape(4, 1), 5)
        return sampler.get_chain()

    with Executor(2, backend="process") as executor:
        assert np.array_equal(sampled(None), sampled(executor))


# ------------------------------------------------------------------------------ initializer


def note_worker(folder: str) -> None:
    with open(Path(folder, f"{os.getpid()}-{threading.get_ident()}"), "a") as file:
        file.write("set-up\n")


def test_initializer_runs_once_in_each_worker(backend: Any, tmp_path: Path) -> None:
    """Before its first call of the executor, of ``submit`` or ``map``; another one has its own."""
    for _ in range(2):
        with sharedtask.Executor(
            2, initializer=note_worker, initargs=(str(tmp_path),), backend=backend
        ) as executor:
            assert 4 == executor.submit(pow, 2, 2).result()
            assert [0, 1, 4] == list(executor.map(pow, range(3), [2] * 3))
    counts = [file.read_text().split().count("set-up") for file in tmp_path.iterdir()]
    assert 2 == max(counts)
    assert len(counts) <= 2


def fail_to_begin() -> None:
    raise LookupError("no such device")


def test_initializer_that_fails_breaks_the_executor(backend: Any) -> None:
    """What has no outcome yet, and each further call, is a BrokenExecutor that says why."""
    with sharedtask.Executor(1, initializer=fail_to_begin, backend=backend) as executor:
        futures = [executor.submit(pow, 2, 2)]
        with pytest.raises(concurrent.futures.BrokenExecutor, match=NO_DEVICE):
            futures[0].result()
        with pytest.raises(InitializerError, match=NO_DEVICE):
            executor.submit(pow, 2, 2)
        with pytest.raises(InitializerError, match=NO_DEVICE):
            executor.map(pow, [2], [2])
        assert executor._broken


NO_DEVICE = r"the initializer fail_to_begin\(\) raised LookupError: no such device"


def test_failed_initializer_breaks_what_waits() -> None:
    """Calls and maps that wait for a worker get the error as well, and no worker runs them."""
    with sharedtask.Executor(1, initializer=fail_to_begin, backend="process") as executor:
        results = executor.map(pow, [2] * 50, [2] * 50)
        with pytest.raises(InitializerError, match=NO_DEVICE):
            list(results)
    with sharedtask.Executor(1, initializer=fail_to_begin, backend="process") as executor:
        futures = []
        with contextlib.suppress(InitializerError):
            futures += [executor.submit(pow, 2, 2) for _ in range(10)]
        assert all(isinstance(future.exception(), InitializerError) for future in futures)
