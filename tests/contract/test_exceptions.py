"""Exceptions arrive as they were raised: class, arguments, attributes, slots, fields in C."""

import asyncio
import io
import json
import subprocess
import threading
import types
import urllib.error
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Self

import attrs
import numpy as np
import pydantic
import pytest
import requests
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedtask import Shared, TaskExitError, parallel
from sharedtask.errors import ItemNote


class Point(NamedTuple):
    x: Any
    y: Any


class TakesTuple(Exception):
    def __init__(self, where: Any) -> None:
        super().__init__(where, "fixed")
        self.where = where


class TakesNothing(ValueError):
    def __init__(self) -> None:
        super().__init__("text", 3)


class KeywordsOnly(Exception):
    def __init__(self, *, place: Any, code: int = 3) -> None:
        super().__init__(f"at {place}")
        self.place, self.code = place, code


class FileTrouble(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path, None, f"{path}.bak")
        self.path = path


class FieldsLater(OSError):
    def __init__(self, path: str) -> None:
        self.errno, self.strerror, self.filename, self.filename2 = 5, "bad", path, b"raw"
        self.characters_written = 7


class WasBlocked(BlockingIOError):
    def __init__(self, written: int) -> None:
        super().__init__(11, "full", written)


class NoModule(ImportError):
    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}", name=name, path=f"/{name}.py")


class Missing(AttributeError):
    def __init__(self, who: Any, name: str) -> None:
        super().__init__("not there", name=name, obj=who)


class Unknown(NameError):
    def __init__(self, name: str) -> None:
        super().__init__("unknown", name=name)


class Stop(StopIteration):
    def __init__(self, value: Any) -> None:
        super().__init__(value, "more")


class Grammar(SyntaxError):
    def __init__(self, line: int) -> None:
        super().__init__("bad", ("f.py", line, 3, "x = (", line, 5))
        self.print_file_and_line = True  # type: ignore[assignment]


class Bytes(UnicodeDecodeError):
    def __init__(self, data: bytes) -> None:
        super().__init__("utf-8", data, 0, len(data), "odd")


class Slots(Exception):
    __slots__ = ("_hidden", "a", "b", "never")

    def __init__(self, a: Any) -> None:
        super().__init__("slots")
        self.a, self.b, self._hidden = a, (a, a), {"x": a}


class MoreSlots(Slots):
    __slots__ = ("__private", "a")

    def __init__(self, a: Any) -> None:
        super().__init__(a)
        vars(Slots)["a"].__set__(self, "of the base")
        self.a, self.__private = "of its own", a

    def __str__(self) -> str:
        return str(self.__private)


class Both(KeyError, FileNotFoundError):
    def __init__(self, key: Any) -> None:
        FileNotFoundError.__init__(self, 2, "gone", "there")
        self.key = key


class Meta(type):
    def __call__(cls, *args: Any) -> Any:
        raise TypeError("not to be called")

    def make(cls, *args: Any) -> Any:
        return super().__call__(*args)


class WithMeta(Exception, metaclass=Meta):
    pass


class OwnNew(Exception):
    def __new__(cls, first: Any, second: Any) -> Self:
        made = super().__new__(cls, second, first)
        made.order = (first, second)
        return made

    def __init__(self, first: Any, second: Any) -> None:
        pass

    order: Any


class SealedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        vars(self)["code"] = code

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("sealed")

    def __getattr__(self, name: str) -> Any:
        return vars(self)["inner"]


@dataclass
class Data(Exception):
    code: int
    where: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FrozenData(Exception):
    code: int
    where: tuple[int, ...] = ()


@attrs.define
class Attrs(Exception):
    code: int
    where: Any = attrs.field(factory=list)


@attrs.frozen
class FrozenAttrs(Exception):
    code: int
    where: Any = ()


