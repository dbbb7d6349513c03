import asyncio
import concurrent.futures
import copy
import pickle
import signal
import subprocess
import sys
from typing import Any

import pytest

from sharedtask import errors
from sharedtask.errors import (
    ArgumentError,
    BackendUnavailableError,
    ChangedValueError,
    ChangedValueWarning,
    ClosedError,
    DefinitionError,
    HintWarning,
    IncompleteValueWarning,
    InitializerError,
    InvalidNameError,
    ItemNote,
    JournalError,
    JournalWarning,
    LockOrderError,
    MemoryLimitError,
    NameInUseError,
    NameRefusedError,
    OptionsError,
    OverlapError,
    RegionPoisonedError,
    RemoteTraceback,
    SerializationError,
    SharedTaskError,
    StoreFullError,
    TaskExitError,
    TaskTimeoutError,
    UnknownNameError,
    UnshareableError,
    WorkerDiedError,
    item_note,
)
from sharedtask.outcomes import RaisedError

ONE_OF_EACH = [
    SharedTaskError("text"),
    DefinitionError("text"),
    OptionsError("text"),
    ArgumentError("text"),
    UnshareableError("text"),
    SerializationError("text"),
    StoreFullError("text"),
    BackendUnavailableError("text"),
    ClosedError("text"),
    OverlapError(3, 5, "out", ("item 3, [0:10]", "item 5, [5:15]")),
    OverlapError(3, 5),
    RemoteTraceback("Traceback (most recent call last):\n  ..."),
    WorkerDiedError("score", 17, ("an", "item"), 4127, 9, None, "while loading the shared values"),
    WorkerDiedError("score"),
    TaskTimeoutError("score", 17, ("an", "item"), 2.5, 4127),
    TaskTimeoutError("score"),
    TaskExitError("score", "SystemExit", "2", "Traceback ...", 17),
    TaskExitError("score", "Odd"),
    ChangedValueError("score", "model", "model.layers[3].seen", range(10, 20)),
    ChangedValueError("score", "model", "model", range(3, 4), beside=True),
    MemoryLimitError("score", 17, "item", 4127, 9, None, "", False, 1, 3, 2),
    MemoryLimitError("score"),
    InitializerError("set_up", "ValueError", "no such device"),
    InitializerError("set_up", "ValueError"),
    RegionPoisonedError("grid", "[0:10]", 4127),
    RegionPoisonedError(),
    LockOrderError("[0:10] of 'grid'", "[3] of 'grid'", True),
    InvalidNameError("text"),
    NameInUseError("model", 4127),
    NameInUseError("model"),
    UnknownNameError("model", "it was closed"),
    UnknownNameError("model"),
    NameRefusedError("model", "it is not yours"),
    JournalError("a/file", "it is full"),
    JournalWarning("text"),
    IncompleteValueWarning("text"),
    HintWarning("text"),
    ChangedValueWarning("task", "model", "model['a']", range(3)),
]


def pickled(error: Exception, protocol: int) -> Exception:
    again: Exception = pickle.loads(pickle.dumps(error, protocol))
    return again


ROUND_TRIPS = [
    pytest.param(lambda error: pickled(error, 2), id="pickle 2"),
    pytest.param(lambda error: pickled(error, 5), id="pickle 5"),
    pytest.param(copy.copy, id="copy"),
    pytest.param(copy.deepcopy, id="deepcopy"),
]


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_round_trip_is_exact(error: Any, round_trip: Any) -> None:
    """Class, text, arguments and attributes of every error survive pickling and copying."""
    again = round_trip(error)
    assert type(error) is type(again)
    assert str(error) == str(again)
    assert error.args == again.args
    assert vars(error) == vars(again)


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_repr_has_the_message(error: Any) -> None:
    """A printed list of results shows what happened."""
    assert f"{type(error).__name__}({str(error)!r})" == repr(error)


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
def test_round_trip_keeps_notes(round_trip: Any) -> None:
    """Notes and the index they carry survive pickling and copying."""
    error = WorkerDiedError("score", 3)
    error.add_note(item_note("score", 3))
    (note,) = round_trip(error).__notes__
    assert "in score(), item 3" == note
    assert 3 == note.index


