"""The backend of joblib: its contract, and what it shares."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

import sharedtask
from sharedtask import (
    BackendUnavailableError,
    ClosedError,
    OptionsError,
    SerializationError,
    TaskTimeoutError,
    WorkerDiedError,
    parallel,
)
from sharedtask.backends import registry
from sharedtask.joblib import register
from sharedtask.testing import count_up, counted

pytestmark = pytest.mark.timeout(60)

LARGE = 200_000  # numbers of eight bytes: more than joblib's own megabyte


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    default = joblib.parallel.DEFAULT_BACKEND
    register()
    yield
    joblib.parallel.DEFAULT_BACKEND = default
    joblib.parallel.BACKENDS.pop("sharedtask")


def two(**others: Any) -> Parallel:
    """A ``Parallel`` of two workers."""
    return Parallel(n_jobs=2, backend="sharedtask", **others)


# ------------------------------------------------------------------------ tasks and helpers


def square(x: int) -> int:
    return x * x


def pid(_: object = None) -> int:
    return os.getpid()


def times(folder: str, name: str) -> int:
    """How often ``count_up`` was called under a name."""
    return counted(folder).get(name, 0)


class UserError(Exception):
    def __init__(self, x: int, *, why: str) -> None:
        super().__init__(x)
        self.x, self.why = x, why


def fail_at(x: int, at: int, folder: str = "") -> int:
    if x == at:
        raise UserError(x, why="it is")
    if folder:
        count_up(folder, "begun")
    return x


def hang_but(x: int, at: int, folder: str) -> int:
    """The call ``at`` fails when another one hangs."""
    if x == at:
        while not times(folder, "hangs"):
            time.sleep(0.002)
        raise UserError(x, why="it is")
    count_up(folder, "hangs")
    while not Path(folder, "gate").exists():
        time.sleep(0.002)
    count_up(folder, "ended")
    return x


def die_at(x: int, at: int) -> int:
    if x == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def hang_at(x: int, at: int) -> int:
    if x == at:
        time.sleep(60)
    return x


def second_time(x: int, folder: str) -> int:
    """Fails when it is called first with an x."""
    if count_up(folder, f"tries of {x}") == 1:
        raise UserError(x, why="the first time")
    return x


def take(x: int, config: object) -> int:
    del config
    return x


def span(_: int) -> tuple[float, float]:
    began = time.monotonic()
    time.sleep(0.02)
    return began, time.monotonic()


def about(X: Any, row: int) -> tuple[bool, bool, float]:
    """Whether it is memory of its own, whether it can be written, and what stands there."""
    return bool(X.flags.owndata), bool(X.flags.writeable), float(X[row])


def write(X: Any, row: int) -> None:
    X[row] = row


class Estimator:
    def __init__(self, coef: Any) -> None:
        self.coef_ = coef

    def predict(self, row: int) -> tuple[bool, bool, float]:
        return about(self.coef_, row)


def tokens() -> set[int]:
    """What is published and could be used again, but for functions and settings."""
    backend: Any = registry.get("process")
    found = backend._cache.publications()
    return {p.token for p in found if p.nbytes >= 8 * LARGE}


# --------------------------------------------------------------------------------- results


@pytest.mark.parametrize("n_jobs", [1, 2, 3, -1, -2, None])
def test_results_are_those_of_a_loop_with_any_number_of_jobs(n_jobs: int | None) -> None:
    """n_jobs changes nothing but the speed."""
    with parallel_config(backend="sharedtask"):
        found = Parallel(n_jobs=n_jobs)(delayed(square)(x) for x in range(20))
    assert [x * x for x in range(20)] == found


@pytest.mark.parametrize("backend", ["process", "thread", "serial"])
def test_calls_run_on_the_backend_that_is_named(backend: str) -> None:
    """``backend_params`` carry the options of the library."""
    with parallel_config(backend="sharedtask", n_jobs=2):
        pids = Parallel()(delayed(pid)() for _ in range(4))
    assert os.getpid() not in pids
    joblib.parallel.BACKENDS["sharedtask"]
    chosen = joblib.parallel.BACKENDS["sharedtask"](backend=backend)
    with parallel_config(backend=chosen, n_jobs=2):
        pids = Parallel()(delayed(pid)() for _ in range(4))
        assert list(range(300)) == Parallel()(delayed(abs)(-x) for x in range(300))
    assert (backend != "process") == (os.getpid() in pids)


@pytest.mark.parametrize("batch_size", ["auto", 1, 7, 100])
@pytest.mark.parametrize("pre_dispatch", ["all", "2*n_jobs", 1])
def test_batches_of_every_size_give_the_same(batch_size: Any, pre_dispatch: Any) -> None:
    """How calls are put together, and how many wait, changes nothing but the speed."""
    run = two(batch_size=batch_size, pre_dispatch=pre_dispatch)
    assert [x * x for x in range(50)] == run(delayed(square)(x) for x in range(50))


def test_batch_size_auto_puts_fast_calls_together() -> None:
    """The size of batches follows the time that they take."""
    run = two()
    assert 2000 == len(run(delayed(square)(x) for x in range(2000)))
    assert run.n_dispatched_batches < 1000


def test_generator_gives_results_in_order() -> None:
    """``return_as="generator"`` is a stream in the order of the calls."""
    stream = two(return_as="generator")(delayed(square)(x) for x in range(10))
    assert 0 == next(stream)
    assert [x * x for x in range(1, 10)] == list(stream)


def test_unordered_generator_gives_results_as_they_come(tmp_path: Path) -> None:
    """``return_as="generator_unordered"`` does not wait for a call that hangs."""
    calls = [delayed(hang_but)(0, -1, str(tmp_path)), delayed(square)(3)]
    stream = two(return_as="generator_unordered")(calls)
    assert 9 == next(stream)
    (tmp_path / "gate").touch()
    assert [0] == list(stream)


def test_generator_that_is_dropped_ends_its_calls(tmp_path: Path) -> None:
    """Nothing runs on for a stream that no one has any more."""
    stream = two(return_as="generator")(delayed(hang_but)(x, -1, str(tmp_path)) for x in range(2))
    while times(str(tmp_path), "hangs") < 2:
        time.sleep(0.002)
    with pytest.warns(UserWarning, match="cancelled"):
        stream.close()
    (tmp_path / "gate").touch()
    assert [0, 1] == two()(delayed(square)(x) for x in range(2))
    assert 0 == times(str(tmp_path), "ended")


def test_two_streams_share_one_configuration() -> None:
    """Each ``Parallel`` is ended by itself, whatever the others of a block do."""
    with parallel_config(backend="sharedtask", n_jobs=2):
        first = Parallel(return_as="generator")(delayed(square)(x) for x in range(40))
        assert 0 == next(first)
        with pytest.raises(UserError):
            Parallel()(delayed(fail_at)(x, 3) for x in range(10))
        assert [x * x for x in range(1, 40)] == list(first)


def test_managed_parallel_is_used_again_after_an_error() -> None:
    """``with Parallel(...) as run`` goes on after a call that failed."""
    with two() as run:
        with pytest.raises(UserError):
            run(delayed(fail_at)(x, 3) for x in range(10))
        assert [0, 1, 4] == run(delayed(square)(x) for x in range(3))
        assert [0, 1, 4] == run(delayed(square)(x) for x in range(3))


def test_progress_is_told_as_by_others(capfd: pytest.CaptureFixture[str]) -> None:
    """``verbose`` counts the calls that are done."""
    two(verbose=11)(delayed(square)(x) for x in range(3))
    assert "Done   3 out of   3" in capfd.readouterr().err


def test_no_more_calls_run_at_a_time_than_jobs() -> None:
    """n_jobs bounds the calls of a ``Parallel`` together, however many workers there are."""
    barrier = parallel(lambda _: time.sleep(0.1)).with_options(workers=4)
    barrier.map(range(8))
    spans = two(pre_dispatch="all", batch_size=1)(delayed(span)(x) for x in range(12))
    assert 2 >= max(sum(b <= at < e for b, e in spans) for at, _ in spans)


# ---------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("batch_size", [1, 4])
def test_error_is_of_the_users_class_and_names_the_call(batch_size: int) -> None:
    """An exception arrives as itself, with a note that names function and call."""
    with pytest.raises(UserError) as caught:
        two(batch_size=batch_size)(delayed(fail_at)(x, 6) for x in range(8))
    assert (6, "it is") == (caught.value.x, caught.value.why)
    assert ["in fail_at(), item 6"] == caught.value.__notes__
    assert "in fail_at\n" in str(caught.value.__cause__)
    assert "joblib/" not in str(caught.value.__cause__)


def test_first_error_ends_what_runs(tmp_path: Path) -> None:
    """After an error what runs is ended, and nothing else is begun."""
    with pytest.raises(UserError):
        two(batch_size=1)(delayed(hang_but)(x, 1, str(tmp_path)) for x in range(100))
    (tmp_path / "gate").touch()
    assert [0, 1] == two()(delayed(square)(x) for x in range(2))
    assert 0 == times(str(tmp_path), "ended")
    assert times(str(tmp_path), "hangs") < 10


@pytest.mark.parametrize("batch_size", [1, 5])
def test_death_of_a_worker_names_the_call_and_the_next_run_works(batch_size: int) -> None:
    """A worker that dies is an error of the very call that it had in hand."""
    with pytest.raises(WorkerDiedError, match=r"killed by SIGKILL in die_at\(\), item 3") as caught:
        two(batch_size=batch_size)(delayed(die_at)(x, 3) for x in range(10))
    assert 3 == caught.value.index
    assert [0, 1] == two()(delayed(square)(x) for x in range(2))


def test_argument_that_cannot_be_sent_is_named() -> None:
    """The error names function, call and argument, and none of joblib's own objects."""
    calls = (delayed(take)(x, {"lock": [threading.Lock()] if x == 30 else 0}) for x in range(60))
    with pytest.raises(SerializationError) as caught:
        two()(calls)  # not among the first: it is sent by joblib's callback
    assert "take(), item 30" in str(caught.value)
    assert "config['lock'][0] is a _thread.lock" in str(caught.value)