class Reduces(Exception):
    def __init__(self, a: Any, b: Any) -> None:
        super().__init__(a)
        self.b = b

    def __reduce__(self) -> Any:
        return Reduces, (self.args[0], self.b)


class ReducesWrongly(Exception):
    def __init__(self, a: Any, b: Any = None) -> None:
        super().__init__(a)
        self.b = b

    def __reduce__(self) -> Any:
        return ReducesWrongly, self.args


class ReducesToAnother(Exception):
    def __init__(self, a: Any) -> None:
        super().__init__(a)
        self.a = [a]

    def __reduce__(self) -> Any:
        return ValueError, ("another",)


class Group(ExceptionGroup[Exception]):
    def __new__(cls, text: str, errors: Any, code: int = 0) -> Self:
        made = super().__new__(cls, text, errors)
        made.code = code
        return made

    def __init__(self, text: str, errors: Any, code: int = 0) -> None:
        super().__init__(text, errors)

    def derive(self, errors: Any) -> "Group":  # type: ignore[override]
        return Group(self.message, errors, self.code)

    code: int


def with_attributes(error: Exception, **attributes: Any) -> Exception:
    vars(error).update(attributes)
    return error


def with_file(error: OSError, name: str | None) -> OSError:
    error.filename = name
    return error


def with_notes(error: Exception) -> Exception:
    error.add_note("first")
    error.add_note("second")
    return error


def with_itself() -> Exception:
    error = TakesTuple((1,))
    error.args = (error, [error])
    error.where = {"me": error}
    return error


def group_that_is_known_inside() -> Exception:
    inner = KeywordsOnly(place="home")
    group = Group("outer", [inner, ValueError(1)], 5)
    vars(inner)["group"] = group
    return group