ALSO = {
    SharedTaskError: (Exception,),
    DefinitionError: (ValueError,),
    OptionsError: (ValueError,),
    ArgumentError: (TypeError,),
    UnshareableError: (TypeError,),
    SerializationError: (pickle.PicklingError, pickle.PickleError),
    StoreFullError: (MemoryError,),
    BackendUnavailableError: (ImportError,),
    ClosedError: (RuntimeError,),
    OverlapError: (ValueError,),
    InvalidNameError: (ValueError,),
    NameInUseError: (FileExistsError,),
    UnknownNameError: (FileNotFoundError,),
    NameRefusedError: (PermissionError,),
    WorkerDiedError: (concurrent.futures.BrokenExecutor, RuntimeError),
    MemoryLimitError: (WorkerDiedError, MemoryError, concurrent.futures.BrokenExecutor),
    TaskTimeoutError: (TimeoutError, concurrent.futures.TimeoutError, asyncio.TimeoutError),
    TaskExitError: (Exception,),
    InitializerError: (concurrent.futures.BrokenExecutor, RuntimeError),
    RegionPoisonedError: (RuntimeError,),
    LockOrderError: (RuntimeError,),
    ChangedValueError: (RuntimeError,),
    JournalError: (Exception,),
}


@pytest.mark.parametrize("class_", ALSO, ids=lambda class_: class_.__name__)
def test_every_error_is_ours_and_what_other_pools_raise(class_: Any) -> None:
    """Callers may catch our base class, or the class that code for other pools catches."""
    assert issubclass(class_, SharedTaskError)
    for other in ALSO[class_]:
        with pytest.raises(other):
            raise next(error for error in ONE_OF_EACH if type(error) is class_)


WARNINGS = (ChangedValueWarning, HintWarning, IncompleteValueWarning, JournalWarning)


def test_one_of_each_error_is_tried() -> None:
    """The tests above leave no class out."""
    errors_of_ours = {v for n in errors.__all__ if isinstance(v := getattr(errors, n), type)}
    raised = {class_ for class_ in errors_of_ours if issubclass(class_, Exception)}
    assert raised == {type(error) for error in ONE_OF_EACH}
    assert raised - {RemoteTraceback, *WARNINGS} == set(ALSO)


def test_errors_bring_no_other_pool_along() -> None:
    """Neither multiprocessing nor the pools of concurrent.futures are loaded for the errors."""
    code = (
        "import sys; import sharedtask; from sharedtask import parallel, WorkerDiedError;"
        " print(sorted({'multiprocessing', 'concurrent.futures.process'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()


def test_all_errors_are_exported() -> None:
    """Every class of the module is in __all__."""
    own = {n for n, v in vars(errors).items() if getattr(v, "__module__", "") == errors.__name__}
    assert set(errors.__all__) == {name for name in own if not name.startswith("_")}


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (
            (
                "worker 4127 was killed by SIGKILL in score(), item 17."
                " If memory ran out, use fewer workers."
            ),
            {"index": 17, "pid": 4127, "signal": signal.SIGKILL},
        ),
        (
            "worker 4127 was killed by SIGSEGV in score(), item 17.",
            {"index": 17, "pid": 4127, "signal": 11},
        ),
        (
            (
                "worker 4127 ended with exit code 3 in score(), item 17."
                " A task returns or raises; look for os._exit() or an exit in native code."
            ),
            {"index": 17, "pid": 4127, "exitcode": 3},
        ),
        (
            "worker 4127 was killed by SIGTERM in score(), item 0, while loading the values.",
            {"index": 0, "pid": 4127, "signal": 15, "while_": "while loading the values"},
        ),
        ("a worker was killed by signal 40 in score().", {"signal": 40}),
        ("a worker died in score().", {}),
    ],
)
def test_worker_died_text(text: Any, fields: Any) -> None:
    """The text says which worker, how it ended, where, and what to do."""
    assert text == str(WorkerDiedError("score", **fields))