def test_function_that_cannot_be_sent_is_named() -> None:
    """So is what a function captures."""
    lock = threading.Lock()

    def locked(x: int) -> int:
        with lock:
            return x

    with pytest.raises(SerializationError, match=r"locked\(\), item \d, .*lock is a _thread.lock"):
        two()(delayed(locked)(x) for x in range(3))


def test_timeout_of_joblib_ends_the_run() -> None:
    """``timeout`` of Parallel is joblib's: the same error as with its own backends."""
    with pytest.raises(joblib.parallel.TimeoutError):
        two(timeout=0.2)(delayed(hang_at)(x, 0) for x in range(2))
    assert [0, 1] == two()(delayed(square)(x) for x in range(2))


def test_futures_are_resolved_when_the_workers_are_ended(tmp_path: Path) -> None:
    """``shutdown()`` ends a run with an error: joblib does not wait without end."""
    stream = two(return_as="generator")(delayed(hang_but)(x, -1, str(tmp_path)) for x in range(2))
    while times(str(tmp_path), "hangs") < 2:
        time.sleep(0.002)
    sharedtask.shutdown()
    with pytest.raises(ClosedError):
        list(stream)
    (tmp_path / "gate").touch()


def test_write_into_what_is_shared_is_refused_and_named() -> None:
    """A write that the caller would not see is an error that names the argument."""
    X = np.zeros(LARGE)
    with pytest.raises(ValueError, match="read-only") as caught:
        two()(delayed(write)(X, row) for row in range(2))
    assert "'X' of write() is read-only in a worker" in caught.value.__notes__[0]
    assert not X.any()


