"""What tasks log, and warn of, is handled in the caller."""

import asyncio
import logging
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sharedtask
from sharedtask import parallel
from sharedtask.backends import call_logs
from sharedtask.joblib import register

pytestmark = pytest.mark.timeout(60)

IN_WORKERS = ("process", "ray")


class Kept(logging.Handler):
    """Keeps the records that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler of the logger ``jobs``, whose level is INFO; all is as it was afterwards."""
    handler, logger = Kept(), logging.getLogger("jobs")
    before = logger.level, logger.propagate, logging.root.manager.disable
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.level, logger.propagate = before[:2]
    logging.disable(before[2])


def task(backend: Any, function: Any, **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, **options)


def say(x: int, name: str = "jobs", level: int = logging.INFO) -> int:
    logging.getLogger(name).log(level, "item %d", x)
    return x


def test_record_is_handled_by_the_logger_of_its_name(backend: str, kept: Kept) -> None:
    """The caller's logger of the same name gets the record, in that item's place and words."""
    assert [0, 1, 2] == task(backend, say).map(range(3))
    assert ["item 0", "item 1", "item 2"] == sorted(kept.texts)
    record = kept.records[0]
    assert ("jobs", logging.INFO, "INFO", "say") == (
        record.name,
        record.levelno,
        record.levelname,
        record.funcName,
    )
    assert ("item %d", "test_logs.py") == (record.msg, record.filename)
    assert __file__ == record.pathname


def test_child_of_a_logger_propagates(backend: str, kept: Kept) -> None:
    """A record goes up the caller's loggers as far as they propagate."""
    task(backend, say).map(range(2), name="jobs.deep.down")
    assert ["item 0", "item 1"] == sorted(kept.texts)
    logging.getLogger("jobs.deep").propagate = False
    try:
        task(backend, say).map(range(2), name="jobs.deep.down")
    finally:
        logging.getLogger("jobs.deep").propagate = True
    assert 2 == len(kept.texts)


def test_levels_are_those_of_the_caller(backend: str, kept: Kept) -> None:
    """A level counts as it is when the call begins, for each logger by itself."""
    logger = logging.getLogger("jobs")
    for level, count in ((logging.WARNING, 0), (logging.INFO, 2), (logging.ERROR, 0)):
        logger.setLevel(level)
        kept.records.clear()
        task(backend, say).map(range(2))
        assert count == len(kept.records), level
    task(backend, say).map(range(2), level=logging.CRITICAL)
    assert 2 == len(kept.records)


def test_level_of_a_child_is_its_own(backend: str, kept: Kept) -> None:
    """A logger below one with a level may have another, or none again."""
    child = logging.getLogger("jobs.chatty")
    child.setLevel(logging.DEBUG)
    task(backend, say).map([1], name="jobs.chatty", level=logging.DEBUG)
    child.setLevel(logging.NOTSET)
    task(backend, say).map([2], name="jobs.chatty", level=logging.DEBUG)
    assert ["item 1"] == kept.texts


def test_disabled_logging_is_disabled_in_tasks(backend: str, kept: Kept) -> None:
    """``logging.disable`` holds for tasks of the next call."""
    logging.disable(logging.INFO)
    task(backend, say).map(range(2))
    logging.disable(logging.NOTSET)
    task(backend, say).map([7])
    assert ["item 7"] == kept.texts


def is_enabled(name: str) -> bool:
    return logging.getLogger(name).isEnabledFor(logging.DEBUG)


def test_task_can_ask_for_the_level(backend: str, kept: Kept) -> None:
    """``isEnabledFor`` in a task answers as in the caller."""
    logging.getLogger("jobs.other").setLevel(logging.DEBUG)
    try:
        asked = task(backend, is_enabled).map(["jobs", "jobs.other", "jobs.other.child"])
    finally:
        logging.getLogger("jobs.other").setLevel(logging.NOTSET)
    assert [False, True, True] == asked