def test_worker_died_fields() -> None:
    """The facts of a death are attributes."""
    error = WorkerDiedError("score", 17, "item", 4127, 9, None, "while x")
    facts = (error.function, error.index, error.item, error.pid, error.signal, error.exitcode)
    assert ("score", 17, "item", 4127, 9, None) == facts
    assert "while x" == error.while_


def test_large_item_stays_out_of_the_text() -> None:
    """An item of any size leaves the text one line."""
    assert "xxx" not in str(WorkerDiedError("score", 1, "x" * 1_000_000))


def test_timeout_text_and_fields() -> None:
    """A timeout names item, limit and worker, and is no operating system error in disguise."""
    error = TaskTimeoutError("score", 17, "item", 2.5, 4127)
    assert (
        "score(), item 17, took longer than timeout=2.5 seconds, worker 4127 was ended."
        " Allow more time, or give it less work." == str(error)
    )
    assert (17, "item", 2.5, 4127) == (error.index, error.item, error.timeout, error.pid)
    assert error.errno is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            (
                "score(), item 3, raised SystemExit: 2."
                " A task ends by returning or by raising an Exception."
            ),
            TaskExitError("score", "SystemExit", "2", "", 3),
        ),
        (
            "score(), item 3, raised Odd: what. It cannot be raised here as itself.",
            TaskExitError("score", "Odd", "what", "", 3),
        ),
        (
            (
                "score(), raised KeyboardInterrupt."
                " A task ends by returning or by raising an Exception."
            ),
            TaskExitError("score", "KeyboardInterrupt"),
        ),
    ],
)
def test_task_exit_text(text: Any, error: Any) -> None:
    """The text names the original class and its text."""
    assert text == str(error)


@pytest.mark.parametrize(
    ("text", "items", "beside"),
    [
        (
            (
                "score(): one of items 10 to 19 changed model['seen'], which is shared: later items"
                " in this worker would have seen it. Return what you find, or mark the parameter"
                " CopyOnWrite[...]; chunksize=1 shows which item it was."
            ),
            range(10, 20),
            False,
        ),
        (
            (
                "score(): item 3 changed model['seen'], which is shared: later items in this worker"
                " would have seen it. Return what you find, or mark the parameter CopyOnWrite[...]."
            ),
            range(3, 4),
            False,
        ),
        (
            (
                "score(): item 3, or one that ran meanwhile in another thread, changed"
                " model['seen'], which is shared: other items may have seen it. Return what you"
                " find, or mark the parameter CopyOnWrite[...]; chunksize=1 with"
                ' backend="serial" shows which item it was.'
            ),
            range(3, 4),
            True,
        ),
    ],
)
def test_changed_value_text(text: Any, items: Any, beside: Any) -> None:
    """The text says who, what, why it matters, and what to do."""
    assert text == str(ChangedValueError("score", "model", "model['seen']", items, beside))


def test_remote_traceback_shows_its_text_as_it_is() -> None:
    """A remote traceback prints as the traceback that it is."""
    assert "Traceback\n  line" == str(RemoteTraceback("Traceback\n  line"))


@pytest.mark.parametrize(("text", "index"), [("in f(), item 0", 0), ("in f()", None)])
def test_item_note(text: Any, index: Any) -> None:
    """A note reads as text and carries the index."""
    note = item_note("f", index)
    assert text == note
    assert index == note.index
    assert isinstance(note, ItemNote)


def test_errors_need_only_the_standard_library() -> None:
    """The module loads in a worker that has imported nothing else."""
    code = "import sys; import sharedtask.errors; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "False" == done.stdout.strip()


@pytest.mark.parametrize(
    ("error", "count"),
    [
        (pickle.PicklingError("Can't pickle: attribute lookup job on __main__ failed"), 1),
        (AttributeError("Can't get attribute 'job' on <module '__main__' (built-in)>"), 1),
        (AttributeError("'Model' object has no attribute 'rate'"), 0),
        (ValueError("no __main__ in this file"), 0),
        (SerializationError("__main__.job cannot be pickled"), 0),
    ],
)
def test_note_on_what_another_pool_does_not_find(error: Exception, count: int) -> None:
    """It is for errors of plain pickle that name the script, and for no other."""
    RaisedError.of(error)
    assert count == len(getattr(error, "__notes__", ()))
