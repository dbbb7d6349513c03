"""What the caller's process is, its workers are: at the start of every call."""

import _thread
import asyncio
import contextlib
import contextvars
import decimal
import gc
import importlib
import locale
import logging
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import parallel
from sharedtask.backends.worker import import_path, process_settings
from sharedtask.testing import until

# Threads have an error state and a decimal context of their own, and share all the rest.
OF_PROCESSES = ("process", "ray")


@pytest.fixture(params=OF_PROCESSES)
def elsewhere(request: pytest.FixtureRequest) -> str:
    """The backends whose tasks run in other processes."""
    name: str = request.param
    if name == "ray":
        request.getfixturevalue("ray_runtime")
    return name


class Mine(UserWarning):
    """A class of warnings that workers have not imported."""


@contextlib.contextmanager
def changed(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def set_argv(argv: list[str]) -> None:
    sys.argv = argv


def numpy_errors() -> dict[str, Any]:
    return {**np.geterr()}


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def printed() -> str:
    return str(np.array([1 / 3]))


# How it is read, how it is written, and two values for it.
FOLLOWED: dict[str, tuple[Callable[[], Any], Callable[[Any], object], Any, Any]] = {
    "argv": (lambda: list(sys.argv), set_argv, ["one", "1"], ["two"]),
    "recursion": (sys.getrecursionlimit, sys.setrecursionlimit, 2_345, 3_456),
    "bytecode": (
        lambda: sys.dont_write_bytecode,
        lambda given: setattr(sys, "dont_write_bytecode", given),
        True,
        False,
    ),
    "errors": (
        numpy_errors,
        lambda state: np.seterr(**state),
        {"divide": "raise", "over": "ignore", "under": "warn", "invalid": "raise"},
        {"divide": "ignore", "over": "raise", "under": "ignore", "invalid": "warn"},
    ),
    "print options": (
        lambda: np.get_printoptions()["precision"],
        lambda precision: np.set_printoptions(precision=precision),
        3,
        5,
    ),
    "decimal": (
        lambda: decimal.getcontext().prec,
        lambda prec: setattr(decimal.getcontext(), "prec", prec),
        7,
        50,
    ),
    "locale": (
        lambda: locale.setlocale(locale.LC_CTYPE),
        lambda name: locale.setlocale(locale.LC_CTYPE, name),
        "C",
        "C.UTF-8",
    ),
    "umask": (umask, os.umask, 0o027, 0o002),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_setting_is_followed_at_each_call(elsewhere: str, name: str) -> None:
    """What the caller has set is so in the next call: set for the first time, again, set back."""
    read, write, first, second = FOLLOWED[name]
    task = parallel(lambda _: read()).with_options(backend=elsewhere)  # type: ignore[arg-type]
    original = read()
    with changed(read, write, first):
        assert [first] == task.map([0])
        write(second)
        assert [second, second] == task.map([0, 1])
        assert [second] == [task.submit(0).result()]
    assert [original] == task.map([0])


@pytest.mark.parametrize("name", FOLLOWED)
def test_setting_that_a_task_changes_is_set_back(elsewhere: str, name: str) -> None:
    """A task that changes a setting changes it for its own call at most."""
    read, write, first, second = FOLLOWED[name]

    @parallel(backend=elsewhere, workers=1)  # type: ignore[call-overload, untyped-decorator]
    def task(value: Any) -> Any:
        found = read()
        if value is not None:
            write(value)
        return found

    with changed(read, write, first):
        assert [first] == task.map([second])
        assert [first] == task.map([None])
        assert first == read()


def test_environment_is_followed(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that were added, changed and removed are so in a warm worker, for C code too."""

    @parallel(backend=elsewhere, workers=1)  # type: ignore[call-overload, untyped-decorator]
    def variable(name: str) -> tuple[str | None, str]:
        return os.environ.get(name), os.popen(f'printf "%s" "${name}"').read()

    name = "SHAREDTASK_TEST_VARIABLE"
    assert (None, "") == variable.map([name])[0]
    monkeypatch.setenv(name, "first")
    assert ("first", "first") == variable.map([name])[0]
    monkeypatch.setenv(name, "sécond")
    assert ("sécond", "sécond") == variable.map([name])[0]
    monkeypatch.delenv(name)
    assert (None, "") == variable.map([name])[0]


def test_environment_that_was_there_from_the_start(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that the program was started with, and has removed, is not there in tasks."""
    monkeypatch.delenv("PATH")
    find = parallel(lambda _: os.environ.get("PATH"))
    assert [None] == find.with_options(backend=elsewhere).map([0])  # type: ignore[arg-type]


def test_environment_that_a_task_changes(elsewhere: str) -> None:
    """What a task sets is gone at the next call, as if each call had begun in the caller."""
    name = "SHAREDTASK_TEST_VARIABLE"

    @parallel(backend=elsewhere, workers=1)  # type: ignore[call-overload, untyped-decorator]
    def set_it(value: str) -> str | None:
        found = os.environ.get(name)
        os.environ[name] = value
        return found

    assert [None] == set_it.map(["a"])
    assert [None] == set_it.map(["b"])
    assert name not in os.environ


@parallel(workers=1)
def warn(category: type[Warning]) -> int:
    with contextlib.redirect_stderr(None):
        warnings.warn("told", category, stacklevel=1)
    return 1


@pytest.mark.parametrize("category", [UserWarning, Mine, np.exceptions.ComplexWarning])
def test_warning_filters_are_followed(elsewhere: str, category: type[Warning]) -> None:
    """A warning that the caller has made an error is one in tasks; so is one that is ignored."""
    task = warn.with_options(backend=elsewhere)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error", category)
        with pytest.raises(category, match="told"):
            task.map([category])
        warnings.simplefilter("ignore", category)
        assert [1] == task.map([category])
        warnings.simplefilter("error", Warning)
        with pytest.raises(category, match="told"):
            task.map([category])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tol", category)
        assert [1] == task.map([category])


class Derived(Mine):
    """A kind of them."""


def test_warning_filters_hold_for_kinds_of_a_class(elsewhere: str) -> None:
    """Workers know the class of a filter by its name, also where they meet a subclass."""
    task = warn.with_options(backend=elsewhere)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Mine)
        with pytest.raises(Derived, match="told"):
            task.map([Derived])


def test_error_callback_of_numpy(elsewhere: str) -> None:
    """A function that numpy calls on errors is called in the worker."""

    @parallel(backend=elsewhere)  # type: ignore[call-overload, untyped-decorator]
    def divide(x: float) -> float:
        return float(np.float64(x) / np.float64(0))

    def refuse(kind: str, flag: int) -> None:
        raise ArithmeticError(kind)

    with np.errstate(divide="call", call=refuse), pytest.raises(ArithmeticError, match="divide"):
        divide.map([1.0])


def test_setting_that_cannot_travel_is_told(elsewhere: str) -> None:
    """The caller is warned where a function among its settings cannot be pickled."""
    lock = threading.Lock()
    task = parallel(lambda x: x + 1).with_options(backend=elsewhere)  # type: ignore[arg-type]
    with (
        np.errstate(divide="call", call=lambda *_: lock.acquire()),
        pytest.warns(RuntimeWarning, match="workers do not have numpy's error state"),
    ):
        assert [2] == task.map([1])


def test_folder_that_was_made_again(
    elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker in the removed folder goes to the one that bears its name now."""
    folder = tmp_path / "results"
    read = parallel(lambda _: Path("name.txt").read_text()).with_options(
        backend=elsewhere, workers=1
    )
    for text in ("first", "second"):
        folder.mkdir()
        monkeypatch.chdir(folder)
        (folder / "name.txt").write_text(text)
        assert [text] == read.map([0])
        shutil.rmtree(folder)
    monkeypatch.undo()


def test_setting_that_a_thread_of_a_task_changes_later(tmp_path: Path) -> None:
    """It goes on between the chunks: the next one has the caller's settings all the same.

    On Ray, variables that the caller does not have are the cluster's.
    """
    gate, is_changed, seen = (tmp_path / name for name in ("gate", "changed", "seen"))

    def leave_a_thread(_: int) -> None:
        def change() -> None:
            until(gate.exists)
            os.environ["LEFT_BY_A_THREAD"] = "1"
            is_changed.touch()
            until(seen.exists)

        threading.Thread(target=change, daemon=True).start()

    def read(_: int) -> str | None:
        return os.environ.get("LEFT_BY_A_THREAD")

    reading = parallel(backend="process", workers=1)(read)
    assert [None] == reading.map([0])  # the worker has the function: it is not sent again
    parallel(backend="process", workers=1)(leave_a_thread).map([0])
    gate.touch()
    until(is_changed.exists)
    assert [None] == reading.map([0])
    seen.touch()


# Within the time for which a look ahead of a waiting worker counts.
_SOON_SECONDS = 0.004


def start_a_thread(change: Callable[[], None]) -> None:
    def change_soon() -> None:
        time.sleep(_SOON_SECONDS)
        change()

    _thread.start_new_thread(change_soon, ())


def set_an_alarm(change: Callable[[], None]) -> None:
    signal.signal(signal.SIGALRM, lambda *_: change())
    signal.setitimer(signal.ITIMER_REAL, _SOON_SECONDS)


@pytest.mark.parametrize("leave", [start_a_thread, set_an_alarm])
def test_setting_that_changes_while_a_worker_waits(
    leave: Callable[[Callable[[], None]], None], tmp_path: Path
) -> None:
    """By a thread that ``threading`` does not know, or by a signal handler of a task."""

    def leave_behind(number: int) -> None:
        def change() -> None:
            os.environ["LEFT_BEHIND"] = "1"
            (tmp_path / str(number)).touch()

        leave(change)

    reading = parallel(backend="process", workers=1)(lambda _: os.environ.get("LEFT_BEHIND"))
    leaving = parallel(backend="process", workers=1)(leave_behind)
    found = []
    for number in range(20):
        found += reading.map([0])
        leaving.map([number])
        until((tmp_path / str(number)).exists)
    assert {None} == {*found, *reading.map([0])}
    sharedtask.shutdown()  # the worker has a handler of the task


@pytest.mark.parametrize("where", ["process", "loky", "ray"])
def test_level_of_logging_is_followed_at_each_call(
    where: Any, request: pytest.FixtureRequest
) -> None:
    """Also where an earlier call has set the same before."""
    if where == "ray":
        request.getfixturevalue("ray_runtime")
    root = logging.getLogger()
    read = parallel(backend=where, workers=1)(lambda _: logging.getLogger().level)
    levels = [10, 10, 10, 10, root.level, root.level, 20, 20, 20]
    before = root.level
    found = []
    try:
        for level in levels:
            root.setLevel(level)
            found += read.map([0])
    finally:
        root.setLevel(before)
    assert levels == found


@pytest.mark.parametrize("where", ["process", "loky"])
def test_level_that_a_task_sets_is_set_back(where: Any) -> None:
    """By the next call, however often tasks take turns that set it."""
    own = logging.getLogger().level

    def set_level(level: int) -> int:
        before = logging.getLogger().level
        logging.getLogger().setLevel(level)
        return before

    initialized = parallel(backend=where, workers=1, initializer=(set_level, (10,)))(
        lambda _: logging.getLogger().level
    )
    setting = parallel(backend=where, workers=1)(set_level)
    found = [(initialized.map([0])[0], setting.map([30])[0]) for _ in range(6)]
    assert {(10, own)} == set(found[1:])


def test_user_code_that_runs_between_two_chunks_on_ray(ray_runtime: None) -> None:
    """A value that is dropped as the next chunk begins: its finalizer may change settings."""
    del ray_runtime
    own = sys.getrecursionlimit()

    class Changes:
        def __del__(self) -> None:
            if os.getpid() != caller:
                sys.setrecursionlimit(own + 500)

    caller = os.getpid()
    read = parallel(backend="ray", workers=1)(lambda _: sys.getrecursionlimit())
    use = parallel(backend="ray", workers=1, shared=["value"])(lambda _, value: id(value) and None)
    assert [own] == read.map([0])
    for _ in range(2):
        value = Changes()
        use.map([0], value=value)
        use.map([0], value=value)
        del value
        gc.collect()
        assert [own] * 8 == [read.map([0])[0] for _ in range(8)]


def test_what_a_task_deletes_on_ray_is_there_for_others(ray_runtime: None) -> None:
    """And all that it has changed besides is put back."""
    del ray_runtime

    def delete(_: int) -> None:
        os.environ["DELETED_ARGV"] = "1"
        sys.path.insert(0, "/deleted")
        del sys.argv

    def look() -> Any:
        return os.environ.get("DELETED_ARGV"), sys.path[0] == "/deleted", hasattr(sys, "argv")

    with contextlib.suppress(sharedtask.SharedTaskError):
        parallel(backend="ray", workers=1)(delete).map([0])
    looked: Any = ray_remote(look)
    assert {(None, False, True)} == set(looked)


def ray_remote(function: Callable[[], Any]) -> list[Any]:
    """What a function gives in the workers that Ray has now."""
    import ray

    remote: Any = ray.remote(num_cpus=0.1)(function)
    return list(ray.get([remote.remote() for _ in range(8)]))


def test_time_zone_is_the_callers(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm workers follow TZ as the caller does: when it calls ``time.tzset``."""
    hour = parallel(lambda _: time.localtime(0).tm_hour).with_options(backend=elsewhere)  # type: ignore[arg-type]
    for zone in ("UTC", "Asia/Tokyo", "America/Lima", "SAME-1", "SAME-2"):
        before = time.localtime(0).tm_hour
        monkeypatch.setenv("TZ", zone)
        if elsewhere != "ray":  # whose workers have their own zone between two chunks
            assert [before] * 4 == hour.map(range(4))
        time.tzset()
        assert [time.localtime(0).tm_hour] * 4 == hour.map(range(4))
    monkeypatch.undo()
    time.tzset()


def test_time_zone_of_new_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that starts when TZ is set, but not in force yet, has the zone that its caller has."""
    hour = parallel(lambda _: time.localtime(0).tm_hour).with_options(backend="process")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert [0] * 4 == hour.map(range(4))
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        assert [0] * 4 == hour.with_options(tasks_per_worker=1).map(range(4))
    finally:
        monkeypatch.undo()
        time.tzset()


def test_most_digits_of_an_integer_are_the_callers(elsewhere: str) -> None:
    """A limit that the program has raised is raised in its workers."""
    digits = parallel(lambda _: len(str(10**5000))).with_options(backend=elsewhere)  # type: ignore[arg-type]
    limit = sys.get_int_max_str_digits()
    with pytest.raises(ValueError, match="limit"):
        digits.map([0])
    sys.set_int_max_str_digits(6000)
    try:
        assert [5001] == digits.map([0])
    finally:
        sys.set_int_max_str_digits(limit)


def test_threads_have_settings_of_their_own(elsewhere: str) -> None:
    """Two threads that call with different error states each get their own."""
    state = parallel(lambda _: np.geterr()["over"]).with_options(backend=elsewhere)  # type: ignore[arg-type]
    found: dict[str, list[Any]] = {"raise": [], "ignore": []}

    def call(mode: Any) -> None:
        with np.errstate(over=mode):
            found[mode].extend(state.map([0]) for _ in range(5))

    threads = [threading.Thread(target=call, args=(mode,)) for mode in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {mode: [[mode]] * 5 for mode in found} == found


def test_unchanged_settings_are_sent_once() -> None:
    """As long as nothing changes they are one object, which is published once."""
    first = process_settings.current()
    assert process_settings.current() is first
    with np.errstate(over="raise"):
        assert process_settings.current() is not first
    assert process_settings.current() is first


def test_settings_in_use_outlast_others() -> None:
    """Of several threads' settings the ones that were used last are kept."""
    first = process_settings.current()
    for _ in range(2):
        for mode in ("raise", "ignore", "warn", "call"):
            with np.errstate(over=mode, under="raise"):
                assert process_settings.current() is not first
            assert process_settings.current() is first


# ------------------------------------------------------------------------------ import path


def write_module(folder: Path, name: str, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    return str(folder)


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a module that is forgotten afterwards."""
    name = f"module_{os.urandom(4).hex()}"
    yield name
    sys.modules.pop(name, None)


def test_module_that_shadows_another(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A folder that comes in front brings its modules, functions and classes, to warm workers."""
    old = write_module(tmp_path / "old", name, "class Thing:\n    def say(self): return 'old'\n")
    new = write_module(tmp_path / "new", name, "class Thing:\n    def say(self): return 'new'\n")
    say = parallel(lambda thing: thing.say()).with_options(backend=elsewhere)  # type: ignore[arg-type]
    monkeypatch.syspath_prepend(old)
    thing = importlib.import_module(name).Thing()
    assert ["old"] * 4 == say.map([thing] * 4)
    monkeypatch.syspath_prepend(new)
    del sys.modules[name]
    thing = importlib.import_module(name).Thing()
    assert ["new"] * 4 == say.map([thing] * 4)


def test_module_that_is_shadowed_later(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A module that the caller goes on using is the same in workers that import it afterwards."""
    old = write_module(tmp_path / "old", name, "class Thing:\n    def say(self): return 'old'\n")
    new = write_module(tmp_path / "new", name, "class Thing:\n    def say(self): return 'new'\n")
    say = parallel(lambda thing: thing.say()).with_options(backend=elsewhere)  # type: ignore[arg-type]
    monkeypatch.syspath_prepend(old)
    thing = importlib.import_module(name).Thing()
    monkeypatch.syspath_prepend(new)
    assert ["old"] * 4 == say.map([thing] * 4)


def test_entry_that_was_removed(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What the caller could not import any more, a task cannot."""
    folder = write_module(tmp_path / "there", name, "")

    @parallel(backend=elsewhere)  # type: ignore[call-overload, untyped-decorator]
    def find(name: str) -> bool:
        return importlib.util.find_spec(name) is not None

    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        assert [True] == find.map([name])
    importlib.invalidate_caches()
    assert [False] == find.map([name])


def test_order_of_the_path() -> None:
    """Entries have the caller's order in a worker of this machine."""
    entries = parallel(lambda _: sys.path).with_options(backend="process").map([0])[0]
    assert [os.path.abspath(entry) for entry in sys.path] == entries


def test_order_of_the_path_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python is installed elsewhere, folders of the caller come before and after it."""
    installed = ("/usr",)
    caller = ("/first", "/usr/lib/python", "/between", "/usr/lib/site-packages", "/last")
    monkeypatch.setattr(sys, "path", ["/opt/python", "/last", "/opt/site-packages"])
    import_path.write_among(import_path.ImportPath(caller, (), 0, installed))
    expected = ["/first", "/opt/python", "/opt/site-packages", "/between", "/last"]
    assert expected == sys.path


def test_user_ray_tasks_do_not_see_settings(ray_runtime: None) -> None:
    """Ray's workers run tasks of others: those find everything as it was."""
    import ray

    @ray.remote(num_cpus=1)
    def state() -> tuple[int, Any, list[str]]:
        return sys.getrecursionlimit(), os.environ.get("SHAREDTASK_TEST_VARIABLE"), sys.path[:]

    before = ray.get([state.remote() for _ in range(4)])
    task = parallel(lambda _: (sys.getrecursionlimit(), os.environ["SHAREDTASK_TEST_VARIABLE"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAREDTASK_TEST_VARIABLE", "set")
        limit = sys.getrecursionlimit()
        with changed(sys.getrecursionlimit, sys.setrecursionlimit, limit + 7):
            assert [(limit + 7, "set")] * 4 == task.with_options(backend="ray").map(range(4))
    assert before == ray.get([state.remote() for _ in range(4)])


# ----------------------------------------------------------------------------- context

request = contextvars.ContextVar("request", default="none")


@pytest.mark.parametrize("local", ["serial", "thread"])
def test_items_run_in_the_context_of_the_caller(local: str) -> None:
    """Context variables, numpy's and decimal's settings are those of the thread that calls."""

    @parallel(backend=local)  # type: ignore[call-overload, untyped-decorator]
    def state(_: int) -> tuple[str, str, int]:
        return request.get(), np.geterr()["over"], decimal.getcontext().prec

    token = request.set("mine")
    try:
        with np.errstate(over="raise"), decimal.localcontext() as context:
            context.prec = 9
            assert [("mine", "raise", 9)] * 6 == state.map(range(6))
            assert ("mine", "raise", 9) == state.submit(0).result()
            assert [("mine", "raise", 9)] * 3 == list(state.imap(range(3)))
    finally:
        request.reset(token)


@pytest.mark.parametrize("local", ["serial", "thread"])
def test_items_do_not_see_what_others_set(local: str) -> None:
    """What an item sets in its context is there for it alone, and not for the caller."""

    @parallel(backend=local, workers=1)  # type: ignore[call-overload, untyped-decorator]
    def set_it(x: int) -> str:
        before = request.get()
        request.set(str(x))
        return before

    assert ["none"] * 5 == set_it.map(range(5))
    assert "none" == request.get()


def test_awaited_call_runs_in_the_context_of_its_coroutine(backend: str) -> None:
    """The settings of the coroutine that awaits are those of its tasks."""
    task = parallel(lambda _: (np.geterr()["over"], decimal.getcontext().prec))

    async def main() -> list[Any]:
        with np.errstate(over="raise"), decimal.localcontext() as context:
            context.prec = 9
            called = task.with_options(backend=backend)  # type: ignore[arg-type]
            return [*await called.amap([0]), *[r async for r in called.aimap([0])]]

    assert [("raise", 9)] * 2 == asyncio.run(main())