@pytest.mark.parametrize("backend", IN_WORKERS, indirect=True)
def test_level_counts_before_the_record_is_sent(backend: str, kept: Kept) -> None:
    """A record below the level is not made in the worker: its arguments are not formatted."""

    class Costly:
        def __str__(self) -> str:
            raise AssertionError

    def debug(x: int) -> int:
        logging.getLogger("jobs").debug("item %s", Costly())
        return x

    assert [1] == task(backend, debug).map([1])
    assert [] == kept.records


def test_filters_of_the_caller(backend: str, kept: Kept) -> None:
    """A filter of the caller's logger decides, and may change the record."""

    def odd(record: logging.LogRecord) -> bool:
        record.msg = record.msg.replace("item", "odd")
        return "1" in record.getMessage()

    logger = logging.getLogger("jobs")
    logger.addFilter(odd)
    try:
        task(backend, say).map(range(3))
    finally:
        logger.removeFilter(odd)
    assert ["odd 1"] == kept.texts


def fail_and_tell(x: int) -> int:
    try:
        return 1 // x
    except ZeroDivisionError:
        logging.getLogger("jobs").exception("item %d", x)
        return -1


def test_traceback_comes_as_text(backend: str, kept: Kept) -> None:
    """A formatter of the caller shows the traceback of the task."""
    assert [-1, 1] == task(backend, fail_and_tell).map([0, 1])
    (record,) = kept.records
    text = logging.Formatter("%(message)s").format(record)
    assert "item 0\nTraceback" in text
    assert "in fail_and_tell" in text
    assert text.splitlines()[-1].startswith("ZeroDivisionError: ")


class Mine:
    """A class of the test."""

    def __init__(self, x: int) -> None:
        self.x = x


def tell_more(x: int) -> int:
    more = {"user": "me", "mine": Mine(x), "lock": threading.Lock(), "list": [x]}
    logging.getLogger("jobs").info("item", extra=more)
    return x


def test_extra_fields(backend: str, kept: Kept) -> None:
    """Fields that the task adds are the record's; what does not pickle is its text."""
    task(backend, tell_more).map([3])
    record: Any = kept.records[0]
    assert ("me", 3, [3]) == (record.user, record.mine.x, record.list)
    assert type(record.mine) is Mine
    assert "lock" in str(record.lock)


@pytest.mark.parametrize("backend", IN_WORKERS, indirect=True)
def test_record_names_its_worker(backend: str, kept: Kept) -> None:
    """A record has the worker's process and thread."""

    def tell_pid(x: int) -> int:
        logging.getLogger("jobs").info("here", extra={"asked": os.getpid()})
        return x

    task(backend, tell_pid).map(range(2))
    assert 2 == len(kept.records)
    for record in kept.records:
        found: Any = record
        assert found.asked == found.process != os.getpid()
        assert "Worker" in found.processName
        assert "MainThread" == found.threadName
        assert found.worker


def test_time_of_a_record(backend: str, kept: Kept) -> None:
    """A record has the time at which the task has logged it, counted from the caller's start."""
    before = time.time()
    task(backend, say).map(range(2))
    own = logging.makeLogRecord({})
    assert 2 == len(kept.records)
    for record in kept.records:
        assert before <= record.created <= time.time()
        assert 0 < record.relativeCreated <= own.relativeCreated


def test_names_of_levels(backend: str, kept: Kept) -> None:
    """A level that the caller has named has that name."""
    logging.addLevelName(25, "NOTICE")
    task(backend, say).map([1], level=25)
    assert ["NOTICE"] == [record.levelname for record in kept.records]


def say_twice(x: int) -> int:
    logging.getLogger("jobs").info("%d a", x)
    logging.getLogger("jobs").info("%d b", x)
    return x


@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
def test_records_come_before_the_result(backend: str, method: str, kept: Kept) -> None:
    """What an item has logged is handled when its result is there, in the order of its worker."""
    for result in getattr(task(backend, say_twice), method)(range(40)):
        assert [f"{result} a", f"{result} b"] == [
            text for text in kept.texts if text.startswith(f"{result} ")
        ]
    by_worker: dict[Any, list[float]] = {}
    for record in kept.records:
        by_worker.setdefault((record.process, record.thread), []).append(record.created)
    assert all(times == sorted(times) for times in by_worker.values())
    assert 80 == len(kept.records)