# --------------------------------------------------------------------------------- options


def test_effective_n_jobs_counts_as_joblib_does() -> None:
    """-1 is all CPUs, -2 all but one, never less than one; 0 has no meaning."""
    with parallel_config(backend="sharedtask", n_jobs=3):
        assert 3 == joblib.effective_n_jobs(None)
        assert joblib.cpu_count() == joblib.effective_n_jobs(-1)
        assert max(joblib.cpu_count() - 1, 1) == joblib.effective_n_jobs(-2)
        assert 1 == joblib.effective_n_jobs(-1000)
        with pytest.raises(ValueError, match="n_jobs == 0"):
            joblib.effective_n_jobs(0)


def test_shared_memory_of_joblib_is_refused_as_joblib_refuses_it() -> None:
    """``require="sharedmem"`` means threads, and this backend has none."""
    with pytest.raises(ValueError, match="does not support shared memory"):
        two(require="sharedmem")
    with parallel_config(backend="sharedtask", n_jobs=2):
        run = Parallel(require="sharedmem", n_jobs=2)
        assert {os.getpid()} == set(run(delayed(pid)() for _ in range(4)))


def test_configuration_can_be_pickled() -> None:
    """What ``parallel_config`` holds travels with its options."""
    params: dict[str, Any] = {"retries": 2, "inner_max_num_threads": 1}
    with parallel_config(backend="sharedtask", n_jobs=2, **params) as config:
        found = pickle.loads(pickle.dumps(config))["backend"]
    assert ({"retries": 2}, 1, 0) == (
        found._params,
        found.inner_max_num_threads,
        found.nesting_level,
    )


