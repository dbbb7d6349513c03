"""Values, exceptions and inputs that misbehave where no one expects it."""

import asyncio
import concurrent.futures
import pickle
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pytest

from sharedtask import (
    ArgumentError,
    Shared,
    SharedTaskError,
    TaskExitError,
    WorkerDiedError,
    parallel,
)

# ------------------------------------------------------------------------------- exceptions


class Refuses(Exception):
    """Raises at whatever is done with it."""

    def __getattr__(self, name: str) -> NoReturn:
        raise KeyError(name)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError(name)

    def __eq__(self, other: object) -> NoReturn:
        raise ArithmeticError

    def __hash__(self) -> NoReturn:
        raise ArithmeticError

    def __bool__(self) -> NoReturn:
        raise ArithmeticError


@dataclass(frozen=True)
class Frozen(Exception):
    place: str = "home"


class NoText(Exception):
    def __str__(self) -> str:
        raise ArithmeticError

    def __repr__(self) -> str:
        raise ArithmeticError


class WrongText(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value] # noqa: PLE0307  the case

    __repr__ = __str__


class ExitingText(Exception):
    def __str__(self) -> str:  # noqa: PLE0307  the case
        sys.exit(5)


class NoArgs(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise AttributeError("args")


class OddArgs(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock(), (x for x in "ab"), lambda: 3)


class LooksForItself(Exception):
    """As many wrappers do: endless recursion while it is being unpickled."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class ReducesToNonsense(Exception):
    def __reduce__(self) -> Any:
        return 7, "nonsense"


class ReducesToAnother(Exception):
    def __reduce__(self) -> Any:
        return ValueError, ("another",)


class OddNotes(Exception):
    def __init__(self) -> None:
        super().__init__("odd notes")
        self.__notes__ = 5  # type: ignore[assignment]


class Slotted(Exception):
    __slots__ = ("lock",)

    def __init__(self) -> None:
        super().__init__("slotted")
        self.lock = threading.Lock()


def in_a_circle() -> Exception:
    one, other = ValueError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    one.__context__, other.__context__ = other, one
    return one


def with_itself() -> Exception:
    error = ValueError("with itself")
    error.args = (error,)
    return error


def deep_chain() -> Exception:
    error: Exception = ValueError(0)
    for k in range(3_000):
        error = ValueError(k, error)
    return error


def with_local_class() -> Exception:
    class Local(Exception):
        pass

    return Local("local")


ODD_ERRORS: dict[str, Any] = {
    "refuses": Refuses,
    "frozen": Frozen,
    "no text": NoText,
    "wrong text": WrongText,
    "exiting text": ExitingText,
    "no args": NoArgs,
    "odd args": OddArgs,
    "looks for itself": lambda: LooksForItself(3),
    "reduces to nonsense": ReducesToNonsense,
    "reduces to another": ReducesToAnother,
    "odd notes": OddNotes,
    "slotted": Slotted,
    "in a circle": in_a_circle,
    "with itself": with_itself,
    "deep chain": deep_chain,
    "local class": with_local_class,
    "group of odd ones": lambda: ExceptionGroup("several", [NoText(), OddArgs(), with_itself()]),
    "ours": lambda: WorkerDiedError("mine", 77),
    "cancelled future": lambda: concurrent.futures.CancelledError("mine"),
    "stop iteration": lambda: StopIteration(3),
    "huge text": lambda: ValueError("x" * 3_000_000),
}


def raise_odd(x: int, name: str) -> int:
    if x == 2:
        error = ODD_ERRORS[name]()
        raise error
    return x


@pytest.mark.parametrize("chunksize", [1, 5])
def test_odd_exception_is_an_error_of_its_item(backend: Any, chunksize: int) -> None:
    """Whatever an exception does when it is looked at, it arrives at its item, alone."""
    task = parallel(raise_odd).with_options(
        backend=backend, return_exceptions=True, chunksize=chunksize
    )
    for name in ODD_ERRORS:
        results: Any = task.map(range(5), name=name)
        error = results.pop(2)
        assert [0, 1, 3, 4] == results, name
        assert isinstance(error, Exception), name
        assert not isinstance(error, WorkerDiedError) or name == "ours", name


def test_frozen_exception_names_its_item(backend: Any) -> None:
    """An exception that forbids new attributes has note and cause like any other."""
    with pytest.raises(Frozen) as caught:
        parallel(raise_odd).with_options(backend=backend).map(range(5), name="frozen")
    assert "home" == caught.value.place
    note: Any = caught.value.__notes__[-1]
    assert 2 == note.index


class Own(BaseException):
    pass


OUTSIDE: dict[str, Any] = {
    "SystemExit": lambda: SystemExit("text"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "asyncio.CancelledError": asyncio.CancelledError,
    "one's own": Own,
    "a group": lambda: BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError()]),
}


def leave(x: int, name: str) -> int:
    if x == 1:
        error = OUTSIDE[name]()
        raise error
    return x


def test_exception_that_ends_programs(backend: Any) -> None:
    """What is no ``Exception`` arrives as TaskExitError with its name, wherever tasks run."""
    task = parallel(leave).with_options(backend=backend, return_exceptions=True, chunksize=3)
    for name, make in OUTSIDE.items():
        results: Any = task.map(range(3), name=name)
        assert [0, 2] == [results[0], results[2]], name
        assert isinstance(results[1], TaskExitError), name
        assert type(make()).__name__ in results[1].class_name


# ----------------------------------------------------------------------------------- values


class Hostile:
    """Nothing that is done with it besides carrying it works."""

    def _no(self, *_: object) -> NoReturn:
        raise ArithmeticError("do not touch")

    __eq__ = __ne__ = __hash__ = __bool__ = __len__ = __iter__ = __repr__ = __str__ = _no
    __lt__ = __contains__ = __call__ = __array__ = __format__ = __dir__ = _no


class Liar:
    """Says of itself that it is something else."""

    __class__: Any = property(lambda _: np.ndarray)

    def __reduce__(self) -> Any:
        return Liar, ()


class AlwaysEqual:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class ElementWise:
    """Compares like an array: the answer has no truth."""

    def __eq__(self, other: object) -> Any:
        return np.array([True, False])

    __hash__ = None  # type: ignore[assignment]


ODD_VALUES: dict[str, Any] = {
    "hostile": Hostile,
    "liar": Liar,
    "always equal": AlwaysEqual,
    "element-wise": ElementWise,
    "NotImplemented": lambda: NotImplemented,
    "a class": lambda: Hostile,
    "an exception": lambda: ValueError("a value, not raised"),
    "nan": lambda: float("nan"),
}


def give(x: Any, name: str = "") -> Any:
    return ODD_VALUES[name]() if name else type(x).__name__


def look_at(_x: int, value: Shared[Any]) -> str:
    return type(value).__name__


@pytest.mark.parametrize("name", ODD_VALUES)
def test_odd_value_is_only_carried(backend: Any, name: str) -> None:
    """A value is neither compared, nor measured, nor shown on its way: only carried."""
    value = ODD_VALUES[name]()
    wanted = type(value).__name__
    task = parallel(give).with_options(backend=backend, chunksize=2)
    assert [wanted, "int"] * 2 == task.map([value, 1] * 2)
    assert [type(value)] * 3 == [type(result) for result in task.map(range(3), name=name)]
    beside = parallel(name_of_extra).with_options(backend=backend)
    assert [wanted] * 3 == beside.map(range(3), extra=value)
    looked = parallel(look_at).with_options(backend=backend)
    for _ in range(2):  # the second time it is compared with what was stored
        assert [wanted] * 3 == looked.map(range(3), value=value)


def name_of_extra(_x: int, extra: Any) -> str:
    return type(extra).__name__


@pytest.mark.parametrize("name", ["hostile", "nan", "an exception"])
def test_odd_item_of_an_error(backend: Any, name: str) -> None:
    """The error of an item says which it was without looking at it."""

    def fail(x: Any) -> None:
        raise LookupError("odd")

    task = parallel(fail).with_options(backend=backend)
    with pytest.raises(LookupError, match="odd") as caught:
        task.map([ODD_VALUES[name]()])
    assert "item 0" in caught.value.__notes__[-1]


# ------------------------------------------------------------------------------------ input


class Wrong(list[int]):
    """A sequence that gives a wrong length."""

    length: Any = 0

    def __len__(self) -> Any:
        if isinstance(self.length, Exception):
            raise self.length
        return self.length


LENGTHS = [0, 1, 2, 7, 1000, ArithmeticError("no length")]


@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
def test_input_of_a_wrong_length(backend: Any, method: str) -> None:
    """Input that gives a wrong length is run as a loop runs it, or refused; nothing hangs."""
    task = parallel(square).with_options(backend=backend)
    for length in LENGTHS:
        items = Wrong([1, 2, 3, 4, 5])
        items.length = length
        try:
            results = sorted(getattr(task, method)(items))
        except (SharedTaskError, ArithmeticError, RuntimeError, IndexError, ValueError):
            continue
        assert [1, 4, 9, 16, 25][: len(results)] == results


def test_list_that_grows_and_shrinks_meanwhile(backend: Any) -> None:
    """A list that somebody changes during a map gives results of items that were in it."""
    items, stop = list(range(200)), threading.Event()

    def change() -> None:
        while not stop.is_set():
            items.extend(range(50))
            del items[200:]

    changer = threading.Thread(target=change)
    changer.start()
    try:
        results = parallel(lambda x: -x).with_options(backend=backend).map(items)
    finally:
        stop.set()
        changer.join()
    assert [-x for x in range(200)] == results[:200]


ENDINGS: list[Any] = [SystemExit, KeyboardInterrupt, GeneratorExit, NoText, Refuses]


class Source:
    """Five numbers, then an exception."""

    def __init__(self, error: Any) -> None:
        self.left, self.error = 5, error

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.left


@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
def test_source_that_ends_oddly(backend: Any, method: str) -> None:
    """What the caller's own input raises is the caller's: it comes as it is, and at once."""
    run = getattr(parallel(square).with_options(backend=backend), method)
    assert [0, 1, 4, 9, 16] == sorted(run(Source(StopIteration)))
    for error in ENDINGS:
        with pytest.raises(error):
            list(run(Source(error)))


# ---------------------------------------------------------------------------------- the caller


def depth() -> int:
    frame: Any = sys._getframe()
    count = 0
    while frame is not None:
        count += 1
        frame = frame.f_back
    return count


def from_below(levels: int, call: Any) -> Any:
    return call() if levels <= 0 else from_below(levels - 1, call)


def square(x: int) -> int:
    return x * x


def first_plus(x: int, table: Shared[Any]) -> float:
    return float(table[0]) + x


def test_caller_with_hardly_any_stack_left(backend: Any) -> None:
    """Wherever in a call the stack runs out, that is an error, and the next call is right."""
    plain = parallel(square).with_options(backend=backend, chunksize=2)
    shared = parallel(first_plus).with_options(backend=backend, chunksize=2)
    table = np.ones(100_000)
    calls = [
        (lambda: plain.map(range(4)), [0, 1, 4, 9]),
        (lambda: plain.submit(3).result(60), 9),
        (lambda: list(plain.imap(range(4))), [0, 1, 4, 9]),
        (lambda: shared.map(range(4), table=table), [1.0, 2.0, 3.0, 4.0]),
    ]
    old = sys.getrecursionlimit()
    outcomes = set()
    here = depth()
    sys.setrecursionlimit(here + 200)
    try:
        for left in range(100, 4, -3):
            for call, wanted in calls:
                try:
                    assert wanted == from_below(200 - left, call)
                    outcomes.add("right")
                except (RecursionError, SharedTaskError):
                    outcomes.add("error")
                assert [0, 1, 4, 9] == plain.map(range(4))
                assert [1.0, 2.0] == shared.map(range(2), table=table)
    finally:
        sys.setrecursionlimit(old)
    assert {"right", "error"} == outcomes


def test_clock_that_jumps(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits do not depend on the time of day."""
    import time

    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 1e7)
    task = parallel(square).with_options(backend=backend, timeout=20.0, chunksize=2)
    assert [x * x for x in range(20)] == task.map(range(20))


def test_hundred_megabytes_of_text(backend: Any) -> None:
    """Large texts and bytes travel in time that grows with their length, both ways."""
    items = ["x" * 30_000_000, bytes(30_000_000), "y" * 30_000_000]
    task = parallel(lambda x: x).with_options(backend=backend)
    assert items == task.map(items)


def test_arguments_that_are_not_there(backend: Any) -> None:
    """Nothing is run where the call itself is wrong."""
    with pytest.raises((TypeError, ArgumentError)):
        task: Any = parallel(first_plus)
        task.with_options(backend=backend).map(range(3), nothing=3)


def test_values_survive_what_the_module_does(backend: Any) -> None:
    """Hostile values are picklable themselves: the cases above mean what they say."""
    for name, make in ODD_VALUES.items():
        if name != "NotImplemented":
            assert type(make()) is type(pickle.loads(pickle.dumps(make())))
