"""Classes of scripts, cells and functions: the caller's are never written, workers' follow them."""

import abc
import copy
import dataclasses
import enum
import gc
import typing
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from unittest import mock

import attrs
import numpy as np
import pydantic
import pytest

from sharedtask import Shared, explain, parallel, share
from sharedtask.serialization import classes, codec

Run = Callable[..., str]
T = TypeVar("T")


def on(
    backend: str, function: Callable[..., Any], shared: Sequence[str] = (), **options: Any
) -> Any:
    each: Any = parallel(shared=shared)(function)
    return each.with_options(backend=backend, workers=2, **options)


# ------------------------------------------------------- what comes back leaves the class alone


def test_caller_counts_in_its_class_while_results_come(backend: str) -> None:
    """A result holds an instance of the caller's class, and the class is as the caller left it."""

    class Run:
        done = 0

    for result in on(backend, lambda _: Run(), chunksize=1).imap(range(10)):
        assert type(result) is Run
        Run.done += 1
    assert 10 == Run.done


def test_raised_exception_leaves_its_class_alone(backend: str) -> None:
    """An exception of a class of the script is the caller's class, as the caller left it."""

    class Refused(Exception):
        seen = 0

    def refuse(x: int) -> None:
        raise Refused(x)

    task = on(backend, refuse, return_exceptions=True, chunksize=1)
    for outcome in task.imap(range(6)):
        assert type(outcome) is Refused
        Refused.seen += 1
    assert 6 == Refused.seen


def test_sharing_an_instance_leaves_the_class_alone(backend: str) -> None:
    """Arrays of a shared instance are read-only in tasks; those of the class stay as they are."""

    class Model:
        table = np.arange(4.0)

        def __init__(self) -> None:
            self.own = np.ones(4)

    table, model = Model.table, Model()

    def use(x: int, m: Shared[Any]) -> float:
        return x + float(m.table.sum() + m.own.sum())

    assert [10.0, 11.0] == on(backend, use).map(range(2), m=model)
    with share(model) as handle:
        assert type(handle.value) is Model
        assert not handle.value.own.flags.writeable
        assert [10.0, 11.0] == on(backend, use).map(range(2), m=handle)
    explain(model)
    assert Model.table is table
    assert table.flags.writeable


class Kinds:
    """Makes one class of each kind, again for each test, and what its instances should tell."""

    def __init__(self) -> None:
        self.log: list[str] = []
        made = (getattr(self, name)() for name in dir(self) if name.startswith("make_"))
        self.values = [value for values in made for value in values]

    def make_plain(self) -> list[Any]:
        class Outer:
            class Inner:
                n = 0

            def me(self) -> Any:
                return __class__  # type: ignore[name-defined]

        return [Outer(), Outer.Inner()]

    def make_data(self) -> list[Any]:
        @dataclasses.dataclass
        class Data:
            x: int = 1
            tags: list[str] = dataclasses.field(default_factory=list)

        @dataclasses.dataclass(frozen=True, slots=True)
        class Frozen:
            x: int = 1

        @attrs.define
        class Attrs:
            x: int = 1

        class Model(pydantic.BaseModel):
            x: int = 1

        return [Data(2, ["a"]), Frozen(3), Attrs(4), Model(x=5)]

    def make_tuples(self) -> list[Any]:
        class Point(NamedTuple):
            a: int
            b: int = 2

            def total(self) -> int:
                return self.a + self.b

        Pair = namedtuple("Pair", "p q")  # noqa: PYI024  a kind of its own

        class Options(typing.TypedDict, total=False):
            a: int

        return [Point(1), Pair(1, 2), Options]

    def make_abstract(self) -> list[Any]:
        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self) -> int: ...

            @classmethod
            def register(cls, *_: Any) -> Any:  # its own, which is no registration
                raise AssertionError

        class Square(Shape):
            def area(self) -> int:
                return 4

        class Virtual: ...

        abc.ABCMeta.register(Shape, Virtual)

        @typing.runtime_checkable
        class HasArea(Protocol):
            def area(self) -> int: ...

        return [Square(), Virtual(), HasArea]

    def make_registered(self) -> list[Any]:
        log = self.log

        class Meta(type):
            def __init__(cls, *args: Any, **_: Any) -> None:
                super().__init__(*args)
                log.append(f"{cls.__name__} by its metaclass")

            def __new__(cls, *args: Any, **_: Any) -> Any:
                return super().__new__(cls, *args)

        class First(metaclass=Meta): ...

        class Second(First, tag=1): ...

        class Plugin:
            known: typing.ClassVar[dict[str, type]] = {}

            def __init_subclass__(cls, *, key: str, **rest: Any) -> None:
                super().__init_subclass__(**rest)
                assert key not in Plugin.known
                Plugin.known[key] = cls
                log.append(f"{key} by its base")

        class Child(Plugin, key="child"): ...

        class Grandchild(Child, key="grandchild"): ...

        return [First(), Second(), Child(), Grandchild()]

    def make_enums(self) -> list[Any]:
        class Color(enum.Enum):
            RED = 1
            BLUE = 2
            AZURE = 2  # noqa: PIE796  another name of it

        class Planet(enum.Enum):
            EARTH = (5.0, 6.0)
            MARS = (1.0, 2.0)

            def __init__(self, mass: float, radius: float) -> None:
                self.mass, self.radius = mass, radius

        class Right(enum.Flag):
            READ = 1
            WRITE = 2
            BOTH = 3

        class Level(enum.IntEnum):
            LOW = 1

        return [Color.AZURE, Planet.MARS, Right.BOTH, Right.READ, Level.LOW]

    def make_generic(self) -> list[Any]:
        class Box(Generic[T]):
            def __init__(self, content: T) -> None:
                self.content = content

        class IntBox(Box[int]): ...

        return [Box("a"), IntBox(4)]

    def make_slots(self) -> list[Any]:
        class Slots:
            __slots__ = ("__hidden", "a")

            def __init__(self) -> None:
                self.a, self.__hidden = 1, 2

            def hidden(self) -> int:
                return self.__hidden

        class More(Slots):
            __slots__ = ("c",)

        return [Slots(), More()]

    def make_arrays(self) -> list[Any]:
        class Metres(np.ndarray):
            unit = "m"

        return [np.arange(3.0).view(Metres)]


