"""A glance at a function sees each change that its state would show, and keeps nothing alive."""

import gc
import sys
import weakref
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from sharedtask.serialization import homes
from sharedtask.serialization.composition import same

SOURCE = '''
SCALE = 2
class Table: pass
TABLE = Table()

def task(x, y=1):
    """Its text."""
    return helper(x) * y + len([TABLE])

def helper(x):
    return x * SCALE

def by_keyword(x, *, y=1):
    return x + y

def counts(x):
    global SCALE
    SCALE = x

def other(x):
    return -x

def made():
    inside = 1
    def within(x):
        return x + inside
    return within
'''


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    made: Any = ModuleType("glanced")
    made.__spec__ = ModuleSpec("glanced", None)
    monkeypatch.setitem(sys.modules, "glanced", made)
    exec(SOURCE, vars(made))
    return made


def replace_code(module: Any) -> None:
    module.helper.__code__ = module.other.__code__


CHANGES: dict[str, Callable[[Any], object]] = {
    "a global": lambda module: setattr(module, "SCALE", 3),
    "an object": lambda module: setattr(module, "TABLE", module.Table()),
    "one that is gone": lambda module: delattr(module, "TABLE"),
    "a builtin": lambda module: setattr(module, "len", lambda _: 0),
    "a function that it calls": lambda module: setattr(module, "helper", module.other),
    "the code of that": replace_code,
    "a default": lambda module: setattr(module.task, "__defaults__", (2,)),
    "a default by keyword": lambda module: setattr(module.task, "__kwdefaults__", {"y": 2}),
    "an attribute": lambda module: setattr(module.helper, "extra", 1),
    "its text": lambda module: setattr(module.task, "__doc__", "Another."),
    "its name": lambda module: setattr(module.task, "__qualname__", "other"),
    "its module": lambda module: setattr(module.task, "__module__", "sys"),
    "a reload": lambda module: setattr(module, "__spec__", ModuleSpec("glanced", None)),
    "another module": lambda module: sys.modules.update(glanced=ModuleType("glanced")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_seen(module: Any, change: str) -> None:
    """Whatever the state of a function has in it."""
    glance, state = homes.glance_at(module.task), homes.state(module.task)
    assert glance is not None
    assert glance.holds()
    assert same(state, homes.state(module.task))
    CHANGES[change](module)
    assert not glance.holds()
    assert not same(state, homes.state(module.task))


@pytest.mark.parametrize("name", ["by_keyword", "counts"])
def test_functions_with_other_parts(module: Any, name: str) -> None:
    """They are looked at in full each time."""
    assert homes.glance_at(getattr(module, name)) is None


def test_closures(module: Any) -> None:
    """What they hold may be replaced without a trace in the function."""
    assert homes.glance_at(module.made()) is None


def test_nothing_is_kept_alive(module: Any) -> None:
    """Neither a function nor an object that a global had."""
    glance = homes.glance_at(module.task)
    gone = [weakref.ref(module.TABLE), weakref.ref(module.task), weakref.ref(module.helper)]
    vars(module).clear()
    gc.collect()
    assert [None] * 3 == [reference() for reference in gone]
    assert glance is not None
    assert not glance.holds()
