"""The caller's settings are the same object until one of them is another, and then a new one."""

import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from interrupting import interrupted_at, places_of

from sharedtask.backends.worker import log_levels, process_settings, settings
from sharedtask.backends.worker.process_settings import SettingsFollower
from sharedtask.backends.worker.runner import Runner
from sharedtask.backends.worker.settings import SETTINGS


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with process_settings.restored():
        yield


CHANGES: dict[str, Callable[[], object]] = {
    "numpy's error state": lambda: np.seterr(divide="raise"),
    "its handler": lambda: (np.seterr(all="call"), np.seterrcall(lambda *_: None)),
    "numpy's print options": lambda: np.set_printoptions(precision=3),
    "os.environ": lambda: os.environ.update(GLANCED="1"),
    "the warning filters": lambda: warnings.simplefilter("ignore", ResourceWarning),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_seen(change: str) -> None:
    """At the next call, and as often as it is changed."""
    before = process_settings.current()
    assert before is process_settings.current()
    CHANGES[change]()
    after = process_settings.current()
    assert before is not after
    assert before != after
    assert after is process_settings.current()


def test_equal_settings_are_the_same() -> None:
    """Those of a block that is entered again are not sent to the workers again."""
    found = []
    for _ in range(3):
        with np.errstate(divide="raise"), np.printoptions(precision=2):
            found.append(process_settings.current())
        found.append(process_settings.current())
    assert 2 == len({id(each) for each in found})


def test_numpy_is_looked_at_without_reading_it() -> None:
    """It keeps each group of settings in one object, which it replaces."""
    places = {
        "numpy's error state": "numpy._core.umath",
        "numpy's print options": "numpy._core.printoptions",
    }
    known = [name for name, module in places.items() if module in sys.modules]
    assert known == [setting.name for setting in SETTINGS if setting.glance is not None]


def test_settings_that_change_all_the_time_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read between two glances that differ is not found by either."""
    looks = itertools.count()
    monkeypatch.setattr(process_settings, "_recent", [])
    monkeypatch.setattr(process_settings, "_glance", lambda: (next(looks),))
    process_settings.current()
    assert [()] == [seen.glance for seen in process_settings._recent]


def test_settings_that_change_for_a_moment_are_known_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are read again until a glance before and one after it agree."""
    looks = itertools.chain(range(5), itertools.repeat(7))
    monkeypatch.setattr(process_settings, "_recent", [])
    monkeypatch.setattr(process_settings, "_glance", lambda: (next(looks),))
    process_settings.current()
    assert [(7,)] == [seen.glance for seen in process_settings._recent]


def test_few_settings_are_kept_and_none_of_them_twice() -> None:
    """Two that alternate push out none that is in use, and what is not used any more goes."""
    with np.errstate(divide="raise"):
        other = process_settings.current()
    for _ in range(3):
        for over in ("raise", "ignore"):
            with np.errstate(over=over):
                process_settings.current()
    with np.errstate(divide="raise"):
        assert other is process_settings.current()
    for precision in range(10):
        with np.printoptions(precision=precision):
            process_settings.current()
    assert process_settings._MOST == len(process_settings._recent)


def test_handler_of_numpy_that_is_not_called_does_not_count() -> None:
    """It may be of any kind: workers are not sent what they never use."""
    before = process_settings.current()
    with np.errstate(call=threading.Lock().acquire):  # type: ignore[arg-type]
        assert before is process_settings.current()


def test_umask_is_read_without_a_change_beside_other_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that another thread creates at that moment would have other permissions."""
    mask = os.umask(0o027)
    try:
        assert 0o027 == settings._read_umask()
        monkeypatch.setattr(os, "umask", None)
        ended = threading.Event()
        thread = threading.Thread(target=ended.wait)
        thread.start()
        try:
            assert 0o027 == settings._read_umask()
        finally:
            ended.set()
            thread.join()
    finally:
        monkeypatch.undo()
        os.umask(mask)


def test_warning_that_was_shown_meets_other_filters() -> None:
    """Python remembers what it has shown as long as its filters stay: a worker changes them."""

    def warn() -> None:
        warnings.warn("told", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        warn()
        warn()
        assert 1 == len(shown)
        settings._restore_filters([("error", None, UserWarning, None, 0)])
        with pytest.raises(UserWarning, match="told"):
            warn()


def follower() -> SettingsFollower:
    """A worker that has the present settings of this process."""
    made = SettingsFollower()
    made.apply(process_settings.current())
    return made


def test_settings_that_are_as_before_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker writes what differs: a filter of warnings, written again, tells them all again."""
    worker, written = follower(), list[str]()
    write = SettingsFollower._write

    def noted(self: SettingsFollower, setting: settings.Setting, value: Any) -> None:
        written.append(setting.name)
        write(self, setting, value)

    monkeypatch.setattr(SettingsFollower, "_write", noted)
    with np.printoptions(precision=3):
        wanted = process_settings.current()
    worker.apply(wanted)
    assert ["numpy's print options"] == written
    np.seterr(under="raise")  # as a task does
    worker.apply(wanted)
    assert ["numpy's print options", "numpy's error state"] == written
    worker.apply(wanted)
    assert 2 == len(written)


def test_others_get_back_what_they_had_last() -> None:
    """Those who use this process change it too: each block restores what it found."""
    for precision, folder in ((3, "/one"), (4, "/two"), (4, "/two")):
        np.set_printoptions(precision=precision)
        sys.argv = [folder]
        with process_settings.restored():
            np.set_printoptions(precision=9)
            sys.argv = []
            os.environ["BY_A_TASK"] = "1"
        assert (precision, [folder]) == (np.get_printoptions()["precision"], sys.argv)
        assert "BY_A_TASK" not in os.environ


def test_each_chunk_elsewhere_has_the_settings_of_its_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the last one, or others in between, have left."""
    with np.printoptions(precision=3), np.errstate(divide="raise"):
        monkeypatch.setattr(sys, "argv", ["caller"])
        wanted = process_settings.current(here=False)
    monkeypatch.setattr(sys, "argv", ["worker"])
    worker, looks = SettingsFollower(elsewhere=True), list[None]()
    glance = process_settings._glance

    def counted() -> tuple[Any, ...]:
        looks.append(None)
        return glance()

    monkeypatch.setattr(process_settings, "_glance", counted)
    counts = []
    for left in ("worker", "worker", "worker", "others", "others"):
        sys.argv = [left]
        looks.clear()
        with process_settings.restored():
            worker.apply(wanted)
            assert ["caller"] == sys.argv
            assert 3 == np.get_printoptions()["precision"]
            assert "raise" == np.geterr()["divide"]
            sys.argv = ["task"]
            np.seterr(divide="ignore")
        counts.append(len(looks))
        assert [left] == sys.argv
    assert 2 >= max(counts)


def test_filters_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay those of the caller also where a task has changed its own."""
    built: list[tuple[str, str]] = []
    category = settings._category

    def noted(*names: str) -> type:
        built.append(names)  # type: ignore[arg-type]
        return category(*names)

    monkeypatch.setattr(settings, "_category", noted)
    plain = settings._plain_filters((("error", None, UserWarning, None, 0),))
    for _ in range(3):
        settings._write_filters(plain)
        assert [("error", None, UserWarning, None, 0)] == list(warnings.filters)
        warnings.simplefilter("ignore")
    assert 1 == len(built)
    settings._write_filters(settings._plain_filters((("ignore", None, UserWarning, None, 0),)))
    assert [("ignore", None, UserWarning, None, 0)] == list(warnings.filters)


def test_level_that_is_there_already_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """To set one makes each logger forget what it has answered."""
    monkeypatch.setattr(log_levels, "_state", log_levels._State())
    logger = logging.getLogger("leveled")
    logger.setLevel(logging.DEBUG)
    logging.root._cache["kept"] = True  # type: ignore[attr-defined]
    levels = {"leveled": logging.DEBUG, "root": logging.root.level}
    log_levels.write(log_levels.Config(0, levels, {}, frozenset()))
    assert "kept" in logging.root._cache  # type: ignore[attr-defined]
    log_levels.write(log_levels.Config(0, {**levels, "leveled": 30}, {}, frozenset()))
    assert "kept" not in logging.root._cache  # type: ignore[attr-defined]
    assert logging.WARNING == logger.level


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each look at the settings; the process has no other threads."""
    looks, glance = list[None](), process_settings._glance

    def counted() -> tuple[Any, ...]:
        looks.append(None)
        return glance()

    monkeypatch.setattr(process_settings, "_glance", counted)
    monkeypatch.setattr(process_settings, "is_alone", lambda: True)
    monkeypatch.setattr(process_settings, "_BEGIN_SECONDS", 0.0)
    return looks


def test_look_ahead_saves_one_look(looks: list[None]) -> None:
    """The chunk after it need not look; the chunk after that does, as tasks ran in between."""
    worker, wanted = follower(), process_settings.current()
    looks.clear()
    worker.look_ahead()
    worker.apply(wanted)
    assert 1 == len(looks)
    worker.apply(wanted)
    assert 2 == len(looks)


def test_only_the_first_chunk_of_a_call_looks_ahead(looks: list[None]) -> None:
    """The others of a call would each pay for it, and none of them need it."""
    worker, wanted = follower(), process_settings.current()
    worker.look_ahead()
    worker.apply(wanted)
    looks.clear()
    worker.look_ahead()
    assert 1 == len(looks)
    worker.forget_look()  # the next chunk of the call
    worker.look_ahead()
    assert 1 == len(looks)


@pytest.mark.parametrize("how", ["thread", "new thread", "handler", "user code", "time"])
def test_look_ahead_that_does_not_count(
    how: str, looks: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where settings may change unseen before the next chunk, it looks itself."""
    worker, wanted = follower(), process_settings.current()
    before = signal.getsignal(signal.SIGALRM)
    if how == "thread":
        monkeypatch.setattr(process_settings, "is_alone", lambda: False)
    elif how == "new thread":
        monkeypatch.setattr(process_settings, "_BEGIN_SECONDS", 3600.0)
    elif how == "handler":
        signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        worker.look_ahead()
    finally:
        signal.signal(signal.SIGALRM, before)
    if how == "user code":
        worker.forget_look()
    elif how == "time":
        monkeypatch.setattr(process_settings, "_LOOK_SECONDS", 0.0)
    looks.clear()
    worker.apply(wanted)
    assert 1 == len(looks)


def test_look_ahead_does_not_outlast_a_chunk() -> None:
    """The next chunk of the same call need not look, and its tasks may change settings as well."""
    forgotten = list[str]()
    worker = SimpleNamespace(forget_look=lambda: forgotten.append("look"))
    runner: Any = SimpleNamespace(_call=7, _follower=worker, _made=None, _blas_threads=1)
    header: Any = SimpleNamespace(of_submits=False, cwd=os.getcwd(), blas_threads=0)
    job: Any = SimpleNamespace(call=7)
    assert not Runner._apply_settings(runner, header, job)
    assert ["look"] == forgotten


def test_threads_that_only_python_knows_are_seen() -> None:
    """Those of ``_thread`` have no object in ``threading``."""
    text = """
import _thread, time
from sharedtask.backends.worker.settings import is_alone
alone = [is_alone()]
_thread.start_new_thread(time.sleep, (60,))
while not _thread._count():
    time.sleep(0.01)
print(*alone, is_alone())
"""
    ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert "True False\n" == ran.stdout


def test_look_ahead_sees_what_the_last_task_changed() -> None:
    """It is set back by the next chunk."""
    worker, wanted = follower(), process_settings.current()
    np.seterr(under="raise")
    worker.look_ahead()
    worker.apply(wanted)
    assert "ignore" == np.geterr()["under"]


def test_setting_that_cannot_be_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look ahead does not end the worker: the next chunk tells what a task has broken."""
    worker, wanted = follower(), process_settings.current()
    monkeypatch.setattr(sys, "argv", None)
    worker.look_ahead()
    with pytest.raises(TypeError):
        worker.apply(wanted)


def test_setting_that_a_worker_cannot_have_is_told() -> None:
    """A locale, say, that its machine does not have: the others are followed."""
    worker, place = follower(), [setting.name for setting in SETTINGS].index("the locale")
    warnings.simplefilter("always")
    with np.printoptions(precision=3):
        wanted = process_settings.current()
    values = (*wanted.values[:place], ("xx_XX.none",), *wanted.values[place + 1 :])
    with pytest.warns(RuntimeWarning, match="this worker does not have the locale of its caller"):
        worker.apply(replace(wanted, values=values))
    assert 3 == np.get_printoptions()["precision"]


def test_exception_of_another_thread_leaves_no_descriptor() -> None:
    """Such exceptions, of time limits for one, come in where interrupts of a call wait."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before, places = descriptors(), places_of(settings._umask_seen)
    assert len(places) > 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for place in places:
            outcome = interrupted_at(place, settings._umask_seen)
            assert (True, KeyboardInterrupt) == (outcome.fired, type(outcome.raised))
            assert before == descriptors(), place


def test_memory_profiler_that_looks_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refers to all objects for a moment, also to those that are not complete."""
    seen: list[list[Any]] = []
    looks = [lambda: seen.append(gc.get_objects()), *process_settings._GLANCES]
    monkeypatch.setattr(process_settings, "_GLANCES", looks)
    assert len(looks) == len(process_settings._glance())
    monkeypatch.setattr(process_settings, "_READS", looks)
    assert len(looks) == len(process_settings._state())


def test_logger_in_place_of_a_placeholder_is_seen() -> None:
    """``logging`` has as many entries as before then."""
    logging.getLogger("placed.below").setLevel(5)
    assert 5 == log_levels.read().levels["placed.below"]
    placed = logging.getLogger("placed")
    placed.setLevel(7)
    assert 7 == log_levels.read().levels["placed"]
    before = log_levels.read()
    placed.setLevel(8)
    late = logging.getLogger("placed.late")
    late.setLevel(3)
    log_levels.restore(before)
    assert (7, logging.NOTSET) == (placed.level, late.level)
    log_levels.read()
    loggers = logging.root.manager.loggerDict
    loggers["renamed"] = loggers.pop("placed.late")  # the last one still
    late.setLevel(9)
    now = log_levels.read().levels
    assert (None, 9) == (now.get("placed.late"), now.get("renamed"))
    late.setLevel(logging.NOTSET)
    assert "renamed" not in log_levels.read().levels