def told(value: Any) -> list[Any]:
    """What can be told of an instance; the same wherever its class is the same."""
    cls = value if isinstance(value, type) else type(value)
    found: list[Any] = [
        cls.__qualname__,
        cls.__module__,
        [base.__qualname__ for base in cls.__mro__],
    ]
    # What Python notes in a class while it is used is not sent.
    noted = {"__slotnames__", *(["__annotations__"] * (not cls.__annotations__))}
    noted.add("__annotate_func__")  # cloudpickle sends its results, the annotations
    found.append(sorted(set(dir(cls)) - noted))
    for name in ("area", "total", "hidden", "unit", "mass", "known", "name", "x", "model_dump"):
        part = getattr(value, name, None)
        if isinstance(value, type) or part is None:
            continue
        found.append(sorted(part) if isinstance(part, dict) else part() if callable(part) else part)
    if isinstance(value, enum.Enum):
        found.append({name: member.value for name, member in type(value).__members__.items()})
    if isinstance(cls, abc.ABCMeta):
        found.append(sorted(each.__name__ for each in abc._get_dump(cls)[0] if each is not None))  # type: ignore[attr-defined]
    try:
        value.undeclared = 1
        del value.undeclared
    except (AttributeError, TypeError, ValueError) as error:
        found.append(type(error).__name__)
    return found


def test_class_of_every_kind_is_in_a_task_what_it_is_here(backend: str) -> None:
    """Names, bases, attributes, members, slots: a task finds what the caller would."""
    values = Kinds().values
    wanted = list(map(told, values))
    for value, here, there in zip(values, wanted, on(backend, told).map(values), strict=True):
        assert here == there, value


def test_class_of_every_kind_is_found_and_not_written(backend: str) -> None:
    """What comes back, in whatever way, is of the very class, which has all it had and no more."""
    kinds = Kinds()
    mine = {cls for v in kinds.values for cls in (v if isinstance(v, type) else type(v)).__mro__}
    mine = {cls for cls in mine if "<locals>" in cls.__qualname__}
    list(map(told, kinds.values))  # what looking at a class adds to it
    before, log = {cls: dict(vars(cls)) for cls in mine}, copy.copy(kinds.log)

    found = on(backend, lambda x: x).map(kinds.values)
    found += [on(backend, _of_shared).map([0], value=value)[0] for value in kinds.values]
    for value in kinds.values:
        with share(value) as handle:
            found.append(handle.value)
    for value, back in zip(kinds.values * 3, found, strict=True):
        assert type(back) is type(value)
        assert back is value or not isinstance(value, (enum.Enum, type))
    assert log == kinds.log  # no class was registered again
    for cls, attributes in before.items():
        now = {name: value for name, value in vars(cls).items() if name != "__slotnames__"}
        attributes.pop("__slotnames__", None)
        assert attributes.keys() == now.keys(), cls
        assert all(now[name] is value for name, value in attributes.items()), cls


