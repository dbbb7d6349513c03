"""What libraries remember of objects that were unpickled: warm workers follow what changes."""

import abc
import collections.abc
import contextlib
import enum
import numbers
from collections.abc import Callable
from typing import Any

import attrs
import pyarrow as pa
import pydantic
import pytest

from sharedtask import Shared, parallel
from sharedtask.serialization import class_memos


@pytest.fixture(params=["process", "ray"])
def elsewhere(request: pytest.FixtureRequest) -> str:
    """The backends whose workers live longer than a call."""
    name: str = request.param
    if name == "ray":
        request.getfixturevalue("ray_runtime")
    return name


def on(backend: str, function: Callable[..., Any]) -> Any:
    return parallel(function).with_options(backend=backend, workers=1)  # type: ignore[arg-type]


def test_extension_type_of_arrow(elsewhere: str) -> None:
    """A type that the program has registered with pyarrow arrives as itself, as it is now."""

    class Unit(pa.ExtensionType):  # type: ignore[misc]
        scale = 1

        def __init__(self) -> None:
            super().__init__(pa.int64(), "sharedtask.unit")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: Any, data: bytes) -> Any:
            return cls()

    def look(_: int, array: Shared[Any]) -> tuple[str, int, list[int]]:
        return type(array.type).__name__, array.type.scale, array.storage.to_pylist()

    array = pa.ExtensionArray.from_storage(Unit(), pa.array([1, 2]))
    pa.register_extension_type(Unit())
    try:
        assert [("Unit", 1, [1, 2])] == on(elsewhere, look).map([0], array=array)
        Unit.scale = 7
        assert [("Unit", 7, [1, 2])] == on(elsewhere, look).map([0], array=array)
    finally:
        pa.unregister_extension_type("sharedtask.unit")


def test_model_of_pydantic(elsewhere: str) -> None:
    """A model that was patched, or defined again under its name, is the present one."""

    class Model(pydantic.BaseModel):
        x: int

        def told(self) -> int:
            return self.x

    def look(model: Any) -> tuple[Any, ...]:
        return model.told(), model.model_dump(), type(model).model_validate({"x": "5"}).x

    assert [(1, {"x": 1}, 5)] == on(elsewhere, look).map([Model(x=1)])
    Model.told = lambda self: self.x + 10  # type: ignore[method-assign]
    assert [(11, {"x": 1}, 5)] == on(elsewhere, look).map([Model(x=1)])


def test_class_of_attrs(elsewhere: str) -> None:
    """Fields, equality and hash are those of the class here."""

    @attrs.frozen
    class Point:
        x: int
        y: int = 2

    def look(point: Any) -> tuple[Any, ...]:
        return attrs.asdict(point), point == Point(1), len({point, Point(1)}), point.scale

    Point.scale = 1  # type: ignore[attr-defined]
    assert [({"x": 1, "y": 2}, True, 1, 1)] == on(elsewhere, look).map([Point(1)])
    Point.scale = 3  # type: ignore[attr-defined]
    assert [({"x": 1, "y": 2}, True, 1, 3)] == on(elsewhere, look).map([Point(1)])


def test_member_of_an_enum(elsewhere: str) -> None:
    """A member is one object in each process, found by its value, and comes back as it is."""

    class Color(enum.Enum):
        RED = 1

    class Right(enum.Flag):
        READ = 1
        WRITE = 2

    def look(member: Any) -> tuple[Any, ...]:
        return member is Color.RED, Color(1) is member, Right(3) is (Right.READ | Right.WRITE)

    assert [(True, True, True)] == on(elsewhere, look).map([Color.RED])
    back = on(elsewhere, lambda _: (Color.RED, Right.READ | Right.WRITE)).map([0])[0]
    assert back[0] is Color.RED
    assert back[1] is Right(3)


