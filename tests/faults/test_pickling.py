import importlib
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedtask import (
    SerializationError,
    Shared,
    SharedTaskError,
    UnshareableError,
    WorkerDiedError,
    parallel,
)
from sharedtask.testing import count_up, counted


class Leaves(BaseException):
    """Caught by nothing that catches errors."""


def misbehave(how: str) -> None:
    if how == "raise":
        message = "it will not"
        raise ArithmeticError(message)
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "leave":
        raise Leaves("it leaves")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


class Grenade:
    """Misbehaves when it is pickled or unpickled, in the caller or in a worker."""

    def __init__(self, when: str, how: str, caller: int = 0) -> None:
        self.parts = (when, how, caller or os.getpid())

    def __reduce__(self) -> Any:
        when, how, _caller = self.parts
        if when == "pickle":
            misbehave(how)
        return pull, self.parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grenade) and self.parts == other.parts

    __hash__ = None  # type: ignore[assignment]


def pull(when: str, how: str, caller: int) -> Grenade:
    if (when == "worker" and os.getpid() != caller) or (when == "caller" and os.getpid() == caller):
        misbehave(how)
    return Grenade(when, how, caller)


@parallel(backend="process", return_exceptions=True)
def look(x: Any, folder: str = "", extra: Any = None) -> Any:
    if folder:
        count_up(folder, x if isinstance(x, int) else "grenade")
    return type(x).__name__


@parallel(backend="process", return_exceptions=True)
def give(x: int, bad: int, when: str, how: str, caller: int, folder: str = "") -> Any:
    if folder:
        count_up(folder, x)
    return Grenade(when, how, caller) if x == bad else x


@parallel(backend="process")
def use(x: int, value: Shared[Any]) -> int:
    return x


@pytest.mark.parametrize("chunksize", [1, 7])
@pytest.mark.parametrize("how", ["raise", "exit", "interrupt", "leave"])
@pytest.mark.parametrize("when", ["pickle", "worker"])
def test_item_that_will_not_travel(when: str, how: str, chunksize: int, tmp_path: Path) -> None:
    """An item that cannot be pickled or unpickled is SerializationError at its index, alone."""
    items = [0, 1, 2, Grenade(when, how), 4, 5, 6]
    results = look.with_options(chunksize=chunksize).map(items, folder=str(tmp_path))
    assert ["int"] * 6 == results[:3] + results[4:]
    assert isinstance(results[3], SerializationError)
    assert "item 3" in str(results[3])
    assert {str(x): 1 for x in (0, 1, 2, 4, 5, 6)} == counted(tmp_path)


@pytest.mark.parametrize("chunksize", [1, 7])
def test_item_whose_unpickling_kills_the_worker(chunksize: int, tmp_path: Path) -> None:
    """An item that crashes the worker as it is unpickled is WorkerDiedError at its index, alone."""
    items = [0, 1, 2, Grenade("worker", "kill"), 4, 5, 6]
    results = look.with_options(chunksize=chunksize).map(items, folder=str(tmp_path))
    assert ["int"] * 6 == results[:3] + results[4:]
    assert isinstance(results[3], WorkerDiedError)
    assert 3 == results[3].index
    assert {str(x): 1 for x in (0, 1, 2, 4, 5, 6)} == counted(tmp_path)


def test_item_of_a_submit_that_will_not_travel() -> None:
    """The future of an item that cannot be pickled holds SerializationError."""
    task = look.with_options(return_exceptions=False)
    for when in ("pickle", "worker"):
        assert isinstance(task.submit(Grenade(when, "raise")).exception(60), SerializationError)
    assert isinstance(task.submit(Grenade("worker", "kill")).exception(60), WorkerDiedError)


def test_argument_that_cannot_be_pickled() -> None:
    """An argument that cannot be pickled is SerializationError in the caller, naming it."""
    with pytest.raises(SerializationError, match="extra"):
        look.map([1], extra={"deep": [threading.Lock()]})
    with pytest.raises(SerializationError, match="extra"):
        look.map([1], extra=Grenade("pickle", "raise"))


HOW = ["raise", "exit", "interrupt", "leave"]


class Scorer:
    """Its method needs it."""

    def __init__(self, part: Any) -> None:
        self.part = part

    @parallel
    def score(self, x: int) -> int:
        return x


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
def test_pickling_that_would_end_the_program(backend: Any, how: str) -> None:
    """SystemExit and its kin, raised while something is pickled, are SerializationError."""
    bad = Grenade("pickle", how)

    def captures(x: int) -> Any:
        return x, bad

    task = parallel(identity).with_options(backend=backend)
    for call in (
        lambda: task.map([bad]),
        lambda: task.map([1], extra=bad),
        lambda: task.submit(1, extra=bad),
        lambda: Scorer(bad).score.with_options(backend=backend).map([1]),
        lambda: parallel(captures).with_options(backend=backend).map([1]),
    ):
        with pytest.raises(SerializationError, match="Grenade"):
            call()
    assert isinstance(task.submit(bad).exception(60), SerializationError)
    assert [1] == task.map([1])