def _of_shared(_: int, value: Shared[Any]) -> Any:
    return value


def test_registries_of_the_script_have_each_class_once_in_workers(backend: str) -> None:
    """Registries come along as the caller has them; making a class again adds nothing."""
    kinds = Kinds()
    log = kinds.log
    again = [value for value in kinds.values for _ in range(2)]
    assert [kinds.log] * len(again) == on(backend, lambda _: log).map(again)


def test_class_that_a_task_makes_comes_along(backend: str) -> None:
    """A class that only the worker had is made here; its instances are of one class."""

    def make(x: int) -> Any:
        class Made:
            factor = 3

            def value(self) -> int:
                return self.factor * x

        return Made(), Made()

    for x, (one, other) in enumerate(on(backend, make).map(range(3))):
        assert (3 * x, "Made") == (one.value(), type(one).__name__)
        assert type(one) is type(other)


def test_items_of_classes_that_nothing_else_holds(backend: str) -> None:
    """A class is there as long as its item is under way."""

    def items() -> Iterator[Any]:
        for x in range(6):
            yield type("Item", (), {"x": x})()

    found = on(backend, lambda item: item, chunksize=2).imap(items())
    assert list(range(6)) == [each.x for each in found]


def test_attribute_that_only_a_task_has_stays_there(backend: str) -> None:
    """What a task sets on a class needs no pickling, for the class does not come back."""
    if backend in ("serial", "thread"):
        pytest.skip("the task has the caller's own class")

    class Model:
        pass

    def fill(_: int) -> Any:
        Model.cache = (0 for _ in range(2))  # type: ignore[attr-defined]
        return Model()

    assert [Model] * 3 == [type(each) for each in on(backend, fill).map(range(3))]
    assert not hasattr(Model, "cache")


def test_class_is_written_once_for_all_instances() -> None:
    """Ten thousand instances take the place of their numbers, not of ten thousand classes."""

    class Small:
        def __init__(self, x: int) -> None:
            self.x = x

    one = len(codec.encode([Small(0)]).head)
    many = len(codec.encode([Small(x) for x in range(10_000)]).head)
    assert many < one + 10_000 * 20


def test_classes_that_were_built_are_let_go() -> None:
    """Nothing of ours keeps a class that its program has dropped."""

    def encoded() -> bytes:
        class Local:
            kept = np.ones(3)

            def me(self) -> Any:
                return __class__  # type: ignore[name-defined]

        return codec.encode_inband(Local())

    head = encoded()
    gc.collect()
    before = len(classes._built)
    built = codec.decode(head)
    assert classes.is_built(type(built))
    assert type(built) is type(built).me(built)
    assert before + 1 == len(classes._built)
    del built
    gc.collect()
    assert before == len(classes._built)


def test_class_of_a_module_whose_base_wants_keywords(tmp_path: Any, run: Run) -> None:
    """A base in a module is told of the class in each process, unless it wants keywords."""
    (tmp_path / "lib.py").write_text(
        "known = []\n"
        "class Plain:\n"
        "    def __init_subclass__(cls): known.append(cls.__name__)\n"
        "class Keyed:\n"
        "    def __init_subclass__(cls, *, key): cls.key = key\n"
    )
    out = run(
        """
import lib
from sharedtask import parallel

class A(lib.Plain): pass
class B(lib.Keyed, key=3): pass

if __name__ == "__main__":
    task = parallel(lambda x: (x, B.key, lib.known)).with_options(backend="process", workers=1)
    print([(type(x).__name__, *rest) for x, *rest in task.map([A(), B()])], lib.known)
"""
    )
    assert "[('A', 3, ['A']), ('B', 3, ['A'])] ['A']\n" == out


# --------------------------------------------------------------- workers follow the caller's class