def test_records_of_a_submit_come_before_its_result(backend: str, kept: Kept) -> None:
    """So it is with a future, also where many share a session."""
    jobs = task(backend, say)
    futures = [jobs.submit(x) for x in range(20)]
    for x, future in enumerate(futures):
        assert x == future.result(30)
        assert f"item {x}" in kept.texts
    assert 20 == len(kept.texts)


def test_records_of_a_failed_item(backend: str, kept: Kept) -> None:
    """What an item has logged before it raised is handled before the error is."""

    def fail(x: int) -> int:
        logging.getLogger("jobs").error("about to fail")
        raise ValueError(x)

    with pytest.raises(ValueError, match="1"):
        task(backend, fail).map([1])
    assert ["about to fail"] == kept.texts


@pytest.mark.parametrize("backend", IN_WORKERS, indirect=True)
def test_last_words_of_a_worker_arrive(backend: str, kept: Kept) -> None:
    """What a task has logged just before its worker died is not lost."""

    def die(x: int) -> int:
        if x == 1:
            logging.getLogger("jobs").error("last words")
            os._exit(1)
        return x

    results = task(backend, die, return_exceptions=True, chunksize=1).map(range(3))
    assert isinstance(results[1], sharedtask.WorkerDiedError)
    assert ["last words"] == kept.texts


@pytest.mark.parametrize("backend", IN_WORKERS, indirect=True)
def test_logs_false_leaves_records_in_the_worker(backend: str, kept: Kept) -> None:
    """With ``logs=False`` no record comes, and the next call with it has them again."""
    task(backend, say, logs=False).map(range(2))
    assert [] == kept.texts
    task(backend, say).map(range(2))
    assert 2 == len(kept.texts)