@pytest.mark.parametrize("how", HOW)
def test_shared_value_whose_pickling_would_end_the_program(backend: Any, how: str) -> None:
    """SystemExit and its kin, raised while a shared value is pickled, are UnshareableError."""
    task = parallel(take).with_options(backend=backend)
    with pytest.raises(UnshareableError, match=r"value\['a'\] is a .*Grenade"):
        task.map([1], value={"a": Grenade("pickle", how)})
    assert [1] == task.map([1], value={"a": 3})


@pytest.mark.parametrize("how", HOW)
def test_journal_of_what_would_end_the_program(backend: Any, how: str, tmp_path: Path) -> None:
    """An item or a result whose pickling would end the program is an error at its place."""
    options: Any = {"return_exceptions": True, "journal": str(tmp_path / "j")}
    task = parallel(identity).with_options(backend=backend, **options)
    results: Any = task.map([0, Grenade("pickle", how), 2])
    assert isinstance(results.pop(1), SerializationError)
    assert [0, 2] == results
    giver = parallel(give_bad).with_options(backend=backend, **options)
    results = giver.map(range(3), how=how)
    assert isinstance(results.pop(1), SerializationError)
    assert [0, 2] == results


def identity(x: Any, extra: Any = None) -> Any:
    return x


def take(x: int, value: Shared[Any]) -> int:
    return x


def give_bad(x: int, how: str) -> Any:
    return Grenade("pickle", how) if x == 1 else x


class SignalsWhenPickled:
    """Replaces a signal that comes while the caller pickles something."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        signal.raise_signal(self.number)
        return SignalsWhenPickled, (self.number,)


@pytest.mark.parametrize("place", ["item", "argument", "shared", "submit"])
def test_ctrl_c_while_something_is_pickled(place: str) -> None:
    """A real Ctrl-C stays one, whatever is being pickled when it comes."""
    bad: Any = SignalsWhenPickled(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        pickled_at(place, bad)
    assert [1] == parallel(identity).with_options(backend="process").map([1])


@pytest.mark.parametrize("place", ["item", "argument", "shared", "submit"])
def test_signal_that_ends_the_program_while_something_is_pickled(place: str) -> None:
    """What the handler of a signal raises meanwhile ends the program as it is meant to."""

    def leave(*_: Any) -> None:
        sys.exit(7)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit):
            pickled_at(place, SignalsWhenPickled(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [1] == parallel(identity).with_options(backend="process").map([1])


def pickled_at(place: str, value: Any) -> Any:
    task = parallel(identity).with_options(backend="process", return_exceptions=True)
    if place == "item":
        return task.map([1, value])
    if place == "argument":
        return task.map([1], extra=value)
    if place == "shared":
        return parallel(take).with_options(backend="process").map([1], value=value)
    return task.submit(value).result(60)


@pytest.mark.parametrize("how", ["raise", "exit", "interrupt"])
def test_argument_that_cannot_be_unpickled(how: str) -> None:
    """An argument that fails in the worker is an error of ours, not of the worker's life."""
    task = look.with_options(return_exceptions=False)
    with pytest.raises(SharedTaskError):
        task.map(range(4), extra=Grenade("worker", how))


def test_argument_whose_unpickling_kills_the_worker() -> None:
    """An argument that crashes every worker is WorkerDiedError and comes to an end."""
    with pytest.raises(WorkerDiedError):
        look.with_options(return_exceptions=False).map(range(4), extra=Grenade("worker", "kill"))


def test_shared_value_that_cannot_be_pickled() -> None:
    """A shared value that cannot be pickled is UnshareableError that says what is inside."""
    with pytest.raises(UnshareableError, match=r"value\['deep'\]\[0\]"):
        use.map(range(3), value={"deep": [threading.Lock()]})
    with pytest.raises(UnshareableError):
        use.map(range(3), value=Grenade("pickle", "raise"))


@pytest.mark.parametrize("how", ["raise", "exit", "interrupt"])
def test_shared_value_that_cannot_be_unpickled(how: str) -> None:
    """A shared value that fails in the worker is SerializationError that names the parameter."""
    with pytest.raises(SerializationError, match="'value'"):
        use.map(range(4), value=[Grenade("worker", how)])


