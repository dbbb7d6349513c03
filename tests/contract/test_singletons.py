"""Objects that exist once: kept by the ``__new__`` of their class, or as an attribute of it."""

import abc
import inspect
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import IncompleteValueWarning, Shared, parallel
from sharedtask.serialization import class_states
from sharedtask.serialization.kinds import singletons


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singletons, "_warned", set[str]())


def on(backend: str, function: Any) -> Any:
    return parallel(function).with_options(backend=backend, workers=1)  # type: ignore[arg-type]


def singleton() -> Any:
    """A class with one object."""

    class Registry:
        one: Any = None
        seen = 0

        def __new__(cls) -> Any:
            if cls.one is None:
                cls.one = super().__new__(cls)
            return cls.one

    return Registry


@pytest.mark.filterwarnings("ignore:a result has the one object")
def test_result_does_not_write_the_one_object_of_the_caller(backend: str) -> None:
    """A result that holds the one object of its class leaves the caller's as it is."""
    cls = singleton()
    for result in on(backend, lambda _: cls()).with_options(chunksize=1).imap(range(10)):
        assert cls() is result
        cls().seen += 1
    assert {"seen": 10} == vars(cls())


def test_worker_has_the_one_object_as_the_caller_has_it_now(backend: str) -> None:
    """A change of the one object between two calls is seen, whatever workers have of it."""
    cls = singleton()

    def look(_: int, one: Shared[Any]) -> tuple[int, float]:
        return one.seen, float(one.table.sum())

    cls().seen, cls().table = 1, np.zeros(3)
    task = on(backend, look)
    assert [(1, 0.0)] == task.map([0], one=cls())
    cls().seen, cls().table[0] = 2, 4.0
    assert [(2, 4.0)] == task.map([0], one=cls())
    assert cls().table.flags.writeable


def test_handle_does_not_write_it() -> None:
    """The value of a handle is the one object, with what it has now."""
    cls = singleton()
    cls().seen = 1
    with sharedtask.share(cls()) as handle:
        cls().seen = 2
        assert handle.value is cls()
    assert {"seen": 2} == vars(cls())


@pytest.mark.filterwarnings("ignore:a result has the one object")
def test_items_of_a_dict_are_left_as_well(backend: str) -> None:
    """The one object may be a dict, kept in a table of its class."""

    class Table(dict[str, int]):
        made: dict[str, Any] = {}  # noqa: RUF012  a class as users write it

        def __new__(cls) -> Any:
            return cls.made.setdefault("one", super().__new__(cls))

    Table()["x"] = 0
    for result in on(backend, lambda _: Table()).with_options(chunksize=1).imap(range(10)):
        assert Table() is result
        result["x"] += 1
    assert {"x": 10} == Table()


def test_change_in_a_worker_is_told_and_dropped() -> None:
    """Where a task has changed the one object, the caller is told that this is lost."""
    cls = singleton()

    def change(_: int) -> Any:
        cls().seen = 7
        return cls()

    with pytest.warns(IncompleteValueWarning, match=r"the one object of class .*Registry"):
        assert [cls()] == on("process", change).map([0])
    assert {} == vars(cls())


def test_object_that_is_new_each_time_has_its_state(backend: str) -> None:
    """A ``__new__`` that makes an object each time changes nothing."""

    class Point:
        def __new__(cls, *_: int) -> Any:
            made: Any = super().__new__(cls)
            made.x = 1
            return made

    point: Any = Point()
    point.x, point.itself = 7, point
    (result,) = on(backend, lambda _: point).map([0])
    assert (7, True) == (result.x, result.itself is result)


def test_object_that_its_class_keeps_is_the_one(backend: str) -> None:
    """A sentinel that is an attribute of its class is found by ``is``, there and back."""

    class Missing:
        value: Any = None

    class Slotted:
        __slots__ = ()
        one: Any = None

    def look(item: Any, given: Any, held: Shared[Any]) -> Any:
        return [each is Missing.value for each in (item, given, held["in"])]

    Missing.value, Slotted.one = Missing(), Slotted()
    task = on(backend, look)
    assert [[True] * 3] == task.map([Missing.value], Missing.value, held={"in": Missing.value})
    task = on(backend, lambda item: (item is Slotted.one, Missing.value, item))
    assert [(True, Missing.value, Slotted.one)] == task.map([Slotted.one])


def test_object_that_another_has_replaced_is_no_attribute(backend: str) -> None:
    """A sentinel that its class has exchanged is the former one, and is told from the new one."""

    class Missing:
        value: Any = None

    before = Missing.value = Missing()
    task = on(backend, lambda item: item is Missing.value)
    assert [True] == task.map([before])
    Missing.value = Missing()
    assert [False, True] == task.map([before, Missing.value])


def test_handle_made_before_its_class_changed_is_told_of() -> None:
    """Workers have the class of a handle's value as that was: a warning says what has changed."""

    class Model:
        rate = 1

        def cost(self) -> int:
            return self.rate

    def cost(_: int, model: Shared[Any]) -> int:
        return int(model.cost())

    task = on("process", cost)
    with sharedtask.share([Model()]) as unused, sharedtask.share(Model()) as handle:
        assert [1] == task.map([0], model=handle)
        Model.rate = 2
        with pytest.warns(IncompleteValueWarning, match="model .*Model as that was: 'rate' was"):
            assert [1] == task.map([0], model=handle)
        assert [1] == task.map([0], model=handle)
    assert unused.closed
    with sharedtask.share(Model()) as handle:
        assert [2] == task.map([0], model=handle)


def test_class_that_is_as_it_was_is_not_told_of() -> None:
    """What Python itself keeps in a class is no change, nor is one that was taken back."""

    class Model(abc.ABC):  # noqa: B024
        """A class with a registry."""

        rate = 1

    states = class_states.states_of([Model])
    isinstance(1, Model)
    Model.register(int)
    inspect.get_annotations(Model)
    Model.__doc__ = "another"
    Model.rate = 2
    assert (Model, "rate") == class_states.changed(states)
    Model.rate = 1
    assert class_states.changed(states) is None
    Model.method = lambda self: 1  # type: ignore[attr-defined]
    assert (Model, "method") == class_states.changed(states)
    del Model.method  # type: ignore[attr-defined]
    assert class_states.changed(states) is None
    del Model.rate
    assert (Model, "rate") == class_states.changed(states)
    assert class_states.changed(states, {id(Model)}) is None


def test_class_that_has_other_bases_is_told_of() -> None:
    """They are set like an attribute."""

    class First:
        pass

    class Second:
        pass

    class Model(First):
        def __call__(self) -> int:
            return 1

    states = class_states.states_of([Model])
    Model.__bases__ = (Second,)
    assert (Model, "__bases__") == class_states.changed(states)
    Model.__bases__ = (First,)
    assert class_states.changed(states) is None
    Model.__call__ = lambda self: 2  # type: ignore[method-assign]
    assert (Model, "__call__") == class_states.changed(states)