@pytest.mark.parametrize("batch_size", [1, 4])
def test_retries_try_the_call_that_failed_again(batch_size: int, tmp_path: Path) -> None:
    """A call of a batch is tried again alone, and what it takes from the others is nothing."""
    folder = str(tmp_path)
    calls = [delayed(second_time)(x, folder) for x in range(8)]
    with parallel_config(backend="sharedtask", n_jobs=2, retries=1):
        assert list(range(8)) == Parallel(batch_size=batch_size)(calls)
    assert [2] * 8 == [times(folder, f"tries of {x}") for x in range(8)]


def test_timeout_in_backend_params_is_for_each_call() -> None:
    """The library's own ``timeout`` names the call that took too long."""
    with (
        parallel_config(backend="sharedtask", n_jobs=2, timeout=0.3),
        pytest.raises(TaskTimeoutError, match=r"hang_at\(\), item 2"),
    ):
        Parallel(batch_size=4)(delayed(hang_at)(x, 2) for x in range(4))


def test_exceptions_are_returned_where_that_is_wanted() -> None:
    """``return_exceptions`` puts an error at the place of its call's result."""
    with parallel_config(backend="sharedtask", n_jobs=2, return_exceptions=True):
        found = Parallel(batch_size=3)(delayed(fail_at)(x, 1) for x in range(3))
    assert [0, 2] == [found[0], found[2]]
    assert isinstance(found[1], UserError)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"workers": 2}, "workers= is n_jobs= of joblib"),
        ({"chunksize": 2}, "chunksize= is batch_size= of joblib"),
        ({"journal": "x"}, "has no journal="),
        ({"retrys": 2}, "Did you mean retries=?"),
        ({"retries": -1}, "retries must be a whole number from 0 up, got -1"),
        ({"initializer": 3}, "initializer must be a callable without arguments, a pair"),
    ],
)
def test_options_that_cannot_be_are_refused_at_the_block(params: Any, said: str) -> None:
    """What is unknown, out of range or joblib's to say is an error where it is said."""
    with pytest.raises(OptionsError) as caught:
        parallel_config(backend="sharedtask", **params)
    assert said in str(caught.value)


def test_common_file_of_joblib_is_refused() -> None:
    """With mmap_mode="r+" joblib would have calls write into one file of its own."""
    with pytest.raises(OptionsError, match="nothing goes through a file"):
        two(mmap_mode="r+")(delayed(square)(x) for x in range(3))


def threads(_: object) -> tuple[set[int], str]:
    import threadpoolctl

    limits = {found["num_threads"] for found in threadpoolctl.threadpool_info()}
    return limits, os.environ["OMP_NUM_THREADS"]


def test_threads_of_libraries_are_limited_in_workers() -> None:
    """``inner_max_num_threads`` is how many BLAS and OpenMP use in a worker."""
    with parallel_config(backend="sharedtask", n_jobs=2, inner_max_num_threads=2):
        assert ({2}, "2") == Parallel()(delayed(threads)(x) for x in range(2))[0]
    assert ({1}, "1") == two()(delayed(threads)(x) for x in range(2))[0]


def test_threads_of_libraries_are_not_limited_in_the_caller() -> None:
    """On threads the limit would be the program's own."""
    chosen = joblib.parallel.BACKENDS["sharedtask"](backend="thread")
    with (
        parallel_config(backend=chosen, n_jobs=2, inner_max_num_threads=2),
        pytest.raises(OptionsError, match="inner_max_num_threads=2"),
    ):
        Parallel()(delayed(threads)(x) for x in range(2))