class Followed:
    """A class with a base, and tasks that find it captured or in a shared instance."""

    def __init__(self, backend: str) -> None:
        class Base:
            rate = 1

        class Model(Base):
            def cost(self) -> int:
                return 1

        self.Model: Any = Model
        self.model = Model()
        self.captures = on(backend, lambda x: (Model.rate, Model().cost())[x])
        self.captures_too = on(backend, lambda x: [Model.rate, Model().cost()][x])
        self.shares = on(backend, _rate_and_cost)

    def found(self) -> list[int]:
        """Rate and cost, which all tasks agree about."""
        one = self.captures.map(range(2))
        assert one == self.captures_too.map(range(2))
        assert one == self.shares.map(range(2), model=self.model)
        result: list[int] = one
        return result


def _rate_and_cost(x: int, model: Shared[Any]) -> int:
    found: int = [model.rate, model.cost()][x]
    return found


def test_attribute_that_is_taken_away_is_gone_in_workers(backend: str) -> None:
    """A deleted attribute of a class shows that of its base, captured and shared alike."""
    each = Followed(backend)
    for _ in range(2):
        each.Model.rate = 5
        assert [5, 1] == each.found()
        del each.Model.rate
        assert [1, 1] == each.found()


def test_class_with_other_bases_and_names_has_them_in_workers(backend: str) -> None:
    """A class whose bases and names are set has the new ones in workers that know it."""

    class First:
        def text(self) -> str:
            return "first"

    class Second:
        def text(self) -> str:
            return "second"

    class Made(First):
        pass

    task = on(backend, lambda _: (Made().text(), Made.__name__, len(Made.__mro__)), chunksize=1)
    assert {("first", "Made", 3)} == set(task.map(range(4)))
    Made.__bases__, Made.__name__ = (Second,), "Other"
    assert {("second", "Other", 3)} == set(task.map(range(4)))
    Made.__bases__, Made.__name__ = (First, Second), "Made"
    assert {("first", "Made", 4)} == set(task.map(range(4)))


def test_bases_that_python_refuses() -> None:
    """A new class keeps those that its metaclass has chosen; of a known one it is told."""

    class Model:
        pass

    head = (int,), "Model", Model.__qualname__
    classes._apply_head(Model, head, is_new=True)
    assert (object,) == Model.__bases__
    with pytest.raises(TypeError, match="__bases__"):
        classes._apply_head(Model, head, is_new=False)


def test_patch_that_is_undone_is_undone_in_workers(backend: str) -> None:
    """Attributes and methods are patched in workers while they are patched here."""
    each = Followed(backend)
    for _ in range(2):
        with mock.patch.object(each.Model, "cost", lambda _: 10):  # noqa: PT008  a mock has no pickle
            assert [1, 10] == each.found()
        with mock.patch.object(each.Model, "rate", 7, create=True):
            assert [7, 1] == each.found()
        assert [1, 1] == each.found()


def test_class_as_another_task_had_it_is_not_left_behind(backend: str) -> None:
    """A task that is unchanged finds its class as it is, whatever other tasks saw meanwhile."""
    each = Followed(backend)
    assert [1, 1] == each.found()
    each.Model.rate = 5
    assert [5, 1] == each.captures_too.map(range(2))
    del each.Model.rate
    assert [1, 1] == each.captures.map(range(2))
    each.Model.rate = 5
    assert [5, 1] == each.shares.map(range(2), model=each.model)
    del each.Model.rate
    assert [1, 1] == each.captures_too.map(range(2))


def test_handle_brings_no_older_class_to_a_function(backend: str) -> None:
    """The class of a function is as it is now, also where a handle was made before it changed."""
    each = Followed(backend)
    Model = each.Model
    task = on(backend, lambda _, model: (Model.rate, model.rate), shared=["model"])
    Model.rate = 5
    with share(each.model) as handle:
        assert [(5, 5)] == task.map([0], model=handle)
        del Model.rate
        assert [(1, 1)] == task.map([0], model=handle)
        assert [(1, 1)] == task.map([0], model=handle)


def test_class_that_changes_while_items_travel(backend: str) -> None:
    """Items bring their class as it is when they leave; the next call has it as it is then."""

    class Item:
        scale = 1

    def items() -> Iterator[Any]:
        for scale in range(4):
            Item.scale = scale
            yield Item()

    task = on(backend, lambda item: item.scale >= 0, chunksize=1)
    assert [True] * 4 == list(task.imap(items()))
    del Item.scale
    with pytest.raises(AttributeError):
        task.map([Item()])