def test_shared_value_whose_unpickling_kills_the_worker() -> None:
    """A shared value that crashes every worker is WorkerDiedError and comes to an end."""
    with pytest.raises(WorkerDiedError, match="loading"):
        use.map(range(4), value=[Grenade("worker", "kill")])


def test_every_item_of_a_value_that_kills_names_itself() -> None:
    """Where no worker can load what an item needs, each item has an error of its own."""
    task = use.with_options(return_exceptions=True, chunksize=3)
    results: Any = task.map(range(6), value=[Grenade("worker", "kill")])
    assert list(range(6)) == [result.index for result in results]
    assert [WorkerDiedError] * 6 == [type(result) for result in results]


def test_death_while_loading_is_nobodys_fault(tmp_path: Path) -> None:
    """A worker that dies before it has begun an item costs none: another one begins them."""
    value = [KillsOnce(str(tmp_path))]
    assert [0, 1, 2, 3] == use.with_options(chunksize=4).map(range(4), value=value)
    assert {"load": 2} == counted(tmp_path)


class KillsOnce:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        if count_up(self.folder, "load") == 1:
            os.kill(os.getpid(), signal.SIGKILL)


UNSENDABLE = {
    "lock": (threading.Lock, "lock"),
    "generator": (lambda: (x for x in "ab"), "generator"),
    "inside": (lambda: {"a": [1, threading.Lock()]}, r"\['a'\]\[1\]"),
    "open file": (lambda: open(os.devnull), "TextIOWrapper"),  # noqa: SIM115
}


@pytest.mark.parametrize("chunksize", [1, 5])
@pytest.mark.parametrize("name", UNSENDABLE)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_result_that_cannot_be_pickled(name: str, chunksize: int, tmp_path: Path) -> None:
    """A result that cannot be pickled is SerializationError at its index, with type and path."""
    make, told = UNSENDABLE[name]

    def task(x: int) -> Any:
        count_up(tmp_path, x)
        return make() if x == 2 else x

    pool = parallel(task).with_options(
        backend="process", return_exceptions=True, chunksize=chunksize
    )
    results = pool.map(range(5))
    assert [0, 1, 3, 4] == results[:2] + results[3:]
    assert isinstance(results[2], SerializationError)
    assert "item 2" in str(results[2])
    assert re.search(told, str(results[2]))
    assert {str(x): 1 for x in range(5)} == counted(tmp_path)


@pytest.mark.parametrize("chunksize", [1, 7])
@pytest.mark.parametrize("how", ["raise", "exit", "interrupt"])
@pytest.mark.parametrize("when", ["pickle", "caller"])
def test_result_that_will_not_travel(when: str, how: str, chunksize: int, tmp_path: Path) -> None:
    """A result that fails as it is pickled or unpickled is SerializationError; the caller lives."""
    results = give.with_options(chunksize=chunksize).map(
        range(7), bad=3, when=when, how=how, caller=os.getpid(), folder=str(tmp_path)
    )
    assert [0, 1, 2, 4, 5, 6] == results[:3] + results[4:]
    assert isinstance(results[3], SerializationError)
    assert "item 3" in str(results[3])
    assert {str(x): 1 for x in range(7)} == counted(tmp_path)


def test_result_of_a_submit_that_will_not_travel() -> None:
    """The future of a result that cannot be unpickled here holds SerializationError."""
    task = give.with_options(return_exceptions=False)
    for how in ("raise", "exit", "interrupt"):
        future = task.submit(1, bad=1, when="caller", how=how, caller=os.getpid())
        assert isinstance(future.exception(60), SerializationError)


def test_exception_that_misbehaves_when_rebuilt() -> None:
    """An exception that exits as it is unpickled arrives as SharedTaskError with its text."""

    class Nasty(ValueError):
        def __reduce__(self) -> Any:
            return pull_error, (0,)

    def fail(x: int) -> int:
        message = "nasty text"
        if x == 1:
            raise Nasty(message)
        return x

    task = parallel(fail).with_options(backend="process", return_exceptions=True)
    results: list[Any] = task.map(range(3))
    assert [0, 2] == [results[0], results[2]]
    assert isinstance(results[1], Exception)
    assert "nasty text" in str(results[1])


def pull_error(_caller: int) -> Any:
    sys.exit(4)


def test_closure_that_cannot_be_sent_names_the_variable() -> None:
    """A function that captured a lock is refused at its first use, naming the variable."""
    guard = threading.Lock()

    def locked(x: int) -> int:
        with guard:
            return x

    with pytest.raises(SerializationError, match=r"captured guard is a _thread\.lock"):
        parallel(locked).with_options(backend="process").map(range(3))