def set_up(folder: str) -> None:
    count_up(folder, f"of {os.getpid()}")
    os.environ["SET_UP"] = "done"
    np.seterr(divide="raise")


def find_set_up(_: object) -> tuple[int, str | None, str]:
    return os.getpid(), os.environ.get("SET_UP"), np.geterr()["divide"]


def test_initializer_runs_once_in_each_worker_and_lasts(tmp_path: Path) -> None:
    """Its settings are those of all calls of the block, and of no others."""
    params: dict[str, Any] = {"initializer": set_up, "initargs": (str(tmp_path),)}
    found = []
    with parallel_config(backend="sharedtask", n_jobs=2, **params):
        for _ in range(2):
            found += Parallel(batch_size=1)(delayed(find_set_up)(x) for x in range(6))
    assert {("done", "raise")} == {each[1:] for each in found}
    assert {1} == {times(str(tmp_path), f"of {worker}") for worker, *_ in found}
    others = two()(delayed(find_set_up)(x) for x in range(4))
    assert {(None, "warn")} == {each[1:] for each in others}


# --------------------------------------------------------------------------------- nesting


def inner(x: int) -> tuple[list[int], set[int]]:
    found = Parallel(n_jobs=2)(delayed(pow)(x, k) for k in range(3))
    named = Parallel(n_jobs=2, backend="sharedtask")(delayed(pid)() for _ in range(3))
    return found, set(named)


def test_calls_within_calls_have_no_workers_of_their_own() -> None:
    """Inner calls run in the worker; it knows the backend by its name."""
    found = two()(delayed(inner)(x) for x in range(3))
    assert [[1, x, x * x] for x in range(3)] == [powers for powers, _ in found]
    assert all(len(pids) == 1 and os.getpid() not in pids for _, pids in found)


def configured(x: int) -> tuple[list[int], int]:
    with parallel_config(backend="threading", n_jobs=2):
        found = Parallel()(delayed(pow)(x, k) for k in range(3))
    return found, joblib.effective_n_jobs(None)


def test_configuration_within_a_call_counts_there() -> None:
    """``parallel_config`` inside a call is for what it runs, and over with it."""
    assert [([1, 2, 4], 1)] * 2 == two()(delayed(configured)(2) for _ in range(2))


def test_default_backend_is_the_default_in_workers_too() -> None:
    """With ``make_default=True`` nothing need be named."""
    register(make_default=True)
    found = Parallel(n_jobs=2)(delayed(default)() for _ in range(2))
    assert {"sharedtask"} == {name for name, _ in found}
    assert os.getpid() not in {worker for _, worker in found}


def default() -> tuple[str, int]:
    return joblib.parallel.DEFAULT_BACKEND, os.getpid()


def test_threads_of_the_caller_run_side_by_side() -> None:
    """Several threads of the program may each have a ``Parallel``."""
    outer = Parallel(n_jobs=3, backend="threading")
    found = outer(delayed(two())(list(map(delayed(square), range(k)))) for k in range(6))
    assert [[x * x for x in range(k)] for k in range(6)] == found


# --------------------------------------------------------------------------------- sharing


def closing_over(X: Any) -> Callable[[int], Any]:
    return lambda row: about(X, row)


WAYS: dict[str, Callable[[Any], Any]] = {
    "argument": lambda X: lambda row: delayed(about)(X, row),
    "keyword": lambda X: lambda row: delayed(about)(row=row, X=X),
    "estimator": lambda X: delayed(Estimator(X).predict),
    "closure": lambda X: delayed(closing_over(X)),
    "list": lambda X: lambda row: delayed(first)([X, row]),
}


def first(pair: list[Any]) -> Any:
    return about(*pair)


@pytest.mark.parametrize("way", WAYS)
def test_large_arrays_are_shared_once_over_runs(way: str) -> None:
    """An array travels once for as long as it lives and is unchanged, wherever it is held."""
    sharedtask.shutdown()
    X = np.arange(LARGE, dtype=float)
    call = WAYS[way](X)
    expected = [(False, False, float(row)) for row in range(6)]
    assert expected == two(batch_size=1)(call(row) for row in range(6))
    published = tokens()
    assert 1 == len(published)
    assert expected == two()(call(row) for row in range(6))
    assert published == tokens()