def test_storage_of_torch(elsewhere: str) -> None:
    """Tensors that share memory do so in a worker, and what was written since is seen."""
    torch = pytest.importorskip("torch")
    base = torch.arange(4.0)
    view = base[1:]

    def look(_: int) -> tuple[float, float]:
        return float(base.sum()), float(view.sum())

    assert [(6.0, 6.0)] == on(elsewhere, look).map([0])
    base[1] = 11
    assert [(16.0, 16.0)] == on(elsewhere, look).map([0])


def test_registration_with_a_class_of_the_script(elsewhere: str) -> None:
    """An abstract class of the script knows the classes that were registered with it."""

    class Shape(abc.ABC):  # noqa: B024
        pass

    class Square:
        pass

    look = on(elsewhere, lambda shape: isinstance(shape, Shape))
    assert [False] == look.map([Square()])
    Shape.register(Square)
    assert [True] == look.map([Square()])


def test_registration_with_the_standard_library(elsewhere: str) -> None:
    """A class of the script is registered in workers where it is here, if they are warm too."""

    class Own:
        pass

    class Level(enum.Enum):
        LOW = 1

    look = on(elsewhere, lambda own: isinstance(own, collections.abc.Sequence | numbers.Real))
    assert [False, False] == look.map([Own(), Level.LOW])
    collections.abc.Sequence.register(Own)
    numbers.Real.register(Level)
    assert [True, True] == look.map([Own(), Level.LOW])
    result = on(elsewhere, lambda _: Own()).map([0])
    assert [Own] == [type(own) for own in result]


def test_class_with_methods_is_not_registered() -> None:
    """An abstract class that looks at the methods does so in workers as well."""

    class Sized:
        def __len__(self) -> int:
            return 0

    class Odd(type):
        def __subclasscheck__(cls, other: type) -> bool:
            raise RuntimeError

    assert () == class_memos.registered_with(Sized)
    assert () == class_memos.registered_with(Odd("Class", (), {}))


def test_registration_with_another_module(elsewhere: str) -> None:
    """A class of the script is registered with an abstract class of any module, if warm too."""

    class Own:
        pass

    look = on(elsewhere, lambda own: isinstance(own, contextlib.AbstractContextManager))
    assert [False] == look.map([Own()])
    contextlib.AbstractContextManager.register(Own)
    assert [True] == look.map([Own()])
    assert [True] == look.map([Own()])


def test_what_is_registered_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All abstract classes are searched after a register() alone, for classes that may have it."""
    searches = []
    search = class_memos._search

    def counted() -> Any:
        searches.append(1)
        return search()

    class Own:
        pass

    class Other:
        pass

    monkeypatch.setattr(class_memos, "_search", counted)
    assert () == class_memos.registered_with(Own)
    assert [] == searches
    contextlib.AbstractContextManager.register(Own)
    for _ in range(3):
        assert (("contextlib", "AbstractContextManager"),) == class_memos.registered_with(Own)
        assert () == class_memos.registered_with(Other)
    assert [1] == searches


def test_registration_of_a_class_of_a_module_stays_here() -> None:
    """What a program tells two modules of each other is not told to workers."""
    numbers.Real.register(pa.Scalar)
    look = on("process", lambda _: issubclass(pa.Scalar, numbers.Real))
    assert [False] == look.map([0])


def test_function_of_sympy_is_evaluated_again(elsewhere: str) -> None:
    """What an ``eval`` has returned is kept by sympy, but not of an older version of its class."""
    sympy = pytest.importorskip("sympy")
    limit = 1

    class Cut(sympy.Function):  # type: ignore[misc, name-defined]
        @classmethod
        def eval(cls, x: Any) -> Any:
            return sympy.Integer(limit)

    look = on(elsewhere, lambda x: int(Cut(x)))
    assert [1] == look.map([5])
    limit = 2
    assert [2] == look.map([5])
    setattr(Cut, "eval", classmethod(lambda cls, x: sympy.Integer(3)))  # noqa: B010  for mypy
    assert [3] == look.map([5])