def raised(function: Callable[[], Any]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError


def response(status: int) -> requests.Response:
    made = requests.Response()
    made.status_code, made._content = status, b"body"
    return made


def http_error(body: io.BytesIO | None) -> Exception:
    headers: Any = {"a": "b"}
    return urllib.error.HTTPError("u", 404, "m", headers, body)


class Model(pydantic.BaseModel):
    size: int


MAKE: dict[str, Callable[[], Exception]] = {
    "plain": lambda: ValueError("text", 3),
    "tuple": lambda: KeyError((1, (2, [3]))),
    "tuple in own init": lambda: TakesTuple((1, (2, [3]))),
    "namedtuple": lambda: TakesTuple(Point(1, Point(2, (3,)))),
    "ordered dict": lambda: TakesTuple(OrderedDict(a=(1,))),
    "nothing": TakesNothing,
    "keywords only": lambda: KeywordsOnly(place=("a", b"b"), code=7),
    "OSError": lambda: OSError(2, "gone", "a", None, "b"),
    "OSError of one": lambda: OSError("text"),
    "OSError of nothing": lambda: OSError(None, "gone"),
    "OSError with a file that is None": lambda: with_file(OSError(2, "x"), None),
    "FileNotFoundError": lambda: raised(lambda: open("/no/such/file")),  # noqa: SIM115
    "OSError with own init": lambda: FileTrouble("a"),
    "OSError with late fields": lambda: FieldsLater("a"),
    "OSError with an attribute": lambda: with_attributes(OSError(2, "x", "f"), row=(1, 2)),
    "BlockingIOError": lambda: WasBlocked(7),
    "UnsupportedOperation": lambda: raised(io.BytesIO().fileno),
    "ImportError": lambda: ImportError("x", name="n", path="p"),
    "ModuleNotFoundError": lambda: raised(lambda: __import__("no_such_module")),
    "ImportError with own init": lambda: NoModule("n"),
    "AttributeError": lambda: raised(lambda: "text".nothing),  # type: ignore[attr-defined]
    "AttributeError with own init": lambda: Missing([1, (2,)], "n"),
    "NameError": lambda: raised(lambda: undefined),  # type: ignore[name-defined] # noqa: F821
    "NameError with own init": lambda: Unknown("n"),
    "StopIteration": lambda: StopIteration((1, 2)),
    "StopIteration with own init": lambda: Stop((1, 2)),
    "SyntaxError": lambda: raised(lambda: compile("x = (", "f.py", "exec")),
    "SyntaxError with own init": lambda: Grammar(4),
    "IndentationError": lambda: raised(lambda: compile("if x:\ny", "f.py", "exec")),
    "UnicodeDecodeError": lambda: raised(b"\xff".decode),
    "UnicodeEncodeError": lambda: raised("\ud800".encode),
    "UnicodeError with own init": lambda: Bytes(b"\xff\xfe"),
    "CalledProcessError": lambda: subprocess.CalledProcessError(3, ("a", "b"), b"out", b"err"),
    "TimeoutExpired": lambda: subprocess.TimeoutExpired(["a"], 2.5, b"out"),
    "JSONDecodeError": lambda: raised(lambda: json.loads("[1,")),
    "JSONDecodeError with an attribute": lambda: with_attributes(
        json.JSONDecodeError("m", "{", 1), row=(1, Point(1, 2))
    ),
    "HTTPError": lambda: http_error(None),
    "HTTPError with a body": lambda: http_error(io.BytesIO(b"body")),
    "IncompleteReadError": lambda: asyncio.IncompleteReadError(b"abc", 7),
    "BrokenExecutor": lambda: BrokenExecutor("x"),
    "slots": lambda: Slots([1]),
    "slots of two bases": lambda: MoreSlots((1, [2])),
    "two C bases": lambda: Both(("k", 1)),
    "metaclass": lambda: WithMeta.make((1, 2)),
    "own new": lambda: OwnNew((1,), 2),
    "sealed": lambda: SealedError(3),
    "dataclass": lambda: Data(3, (1, 2)),
    "frozen dataclass with slots": lambda: FrozenData(3, (1, 2)),
    "attrs": lambda: Attrs(3, [(1,)]),
    "frozen attrs": lambda: FrozenAttrs(3, (1,)),
    "pydantic": lambda: raised(lambda: Model(size="x")),  # type: ignore[arg-type]
    "requests": lambda: requests.HTTPError("no", request=requests.Request("GET", "http://a")),
    "requests with a response": lambda: requests.HTTPError("no", response=response(500)),
    "requests' JSONDecodeError": lambda: requests.exceptions.JSONDecodeError("m", "{", 1),
    "AxisError": lambda: raised(lambda: np.zeros(2).sum(axis=3)),
    "LinAlgError": lambda: raised(lambda: np.linalg.inv(np.zeros((2, 2)))),
    "ufunc": lambda: raised(lambda: np.add("a", None)),  # type: ignore[call-overload]
    "own reduce": lambda: Reduces((1, [2]), Point(1, 2)),
    "own reduce with notes": lambda: with_notes(Reduces(1, 2)),
    "own reduce that loses": lambda: ReducesWrongly((1,), Point(1, 2)),
    "own reduce to another": lambda: ReducesToAnother((1,)),
    "array": lambda: TakesTuple(np.arange(6.0).reshape(2, 3)),
    "structured array": lambda: with_attributes(ValueError(1), a=np.zeros(2, "i4,f8")),
    "notes": lambda: with_notes(KeywordsOnly(place="x")),
    "itself": with_itself,
    "group": lambda: ExceptionGroup("g", (ValueError(1), FileTrouble("a"), Slots((1,)))),
    "group of a list": lambda: ExceptionGroup("g", [KeyError((1, 2)), NoModule("n")]),
    "nested groups": lambda: ExceptionGroup(
        "g", [ExceptionGroup("h", [Missing((1,), "n"), Both(1)]), with_notes(Stop((1,)))]
    ),
    "own group": lambda: Group("g", [Group("h", [Grammar(3)], 4), Reduces((1,), 2)], 5),
    "group of what reduces": lambda: ExceptionGroup(
        "g",
        [with_notes(Reduces(1, (2,))), raised(lambda: Model(size="x"))],  # type: ignore[arg-type]
    ),
    "group known inside": group_that_is_known_inside,
    "exception in an attribute": lambda: with_attributes(ValueError(1), by=FileTrouble("a")),
}


# ------------------------------------------------------------------------------ what it holds

_ELSEWHERE = {"__traceback__", "__context__", "__cause__", "__suppress_context__"}
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)