def test_record_is_handled_in_the_thread_that_waits(backend: str) -> None:
    """Handlers run in the thread that has called ``map``."""
    threads = []

    class Here(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            threads.append(threading.current_thread())

    here = Here()
    logging.getLogger("jobs").addHandler(here)
    try:
        task(backend, say).map(range(3), level=logging.ERROR)
    finally:
        logging.getLogger("jobs").removeHandler(here)
    if backend != "thread":  # there it is the task's own
        assert {threading.current_thread()} == set(threads)


@pytest.mark.parametrize("backend", IN_WORKERS, indirect=True)
def test_handler_may_map(backend: Any, kept: Kept) -> None:
    """A handler is the user's code: it may call the library."""
    found: list[list[int]] = []

    class Maps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(parallel(abs).with_options(backend=backend).map([-1, -2]))

    maps = Maps()
    logging.getLogger("jobs").addHandler(maps)
    try:
        assert [0, 1, 2] == task(backend, say).map(range(3))
        assert 5 == task(backend, say).submit(5).result(30)
    finally:
        logging.getLogger("jobs").removeHandler(maps)
    assert [[1, 2]] * 4 == found


def configure(path: str) -> str:
    logger = logging.getLogger("jobs.file")
    if not logger.handlers:
        logger.addHandler(logging.FileHandler(path))
        logger.setLevel(logging.DEBUG)
    logger.debug("to the file")
    return path


@pytest.mark.parametrize("backend", ["process"])
def test_handler_that_a_task_sets_up_works(backend: str, tmp_path: Path, kept: Kept) -> None:
    """A handler of the worker's own gets its records, with the level that the task has set."""
    jobs, path = task(backend, configure, workers=1), str(tmp_path / "log")
    for _ in range(2):
        jobs.map([path, path])
    logging.getLogger("jobs").setLevel(logging.WARNING)
    jobs.map([path])
    assert ["to the file"] * 5 == (tmp_path / "log").read_text().splitlines()
    assert 5 == len(kept.texts)
    sharedtask.shutdown()


def test_basic_config_in_a_task(script: Any) -> None:
    """A task that configures logging by itself, at each item, is heard once for each record."""
    ran = script(
        """
import logging
from sharedtask import parallel
def say(x):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.info("item %d", x)
task = parallel(say).with_options(workers=1)
for _ in range(2):
    task.map(range(2))
"""
    )
    assert 0 == ran.end()
    assert ["item 0", "item 1"] * 2 == ran.err.splitlines()


def test_module_that_configures_logging_for_both(script: Any, tmp_path: Path) -> None:
    """Where caller and worker have the same handler, a record is handled by the caller's alone."""
    (tmp_path / "both.py").write_text(
        """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
def say(x):
    logging.info("item %d", x)
"""
    )
    ran = script(
        """
import both
from sharedtask import parallel
parallel(both.say).with_options(workers=1).map(range(3))
"""
    )
    assert 0 == ran.end()
    assert ["item 0", "item 1", "item 2"] == ran.err.splitlines()


def test_without_any_handler_warnings_are_printed(script: Any) -> None:
    """As in a program without tasks, a warning goes to stderr, and what is below does not."""
    ran = script(
        """
import logging
from sharedtask import parallel
def say(x):
    logging.getLogger("a").warning("loud %d", x)
    logging.getLogger("a").info("quiet")
parallel(say).with_options(workers=1).map(range(2))
"""
    )
    assert 0 == ran.end()
    assert ["loud 0", "loud 1"] == ran.err.splitlines()


def test_level_that_a_module_sets_while_it_is_imported(script: Any, tmp_path: Path) -> None:
    """A worker that imports a module later has the level that the caller has set since."""
    (tmp_path / "loud.py").write_text(
        """
import logging
log = logging.getLogger("loud")
log.setLevel(logging.DEBUG)
def say(x):
    log.debug("debug")
    log.warning("warning")
    return log.level
"""
    )
    ran = script(
        """
import logging, loud
from sharedtask import parallel
logging.getLogger("loud").setLevel(logging.WARNING)
print(*parallel(loud.say).with_options(workers=1).map(range(1)))
"""
    )
    assert 0 == ran.end()
    assert [str(logging.WARNING)] == ran.out.split()
    assert ["warning"] == ran.err.splitlines()


def test_logger_of_a_librarys_own_class(script: Any, tmp_path: Path) -> None:
    """A worker makes no logger whose class a library decides, and has its level all the same."""
    (tmp_path / "special.py").write_text(
        """
import logging
class Special(logging.Logger):
    def shout(self, text):
        self.info(text.upper())
old = logging.getLoggerClass()
logging.setLoggerClass(Special)
log = logging.getLogger("special")
logging.setLoggerClass(old)
def say(x):
    log.shout("hey")
"""
    )
    ran = script(
        """
import logging, special
from sharedtask import parallel
logging.basicConfig(format="%(message)s")
special.log.setLevel(logging.INFO)
parallel(special.say).with_options(workers=1).map(range(1))
"""
    )
    assert 0 == ran.end()
    assert ["HEY"] == ran.err.splitlines()


def inner(x: int) -> int:
    logging.getLogger("jobs").info("inner %d", x)
    return x


def outer(x: int) -> list[int]:
    return parallel(inner).map([x, x + 1])


def test_nested_map_tells_once(backend: str, kept: Kept) -> None:
    """What a task of a task logs goes up once."""
    assert [[0, 1], [10, 11]] == task(backend, outer).map([0, 10])
    assert ["inner 0", "inner 1", "inner 10", "inner 11"] == sorted(kept.texts)


def flood(x: int, count: int, size: int) -> int:
    logger = logging.getLogger("jobs")
    for _ in range(count):
        logger.info("x" * size)
    return x


class Slow(Kept):
    """A handler that takes its time."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        time.sleep(0.01)


def told_of_drops(jobs: Any, **given: int) -> int:
    """How many records were dropped, as it is told once, in a call of two items."""
    ours, logger = Kept(), logging.getLogger("sharedtask")
    logger.addHandler(ours)
    try:
        assert [0, 1] == jobs.map(range(2), **given)
    finally:
        logger.removeHandler(ours)
    (told,) = ours.records
    name, dropped = told.args  # type: ignore[misc]
    assert "flood()" == name
    assert isinstance(dropped, int)
    return dropped


def test_flood_is_bounded_and_told(monkeypatch: pytest.MonkeyPatch, kept: Kept) -> None:
    """Records that come faster than they are handled are dropped at last, counted and told once."""
    monkeypatch.setattr(call_logs, "MOST", 10)
    slow = Slow()
    logging.getLogger("jobs").addHandler(slow)
    try:
        dropped = told_of_drops(task("process", flood, chunksize=1), count=300, size=20_000)
    finally:
        logging.getLogger("jobs").removeHandler(slow)
    assert 600 == dropped + len(slow.records)


@pytest.mark.parametrize("backend", ["ray"], indirect=True)
def test_flood_on_ray_is_bounded_and_told(backend: str, kept: Kept) -> None:
    """A chunk returns so many records at most, and how many more there were."""
    dropped = told_of_drops(task(backend, flood, chunksize=1), count=12_000, size=10)
    assert 24_000 == dropped + len(kept.records)


@pytest.mark.parametrize("backend", IN_WORKERS, indirect=True)
def test_many_records_are_all_handled(backend: str, kept: Kept) -> None:
    """A record for each of many small items is nothing that would be dropped."""
    task(backend, say).map(range(5_000))
    assert 5_000 == len(kept.records)


@pytest.mark.parametrize("backend", IN_WORKERS, indirect=True)
def test_large_record_is_cut_off(backend: str, kept: Kept) -> None:
    """A message of megabytes is shortened, and says so."""

    def shout(x: int) -> int:
        logging.getLogger("jobs").info("x" * 3_000_000)
        return x

    task(backend, shout).map([1])
    (text,) = kept.texts
    assert text.endswith("cut off: 3000000 characters]")


def test_arguments_that_do_not_fit_the_message(
    kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message that cannot be made is told on stderr, as logging itself does."""

    def wrong(x: int) -> int:
        logging.getLogger("jobs").info("%d", Mine(x))
        return x

    assert [1] == task("process", wrong).map([1])
    assert [] == kept.records
    assert "--- Logging error ---" in capsys.readouterr().err


def test_what_a_filter_raises_ends_the_call(backend: str, kept: Kept) -> None:
    """An error of the user's filter is raised, as in a loop."""

    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError(record.getMessage())

    logger = logging.getLogger("jobs")
    logger.addFilter(refuse)
    try:
        with pytest.raises(LookupError, match="item 1"):
            task(backend, say).map([1])
    finally:
        logger.removeFilter(refuse)
    assert [2] == task(backend, say).map([2])


def test_records_of_awaited_calls(backend: str, kept: Kept) -> None:
    """``amap`` and ``aimap`` handle records as the other ways do."""

    async def both() -> list[int]:
        jobs = task(backend, say)
        return [*await jobs.amap(range(2)), *[x async for x in jobs.aimap(range(2, 4))]]

    assert [0, 1, 2, 3] == asyncio.run(both())
    assert [f"item {x}" for x in range(4)] == sorted(kept.texts)


def test_records_and_warnings_of_joblib(kept: Kept) -> None:
    """A function that joblib runs is heard too, if its backend is ours."""
    joblib = pytest.importorskip("joblib")
    register()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with joblib.parallel_config(backend="sharedtask", n_jobs=2):
            joblib.Parallel()(joblib.delayed(function)(4) for function in (say, warn))
    assert ["item 4"] == kept.texts
    assert ["a place", "number 4"] == [str(each.message) for each in seen]


@pytest.mark.parametrize("backend", IN_WORKERS, indirect=True)
def test_interrupted_handler(backend: str) -> None:
    """A Ctrl-C that comes while a handler runs ends the call, and the next one works."""

    class Interrupted(Kept):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    handler = Interrupted()
    logging.getLogger("jobs").addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            task(backend, say).map(range(3), level=logging.ERROR)
    finally:
        logging.getLogger("jobs").removeHandler(handler)
    assert [0, 1, 2] == task(backend, say).map(range(3))


def test_records_come_while_the_item_runs(kept: Kept, tmp_path: Path) -> None:
    """A long item is heard as it runs."""

    def wait_for_answer(x: int) -> int:
        logging.getLogger("jobs").info("listening")
        while not (tmp_path / "answer").exists():
            time.sleep(0.01)
        return x

    class Answers(Kept):
        def emit(self, record: logging.LogRecord) -> None:
            (tmp_path / "answer").touch()

    handler = Answers()
    logging.getLogger("jobs").addHandler(handler)
    try:
        assert [1] == task("process", wait_for_answer).map([1])
        (tmp_path / "answer").unlink()
        assert 2 == task("process", wait_for_answer).submit(2).result(30)
    finally:
        logging.getLogger("jobs").removeHandler(handler)


def test_forked_child_of_a_task_logs_to_its_own_handlers(kept: Kept) -> None:
    """A process that a task forks does not write where the worker writes."""

    def fork(x: int) -> int:
        pid = os.fork()
        if pid == 0:
            logging.getLogger("jobs").info("from the child")
            os._exit(0)
        os.waitpid(pid, 0)
        logging.getLogger("jobs").info("from the worker")
        return x

    assert [1] == task("process", fork).map([1])
    assert ["from the worker"] == kept.texts


# --------------------------------------------------------------------------------- warnings


def warn(x: int) -> int:
    warnings.warn("a place", RuntimeWarning, stacklevel=1)
    warnings.warn(f"number {x}", UserWarning, stacklevel=1)
    return x


def test_warning_is_recorded_around_the_map(backend: str) -> None:
    """``catch_warnings(record=True)`` around a map sees what its tasks warn of, with its line."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        task(backend, warn).map(range(3))
    assert {"a place": 3, "number 0": 1, "number 1": 1, "number 2": 1} == Counter(
        str(each.message) for each in seen
    )
    place = next(each for each in seen if str(each.message) == "a place")
    assert (RuntimeWarning, __file__) == (place.category, place.filename)
    assert warn.__code__.co_firstlineno + 1 == place.lineno


def test_each_place_is_shown_once(backend: str) -> None:
    """With the default action a place is shown once, however many workers come by."""
    jobs = task(backend, warn, chunksize=1)
    for _ in range(2):  # and again within the next block, as Python does
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("default")
            jobs.map(range(6))
            jobs.map(range(6))
        shown = Counter(str(each.message) for each in seen)
        assert {"a place": 1, **{f"number {x}": 1 for x in range(6)}} == shown


def test_ignored_warning_is_silent(backend: str) -> None:
    """The caller's filters decide."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="number")
        task(backend, warn).map(range(2))
    assert {"a place"} == {str(each.message) for each in seen}


def test_error_filter_raises_in_the_task(backend: str) -> None:
    """A warning that is an error is raised where it comes up."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="a place"):
            task(backend, warn).map(range(2))


def test_own_showwarning(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``showwarning`` of the caller is called."""
    shown: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda m, *_, **__: shown.append(str(m)))
        task(backend, warn).map([4])
        monkeypatch.undo()
    assert ["a place", "number 4"] == shown


def test_captured_warnings(backend: str) -> None:
    """``logging.captureWarnings`` in the caller has them logged."""
    handler = Kept()
    logging.getLogger("py.warnings").addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        try:
            task(backend, warn).map([4])
        finally:
            logging.captureWarnings(capture=False)
            logging.getLogger("py.warnings").removeHandler(handler)
    assert 2 == len(handler.texts)
    assert "RuntimeWarning: a place" in handler.texts[0]


class OwnWarning(UserWarning):
    """Of the test."""


def test_warning_of_an_own_class(backend: str) -> None:
    """A warning is of the class that the task has used, with its arguments."""

    def tell(x: int) -> int:
        warnings.warn(OwnWarning("mine", x), stacklevel=1)
        return x

    with pytest.warns(OwnWarning) as caught:
        task(backend, tell).map([7])
    assert ("mine", 7) == caught[0].message.args  # type: ignore[union-attr]


def test_task_that_catches_its_warnings(backend: str) -> None:
    """What a task records by itself goes nowhere else."""

    def catch(x: int) -> int:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warn(x)
        return len(seen)

    with warnings.catch_warnings(record=True) as here:
        warnings.simplefilter("always")
        assert [2] == task(backend, catch).map([1])
    assert [] == here
