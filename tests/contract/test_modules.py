"""Modules that no import finds: loaded by the path of a file, made by hand, or wanted by value."""

import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from sharedtask import Shared, parallel
from sharedtask.backends.worker import import_path
from sharedtask.serialization import modules

TEXT = """
from contextvars import ContextVar
LIMIT = 3
user = ContextVar("user", default="guest")
class Thing:
    def __init__(self, x):
        self.x = x
    def run(self, y):
        return self.x + y + LIMIT
def helper(x):
    return x + LIMIT
def task(x):
    return helper(x)
def told(x):
    return user.get()
"""


def by_path(path: Path, name: str, *, entered: bool = True) -> Any:
    """Load a module as the documentation of importlib says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEXT)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if entered:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def by_hand(path: Path, name: str, *, entered: bool = True) -> Any:
    """Make a module of a text."""
    del path
    module = types.ModuleType(name)
    if entered:
        sys.modules[name] = module
    exec(TEXT, vars(module))
    return module


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a module that is forgotten afterwards."""
    name = f"module_{os.urandom(4).hex()}"
    yield name
    for each in [each for each in sys.modules if each.startswith(name)]:
        del sys.modules[each]


@pytest.fixture(params=[by_path, by_hand])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """How a module is made."""
    made: Callable[..., Any] = request.param
    return made


def on(backend: str, function: Callable[..., Any], **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, **options)  # type: ignore[arg-type]


def through(module: Any) -> Callable[[int], Any]:
    """A function that has the module itself."""

    def run(x: int) -> Any:
        return module.task(x)

    return run


@pytest.mark.parametrize("entered", [True, False])
def test_everything_of_it_travels(
    backend: str, tmp_path: Path, name: str, make: Callable[..., Any], *, entered: bool
) -> None:
    """The task itself, functions, classes, instances, the module, as global, item, shared."""
    module = make(tmp_path / "plugin.py", name, entered=entered)
    cls, function = module.Thing, module.task

    def run(x: int, thing: Shared[Any]) -> tuple[Any, ...]:
        return module.task(x), function(x), cls(1).run(x), thing.run(x), cls(x)

    assert [4, 5] == on(backend, module.task).map([1, 2])
    *found, made = on(backend, run).map([1], thing=cls(2))[0]
    assert [4, 4, 5, 6] == found
    assert type(made) is cls
    assert [5] == on(backend, lambda thing: thing.run(1)).map([cls(1)])


def test_global_of_it_that_was_set(
    backend: str, tmp_path: Path, name: str, make: Callable[..., Any]
) -> None:
    """What the program sets in the task's own module is so in workers."""
    module = make(tmp_path / "plugin.py", name)
    task = on(backend, module.task)
    assert [4] == task.map([1])
    module.LIMIT = 100
    assert [101] == task.map([1])


def test_context_variable_of_it(
    backend: str, tmp_path: Path, name: str, make: Callable[..., Any]
) -> None:
    """A context variable of such a module is carried."""
    module = make(tmp_path / "plugin.py", name)
    token = module.user.set("me")
    try:
        assert ["me"] == on(backend, module.told).map([0])
    finally:
        module.user.reset(token)
    assert ["guest"] == on(backend, module.told).map([0])


def test_package_that_is_loaded_by_its_path(backend: str, tmp_path: Path, name: str) -> None:
    """A package below a name that no folder has; its modules are imported from its own folder."""
    package = by_path(tmp_path / "somewhere" / "__init__.py", f"{name}.plugins.first")
    assert [4] == on(backend, through(package)).map([1])


@pytest.mark.parametrize("other", [True, False])
def test_module_that_is_loaded_anew(
    backend: str, tmp_path: Path, name: str, *, other: bool
) -> None:
    """A file that was changed and loaded once more, or another file, is so in warm workers."""
    module = by_path(tmp_path / "plugin.py", name)
    assert [4] == on(backend, through(module)).map([1])
    path = tmp_path / ("second.py" if other else "plugin.py")
    path.write_text(TEXT.replace("LIMIT = 3", "LIMIT = 40"))
    os.utime(path, (1, 1))  # the time of a file is what its compiled form is known by
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [41] == on(backend, through(module)).map([1])


def test_module_that_the_user_wants_by_value(
    backend: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``register_pickle_by_value`` workers need no such module: the file may be gone."""
    (tmp_path / f"{name}.py").write_text(TEXT)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        module: Any = importlib.import_module(name)
    task = on(backend, module.task)
    (tmp_path / f"{name}.py").unlink()
    cloudpickle.register_pickle_by_value(module)
    try:
        assert [4] == task.map([1])
        assert [4] == on(backend, through(module)).map([1])
        assert [5] == on(backend, lambda thing: thing.run(1)).map([module.Thing(1)])
        module.LIMIT = 50
        assert [51] == task.map([1])
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_module_that_the_user_wants_by_value_later(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that has travelled by name does so no longer, and then again."""
    (tmp_path / f"{name}.py").write_text(TEXT.replace("return helper(x)", "return __name__, x"))
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = importlib.import_module(name)
    task = on("process", lambda x: (module.task(x), module.task.__module__))
    assert [((name, 1), name)] == task.map([1])
    cloudpickle.register_pickle_by_value(module)
    try:
        assert [((name, 1), name)] == task.map([1])
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_modules_of_libraries_are_imported() -> None:
    """Neither second names of modules, nor what C code has made, count as the program's own."""
    for each in ("pandas", "ray", "scipy.stats"):
        importlib.import_module(each)
    import_path.read()
    assert [] == [name for name, module in sys.modules.items() if modules.is_made_by_hand(module)]
    found = [pin.name for pin in import_path.read()[1]]
    assert [] == [each for each in found if each.split(".")[0] in ("pandas", "ray", "scipy")]