def told(value: Any, above: tuple[int, ...] = ()) -> Any:
    """A value with the types of all its parts, in plain data that can be compared."""
    if id(value) in above:
        return "above", len(above) - above.index(id(value))
    above = (*above, id(value))
    cls = type(value)
    if isinstance(value, BaseException):
        return cls, [(name, told(part, above)) for name, part in parts(value)]
    if isinstance(value, (list, tuple)):
        return cls, [told(part, above) for part in value]
    if isinstance(value, dict):
        return cls, {key: told(part, above) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return cls, value.dtype, value.tolist()
    if isinstance(value, requests.Response):
        return cls, value.status_code, value.content
    if isinstance(value, io.BytesIO):
        return cls, value.getvalue()
    if isinstance(value, (int, float, str, bytes, type(None), type, np.dtype, type(...))):
        return cls, value
    return cls, told(getattr(value, "__dict__", None), above)


def parts(error: BaseException) -> Any:
    for cls in type(error).__mro__:
        for name, found in vars(cls).items():
            if isinstance(found, _DESCRIPTORS) and name not in {*_ELSEWHERE, "__weakref__"}:
                try:
                    yield f"{cls.__qualname__}.{name}", found.__get__(error)
                except AttributeError:
                    continue
    yield "text", str(error)


def as_raised(error: Any) -> Any:
    """Take the note away that names the item."""
    notes = vars(error).get("__notes__", [])
    kept = [note for note in notes if not isinstance(note, ItemNote)]
    if kept:
        vars(error)["__notes__"] = kept
    else:
        vars(error).pop("__notes__", None)
    return error


def raise_named(name: str) -> None:
    error = MAKE[name]()
    raise error


def raise_it(error: Any) -> None:
    raise error


def give_it(error: Any) -> Any:
    return error


# -------------------------------------------------------------------------------------- exact


def test_exception_is_the_one_that_a_loop_raises(backend: Any) -> None:
    """Class, arguments and all fields of an exception are those that a loop would see."""
    task = parallel(raise_named).with_options(backend=backend, return_exceptions=True)
    for name, error in zip(MAKE, task.map(list(MAKE)), strict=True):
        assert told(MAKE[name]()) == told(as_raised(error)), name


def test_exception_is_exact_as_item_and_as_result(backend: Any) -> None:
    """An exception that is passed or returned is as exact as one that is raised.

    Where its class says how it is pickled, that is what counts.
    """
    names = [name for name in MAKE if not pickled_by_its_class(MAKE[name]())]
    results = parallel(give_it).with_options(backend=backend).map([MAKE[n]() for n in names])
    for name, error in zip(names, results, strict=True):
        assert told(MAKE[name]()) == told(error), name


@pytest.mark.parametrize("name", ["OSError with own init", "own group", "slots"])
def test_exception_is_exact_on_every_way(backend: Any, name: str) -> None:
    """A raised, a returned and a future's exception are the same."""
    wanted = told(MAKE[name]())
    task = parallel(raise_named).with_options(backend=backend)
    with pytest.raises(type(MAKE[name]())) as caught:
        task.map([name])
    assert wanted == told(as_raised(caught.value))
    assert wanted == told(as_raised(task.submit(name).exception()))
    with pytest.raises(type(MAKE[name]())) as caught:
        list(task.imap([name]))
    assert wanted == told(as_raised(caught.value))


def fail_once(folder: str, error: type[Exception]) -> str:
    try:
        with open(f"{folder}/tried", "x"):
            raise error("a")
    except FileExistsError:
        return "done"


def test_retries_know_the_class(backend: Any, tmp_path: Any) -> None:
    """``retry_on`` knows an exception with an ``__init__`` of its own by its class."""
    task = parallel(fail_once).with_options(backend=backend, retries=1, retry_on=[FileTrouble])
    assert ["done"] == task.map([str(tmp_path)], error=FileTrouble)


ONE = MoreSlots((1, [2]))


def raise_one(x: int) -> None:
    raise ONE


def test_one_exception_for_several_items(backend: Any) -> None:
    """The same object raised for several items is an exact error at each of them."""
    task = parallel(raise_one).with_options(backend=backend, return_exceptions=True)
    for error in task.map(range(4)):
        assert told(MoreSlots((1, [2]))) == told(as_raised(error))


def raise_with_shared(x: int, a: Shared[Any]) -> None:
    raise TakesTuple(a[x:])


def test_exception_holds_a_shared_array(backend: Any) -> None:
    """A shared array in an exception is valid when the task and its value are gone."""
    task = parallel(raise_with_shared).with_options(backend=backend, return_exceptions=True)
    errors: Any = task.map(range(3), a=np.arange(100_000.0))
    for place, error in enumerate(errors):
        assert np.array_equal(np.arange(100_000.0)[place:], error.where)


MAIN = """
from sharedtask import Shared, parallel

class Own(OSError):
    __slots__ = ("slot",)
    def __init__(self, a):
        super().__init__(2, "gone", a)
        self.slot = (a,)

def fail(x):
    raise Own("a")

if __name__ == "__main__":
    for backend in ("serial", "thread", "process"):
        (error,) = parallel(fail).with_options(backend=backend, return_exceptions=True).map([1])
        print(type(error) is Own, error.filename, error.slot)
"""


def test_exception_of_a_class_of_main(run: Any) -> None:
    """An exception of a class of the program itself is of that very class."""
    assert "True a ('a',)\n" * 3 == run(MAIN)


# ----------------------------------------------------------------------------- what stays behind


class Holds(Exception):
    __slots__ = ("slot",)

    def __init__(self, what: Any) -> None:
        super().__init__("holds", what)
        self.kept, self.lost, self.slot = (1, 2), what, what


class LeavesOut(Holds):
    __slots__ = ()

    def __reduce__(self) -> Any:
        return _leaves_out, (self.kept,)


def _leaves_out(kept: Any) -> LeavesOut:
    error = LeavesOut(None)
    error.kept = kept
    return error


HOLD: dict[str, Callable[[], Exception]] = {
    "lock": lambda: Holds(threading.Lock()),
    "group": lambda: ExceptionGroup("g", [ValueError((1,)), Holds(threading.Lock())]),
}


def raise_holding(name: str) -> None:
    error = HOLD[name]()
    raise error


@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
def test_what_cannot_travel_is_told(backend: Any) -> None:
    """What cannot be pickled stays in the worker: a note names it, and the rest is exact."""
    task = parallel(raise_holding).with_options(backend=backend, return_exceptions=True)
    results: Any = task.map(["lock", "group"])
    alone, group = results
    assert isinstance(group, ExceptionGroup)
    assert told(ValueError((1,))) == told(group.exceptions[0])
    for error in (alone, group.exceptions[1]):
        assert isinstance(error, Holds)
        assert (1, 2) == error.kept
        assert "holds" == error.args[0]
        assert "lock" in error.args[1]
        assert not hasattr(error, "lost")
        assert not hasattr(error, "slot")
        notes = "\n".join(error.__notes__)
        assert "args[1]" in notes
        assert "'lost', a _thread.lock," in notes
        assert "'slot'" in notes


def raise_large(x: int, large: Shared[Any], way: str) -> None:
    if way == "obj":
        large.nothing  # noqa: B018
    if way == "left out":
        raise LeavesOut(large)
    raise Holds(large)


@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
def test_large_object_of_an_attribute_error(backend: Any) -> None:
    """What no one put into an exception does not make it large: the object an attribute lacks."""
    task = parallel(raise_large).with_options(backend=backend, return_exceptions=True)
    error: Any
    (error,) = task.map([1], large={"a": np.zeros(100_000)}, way="obj")
    assert isinstance(error, AttributeError)
    assert ("nothing", None) == (error.name, error.obj)
    assert not [note for note in error.__notes__ if not isinstance(note, ItemNote)]
    (error,) = task.map([1], large=np.zeros(100_000), way="left out")
    assert isinstance(error, LeavesOut)
    assert ((1, 2), None) == (error.kept, error.lost)
    (error,) = task.map([1], large=np.zeros(100_000), way="held")
    assert isinstance(error, Holds)
    assert 100_000 == len(error.lost)


class Leaves(BaseException):
    def __init__(self, a: Any) -> None:
        super().__init__("leaves")


def test_base_exception_is_told(backend: Any) -> None:
    """What is no ``Exception`` stays a TaskExitError with its name and text."""
    task = parallel(raise_it).with_options(backend=backend, return_exceptions=True)
    error: Any
    (error,) = task.map([Leaves(1)])
    assert isinstance(error, TaskExitError)
    assert ("test_exceptions.Leaves", "leaves") == (error.class_name, error.text)


# ----------------------------------------------------------------------------------- properties

ATOMS = st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.booleans()
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Point, inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
CLASSES = (Exception, ValueError, KeyError, OSError, ImportError, StopIteration, LookupError)


def of_class(cls: type[Exception], args: tuple[Any, ...]) -> Exception:
    return cls(*args)


def made_of(classes: Any, *values: Any) -> Any:
    return st.builds(of_class, st.sampled_from(classes), st.tuples(*values))


SIMPLE = (
    st.builds(of_class, st.sampled_from(CLASSES), st.lists(VALUES, max_size=4).map(tuple))
    | made_of([TakesTuple, Stop, Slots, MoreSlots, Both], VALUES)
    | made_of([OwnNew, Data, Attrs, Reduces, ReducesWrongly], VALUES, VALUES)
    | made_of([NoModule, FileTrouble, FieldsLater, Unknown], st.text())
    | st.builds(Missing, VALUES, st.text(max_size=3))
)
DRESSED = st.builds(
    lambda error, attributes: with_attributes(error, **attributes),
    SIMPLE,
    st.dictionaries(st.sampled_from(["row", "place", "x"]), VALUES, max_size=2),
)
ERRORS = st.recursive(
    DRESSED,
    lambda inner: (
        st.builds(ExceptionGroup, st.text(), st.lists(inner, min_size=1, max_size=3))
        | st.builds(Group, st.text(), st.lists(inner, min_size=1, max_size=3), st.integers())
        | st.builds(lambda error, by: with_attributes(error, by=by), inner, inner)
    ),
    max_leaves=4,
)


def pickled_by_its_class(error: Any) -> bool:
    """Whether what is passed as an item is what its class makes of it."""
    words = ("Reduces", "JSON", "ValidationError", "Attrs", "FrozenData")
    return any(word in repr(told(error)) for word in words)


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(ERRORS, min_size=1, max_size=8))
def test_any_exception_arrives_as_it_is(errors: list[Exception]) -> None:
    """Whatever exceptions are made of, those that arrive hold the same."""
    errors = [error for error in errors if not pickled_by_its_class(error)]
    wanted = [told(error) for error in errors]
    task = parallel(raise_it).with_options(backend="process", return_exceptions=True)
    found: Any = task.map(errors)
    assert wanted == [told(as_raised(error)) for error in found]