def test_default_that_cannot_be_sent(tmp_path: Path) -> None:
    """A nested function with a lock as a default is refused before anything runs."""

    def task(x: int, guard: Any = threading.Lock()) -> int:  # noqa: B008
        count_up(tmp_path, x)
        return x

    with pytest.raises(SerializationError, match=r"default|guard"):
        parallel(task).with_options(backend="process").map(range(3))
    assert {} == counted(tmp_path)


def test_module_that_the_worker_cannot_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of a module that is gone from the disk is ImportError at its item, ten times."""
    path = tmp_path / "here_today.py"
    path.write_text("def task(x):\n    return x\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.setattr(sys, "dont_write_bytecode", True)
        module = importlib.import_module("here_today")
    path.unlink()
    task = parallel(module.task).with_options(backend="process")
    try:
        for _ in range(10):
            with pytest.raises(ImportError, match="here_today"):
                task.map(range(3))
            assert ["int"] * 2 == look.map(range(2))
    finally:
        del sys.modules["here_today"]


class Knows:
    """Parts of a model often know each other."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


def in_a_circle() -> Any:
    one, other = Knows(name="one"), Knows(name="other")
    one.other, other.one = other, one  # type: ignore[attr-defined]
    one.last = Knows(lock=threading.Lock())  # type: ignore[attr-defined]
    return one


def test_path_does_not_go_in_circles() -> None:
    """The way to what cannot be pickled is the shortest there is, and visits nothing twice."""
    with pytest.raises(UnshareableError, match=r"value\.last\.lock is a _thread\.lock:"):
        use.map([1], value=in_a_circle())
    both = {"long": [[threading.Lock()]], "short": threading.Lock()}
    with pytest.raises(UnshareableError, match=r"value\['short'\] is a _thread\.lock:"):
        use.map([1], value=both)
    pair = [Knows(), Grenade("pickle", "raise")]
    vars(pair[0])["pair"] = pair
    with pytest.raises(UnshareableError, match=r"value\[1\] is a .*Grenade"):
        use.map([1], value=pair)


def nested(depth: int) -> Any:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("chunksize", [1, 3])
def test_item_nested_too_deep(chunksize: int) -> None:
    """An item that is nested too deep to be pickled is an error at its index; the worker lives."""
    results = look.with_options(chunksize=chunksize).map([1, nested(50_000), 2])
    assert ["int", "int"] == [results[0], results[2]]
    assert isinstance(results[1], SerializationError | RecursionError)


def test_result_nested_too_deep() -> None:
    """A result that is nested too deep to be pickled is an error at its index."""
    task = parallel(nested).with_options(backend="process", return_exceptions=True)
    results = task.map([1, 50_000, 2])
    assert [[[]], [[[]]]] == [results[0], results[2]]
    assert isinstance(results[1], SerializationError)


def test_shared_value_nested_too_deep() -> None:
    """A shared value that is nested too deep is an error of ours."""
    with pytest.raises(SharedTaskError):
        use.map(range(3), value=nested(50_000))


def test_array_with_an_object_that_cannot_travel() -> None:
    """A lock inside an object array is found."""
    with pytest.raises(UnshareableError):
        use.map(range(3), value=np.array([threading.Lock()], object))


class _InterruptsWhenUnpickled:
    """Replaces a Ctrl-C that comes while the caller unpickles a result."""

    def __reduce__(self) -> Any:
        return signal.raise_signal, (signal.SIGINT,)


@parallel
def give_interrupt(x: int) -> Any:
    return _InterruptsWhenUnpickled() if x == 1 else x


@pytest.mark.parametrize("options", [{}, {"return_exceptions": True}, {"retries": 2}])
def test_ctrl_c_while_a_result_is_unpickled(options: Any) -> None:
    """A real Ctrl-C is a KeyboardInterrupt, wherever in a call it comes."""
    with pytest.raises(KeyboardInterrupt):
        give_interrupt.with_options(**options).map(range(3))


def test_models_keep_their_object_arrays_writable() -> None:
    """A list of parts inside a model is as writable as a plain list; as the value it is not."""
    parts = np.array([1, "a", None], dtype=object)
    assert [True] * 2 == inner_is_writable.map(range(2), model={"parts": parts})
    assert [False] * 2 == is_writable.map(range(2), model=parts)


@parallel(shared=["model"])
def inner_is_writable(x: int, model: Any) -> bool:
    return bool(model["parts"].flags.writeable)


@parallel(shared=["model"])
def is_writable(x: int, model: Any) -> bool:
    return bool(model.flags.writeable)