@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
def test_sentinel_of_a_class_is_the_one_in_a_shared_value(backend: str) -> None:
    """A shared value and its class refer to the same objects, at each call."""

    class Node:
        end: Any = None
        next: Any = None

    Node.end = Node()
    first = Node()
    first.next = Node.end
    task = on(backend, lambda _, node: node.next is Node.end, shared=["node"])
    for _ in range(3):
        assert [True, True] == task.map(range(2), node=first)


def test_class_beside_a_large_array_that_is_captured(backend: str) -> None:
    """The array is decoded by itself while the function with the class is: both arrive."""

    class Own:
        factor = 1

    held: Any = {"table": np.zeros(500_000), "own": Own()}
    task = on(backend, lambda x: (x * held["own"].factor, float(held["table"][-1])))
    for n in range(3):
        Own.factor = held["table"][-1] = n
        assert [(0, n), (n, n)] == task.map(range(2))


# --------------------------------------------------------------------- whose class it is

OWNER = """
import multiprocessing, os, sys
from sharedtask import Shared, parallel, share

class Run:
    done = 0

def simulate(x, model: Shared[Run]):
    assert type(model) is Run
    return model

def count():
    Run.done = 0
    for run in parallel(simulate).with_options(backend="process", chunksize=1).imap(
        range(4), model=Run()
    ):
        assert type(run) is Run
        Run.done += 1
    return Run.done
"""


def test_script_and_its_children_own_their_classes(run: Run) -> None:
    """A forked child owns the classes of its parent, a spawned one those of the script it ran."""
    out = run(
        OWNER
        + """
def child(handle):
    assert type(handle.value) is Run
    return count()

if __name__ == "__main__":
    print(count(), flush=True)
    handle = share(Run())
    pid = os.fork()
    if not pid:
        print(child(handle), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    handle.close()
    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.apply(count))
"""
    )
    assert ["4"] * 4 == out.split()


def test_class_defined_anew_while_a_task_runs(run: Run) -> None:
    """What comes back is of the class that has the name now, as when a cell is run again."""
    out = run(
        """
import gc, os, time
from sharedtask import parallel

def define():
    exec("class Cell:\\n    pass", globals())

def make(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return Cell()

define()
future = parallel(make).with_options(backend="process").submit("go")
define()
gc.collect()
open("go", "w").close()
print(type(future.result()) is Cell)
"""
    )
    assert "True\n" == out


def test_named_value_brings_its_class_to_other_programs(run: Run) -> None:
    """A program that attaches has a class of its own, made of what came."""
    out = run(
        '''
import subprocess, sys
from sharedtask import share

class Model:
    rate = 3
    def cost(self, x):
        return self.rate * x

OTHER = """
from sharedtask import attach, parallel
with attach("model") as handle:
    print(handle.value.cost(2))
    print(parallel(lambda x, m: m.cost(x), shared=["m"]).map([1, 2], m=handle))
"""
with share(Model(), name="model"):
    print(subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True).stdout)
'''
    )
    assert "6\n[3, 6]\n\n" == out


CELLS = """
from sharedtask import ArgumentError, Shared, parallel

CLASS = '''
class Model:
    rate = {rate}
    def cost(self, x):
        return self.rate * x
'''
TASK = '''
@parallel(backend="process")
def cost(x, model: Shared[Model]):
    return model.cost(x), type(model) is Model
'''
def cell(text):
    exec(compile(text, "<cell>", "exec"), globals())
"""


def test_cell_of_a_class_is_run_again(run: Run) -> None:
    """A task takes values of the class that has the name now, also where its own cell is older."""
    out = run(
        CELLS
        + """
cell(CLASS.format(rate=2))
cell(TASK)
print(cost.map([1, 2], model=Model()))
cell(CLASS.format(rate=3))
model = Model()
print(cost.map([1, 2], model=model))
print(cost.map([1, 2], model=model))
"""
    )
    assert ["[(2, True), (4, True)]", *["[(3, True), (6, True)]"] * 2] == out.splitlines()


def test_value_of_an_older_class_is_refused(run: Run) -> None:
    """A value that was made before both cells were run again is to be made again."""
    out = run(
        CELLS
        + """
cell(CLASS.format(rate=2))
model = Model()
cell(CLASS.format(rate=3))
cell(TASK)
try:
    cost.map([1, 2], model=model)
except ArgumentError as error:
    print(error)
"""
    )
    assert "got an older class of that name; make the value again" in out
