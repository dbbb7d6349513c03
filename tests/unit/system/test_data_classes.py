"""Data classes of our own behave as those of the standard library, and compile nothing at first."""

import copy
import dataclasses
import gc
import pickle
import weakref
from dataclasses import FrozenInstanceError
from typing import Any, cast

import pytest

from sharedtask.system.records import dataclass, field


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
    seen: list[int] = field(default_factory=list, repr=False)


@dataclass(slots=True)
class Count:
    name: str
    found: dict[str, int] = field(default_factory=dict)
    total: int = field(default=5, init=False)
    later: int = field(init=False)


@dataclass(frozen=True, slots=True)
class Name:
    first: str
    last: str = ""


@dataclass(frozen=True)
class Plain:
    text: str


@dataclass(eq=False, slots=True, kw_only=True)
class ByName:
    x: int
    y: int = 0


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Weak:
    x: int


@dataclass(slots=True)
class Checked:
    x: int

    def __post_init__(self) -> None:
        self.x += 1

    def __repr__(self) -> str:
        return "its own"


@dataclass(frozen=True, slots=True)
class Empty:
    pass


def test_fields_and_defaults() -> None:
    """Arguments by position and by name, defaults, and a new object of each factory."""
    assert (1, 2, []) == (Point(1).x, Point(1).y, Point(1).seen)
    assert Point(1).seen is not Point(1).seen
    assert (3, 4, [5]) == dataclasses.astuple(Point(3, seen=[5], y=4))
    count = Count("a")
    assert ("a", {}, 5) == (count.name, count.found, count.total)
    assert not hasattr(count, "later")
    assert (1, 0) == (ByName(x=1).x, ByName(x=1).y)
    assert 2 == Checked(1).x


WRONG: list[Any] = [(Point, (), {}), (Point, (1, 2, [], 3), {}), (Count, ("a",), {"total": 1})]


@pytest.mark.parametrize(("cls", "args", "named"), WRONG)
def test_wrong_arguments(cls: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """They are a TypeError that names the class."""
    with pytest.raises(TypeError, match=r"(Point|Count)\.__init__\(\)"):
        cls(*args, **named)


@pytest.mark.parametrize("value", [Point(1), Plain("a"), Weak(1), Empty()])
def test_frozen(value: Any) -> None:
    """No field can be set or deleted."""
    for name in [each.name for each in dataclasses.fields(value)] or ["x"]:
        with pytest.raises(FrozenInstanceError, match=name):
            setattr(value, name, 1)
        with pytest.raises(FrozenInstanceError, match=name):
            delattr(value, name)


def test_equality_and_hash() -> None:
    """Of the same class and equal values; what may change has no hash, what has none is itself."""
    assert Name("a") == Name("a", "") != Name("a", "b")
    assert Name("a") != cast("Any", ("a", ""))
    assert 1 == len({Name("a"), Name("a")})
    assert Plain("a") == Plain("a")
    assert Empty() == Empty()
    assert 1 == len({Empty(), Empty()})
    one, other = Count("a"), Count("a", {"b": 1})
    one.later = other.later = 0
    assert one != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(Checked(1))
    assert ByName(x=1) != ByName(x=1)
    assert 2 == len({ByName(x=1), ByName(x=1)})


def test_repr() -> None:
    """As the standard library's, unless the class has its own."""
    assert "Point(x=1, y=2)" == repr(Point(1))
    assert "Empty()" == repr(Empty())
    assert "its own" == repr(Checked(1))


@pytest.mark.parametrize("value", [Point(1, 3, [4]), Count("a", {"b": 1}), Plain("a"), Weak(1)])
def test_copies(value: Any) -> None:
    """Pickled, copied and replaced, with every protocol that the library meets."""
    if isinstance(value, Count):
        value.later = 7
    for protocol in (2, 4, 5):
        assert value == pickle.loads(pickle.dumps(value, protocol))
    assert value == copy.copy(value) == copy.deepcopy(value)
    assert dataclasses.is_dataclass(value)
    if isinstance(value, Point):
        assert Point(9, 3, [4]) == dataclasses.replace(value, x=9)


def test_weak_references() -> None:
    """A class that asks for it."""
    value = Weak(1)
    reference = weakref.ref(value)
    assert value is reference()
    del value
    gc.collect()
    assert reference() is None


def test_slots() -> None:
    """No attribute beside the fields, and no dict."""
    assert not hasattr(Point(1), "__dict__")
    with pytest.raises(AttributeError):
        Count("a").other = 1  # type: ignore[attr-defined]


def test_nothing_is_compiled_before_the_first_object() -> None:
    """That would take most of the time that the import of the library takes."""

    @dataclass(frozen=True, slots=True)
    class New:
        x: int

    assert __file__ != New.__init__.__code__.co_filename != "<string>"
    assert 1 == New(1).x
    assert "<string>" == New.__init__.__code__.co_filename
    assert 2 == New(2).x


def test_subclass_with_an_init_of_its_own() -> None:
    """It may call that of its base, which is compiled then, each time."""

    @dataclass()
    class Base:
        x: int

    class Derived(Base):
        def __init__(self) -> None:
            super().__init__(3)
            self.y = 4

    assert [(3, 4)] * 2 == [(made.x, made.y) for made in (Derived(), Derived())]


def test_equality_of_its_own() -> None:
    """A frozen class with one has a hash too, which Python takes from it otherwise."""

    @dataclass(frozen=True)
    class Folded:  # noqa: PLW1641  that is the point
        text: str

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Folded)

    assert Folded("a") == Folded("b")
    assert hash(Folded("a")) == hash(Folded("a"))