@pytest.mark.parametrize("way", WAYS)
def test_array_that_was_changed_is_never_stale(way: str) -> None:
    """What is written between two runs, and between two calls of one, is seen."""
    X = np.zeros(LARGE)
    call = WAYS[way](X)
    two()(call(row) for row in range(2))
    X[1] = 7
    assert 7 == two()([call(1), call(1)])[0][2]

    def changing() -> Iterator[Any]:
        for value in range(20):
            X[0] = value
            yield call(0)

    found = two(batch_size=1, pre_dispatch=1)(changing())
    # joblib takes two calls at a time and sends them then: a call sees what is there as it is sent.
    assert all(k <= value <= k + 1 for k, (*_, value) in enumerate(found))


def test_memory_of_an_array_that_died_is_given_back() -> None:
    """What no one has any more is shared no longer."""
    sharedtask.shutdown()
    X = np.zeros(LARGE)
    two()(delayed(about)(X, row) for row in range(2))
    assert 1 == len(tokens())
    del X
    while tokens():
        two()(delayed(square)(x) for x in range(2))


@pytest.mark.parametrize("others", [{"max_nbytes": None}, {"mmap_mode": "c"}, {"mmap_mode": None}])
def test_arrays_are_copies_where_joblib_would_make_them(others: dict[str, Any]) -> None:
    """With these words of joblib's, calls get arrays of their own, which they may write."""
    X = np.zeros(LARGE)
    two(**others)(delayed(write)(X, row) for row in range(2))
    assert not X.any()


def test_smaller_arrays_are_shared_where_joblib_says_so() -> None:
    """``max_nbytes`` is the size from which on arrays are shared."""
    X = np.zeros(1000)
    assert two()(delayed(about)(X, row) for row in range(2))[0][1]
    assert not two(max_nbytes=8000)(delayed(about)(X, row) for row in range(2))[0][1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_file_that_is_mapped_for_writing_is_written(tmp_path: Path, wrapped: bool) -> None:
    """Joblib's way to results in one file: an ``np.memmap`` of the caller with mode "w+"."""
    out: Any = np.memmap(tmp_path / "out", np.float64, "w+", shape=(5, 3))
    column = out[1:, 1]
    calls = [delayed(write_in)([column], row) for row in range(4)]
    if not wrapped:
        calls = [delayed(write)(column, row) for row in range(4)]
    two()(calls)
    assert [0, 0, 1, 2, 3] == out[:, 1].tolist()
    assert not out[:, 0].any()


def write_in(held: list[Any], row: int) -> None:
    write(held[0], row)


# ------------------------------------------------------------------------------ whole programs


SCRIPT = """
import joblib
import numpy as np
from sharedtask.joblib import register

register()
table = np.arange(300_000.0)

def look(row):
    return table[row]

class Own(Exception):
    pass

def fail(row):
    raise Own(row)

with joblib.parallel_config(backend="sharedtask", n_jobs=2):
    print(sum(joblib.Parallel()(joblib.delayed(look)(k) for k in range(10))))
    try:
        joblib.Parallel()(joblib.delayed(fail)(k) for k in range(10))
    except Own as error:
        print("own", len(error.args))
    stream = joblib.Parallel(return_as="generator")(joblib.delayed(look)(k) for k in range(1000))
    print(next(stream))
"""


def test_script_ends_in_silence(run: Callable[..., str]) -> None:
    """Functions, classes and arrays of a script go; a stream that is open at its end is no noise.

    joblib itself warns of a stream that was not read to its end.
    """
    text = "import warnings\nwarnings.simplefilter('ignore', UserWarning)\n" + SCRIPT
    assert "45.0\nown 1\n0.0\n" == run(text)


def test_error_is_clear_where_joblib_is_missing(run: Callable[..., str]) -> None:
    """Joblib is no requirement of the library: who asks for the backend without it is told."""
    text = """
import sys
import sharedtask
assert "joblib" not in sys.modules
sys.modules["joblib"] = None
try:
    import sharedtask.joblib
except sharedtask.BackendUnavailableError as error:
    print(error)
"""
    assert "pip install joblib" in run(text)
    assert issubclass(BackendUnavailableError, ImportError)
