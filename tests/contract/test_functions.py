import copy
import functools
import importlib
import inspect
import pickle
import subprocess
import sys
import textwrap
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from sharedtask import Shared, Task, parallel, shutdown

pytestmark = pytest.mark.timeout(60)

Run = Callable[..., str]


@parallel(backend="process")
def double(x: int) -> int:
    return 2 * x


@parallel(backend="process", shared=["table"])
def pick(x: int, table: Any) -> int:
    return int(table[x])


class House:
    rooms = 3

    @parallel(backend="process")
    def number(self, x: int) -> int:
        return self.rooms * x

    @parallel(backend="process")
    @staticmethod
    def plain(x: int) -> int:
        return x

    @parallel(backend="process")
    @classmethod
    def named(cls, x: int) -> str:
        return f"{cls.__name__}{x}"

    class Attic:
        """A class inside a class."""

        @parallel(backend="process")
        def deep(self, x: int) -> int:
            return -x


# ------------------------------------------------------------------------------- pickling

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "pickle 2": lambda t: pickle.loads(pickle.dumps(t, 2)),
    "cloudpickle": lambda t: pickle.loads(cloudpickle.dumps(t)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
def test_task_of_a_module_stays_itself(way: str) -> None:
    """A task of a module comes out of pickle and copy as the same object."""
    assert WAYS[way](double) is double
    assert WAYS[way](pick) is pick


@pytest.mark.parametrize("way", WAYS)
def test_task_with_options_keeps_them(way: str) -> None:
    """A task with other options keeps them, and its values, through pickle and copy."""
    again = WAYS[way](pick.with_options(return_exceptions=True, chunksize=1))
    results = again.map([0, 9], table=[5])
    assert 5 == results[0]
    assert isinstance(results[1], IndexError)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["lambda", "nested", "closure"])
def test_task_without_a_name(way: str, place: str) -> None:
    """A task that cannot be found by name is sent by value where the way allows it."""
    offset = 3

    def nested(x: int) -> int:
        return x + 1

    def closure(x: int) -> int:
        return x + offset

    function = {"lambda": lambda x: x + 2, "nested": nested, "closure": closure}[place]
    task = parallel(function).with_options(backend="process")
    if way.startswith("pickle"):
        with pytest.raises((pickle.PicklingError, AttributeError)):
            WAYS[way](task)
        return
    assert task.map(range(3)) == WAYS[way](task).map(range(3))


@pytest.mark.parametrize("way", WAYS)
def test_bound_task(way: str) -> None:
    """A task that was taken from an object keeps the object."""
    house = House()
    house.rooms = 5
    assert [0, 5, 10] == WAYS[way](house.number).map(range(3))
    assert [0, -1] == WAYS[way](House.Attic().deep).map(range(2))
    assert ["House0"] == WAYS[way](House.named).map([0])
    assert [0, 1] == WAYS[way](House.plain).map(range(2))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_task_travels_to_other_pools(method: str, run: Run, tmp_path: Path) -> None:
    """A task can be given to multiprocessing, and is the function there."""
    (tmp_path / "mine.py").write_text(
        "from sharedtask import parallel\n@parallel\ndef double(x):\n    return 2 * x\n"
    )
    out = run(
        f"""
import multiprocessing
from mine import double

if __name__ == "__main__":
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        print(pool.map(double, range(4)))
"""
    )
    assert "[0, 2, 4, 6]\n" == out


def test_task_looks_like_its_function() -> None:
    """Name, docstring, module and signature are those of the function."""

    @parallel
    def documented(x: int, *, rate: float = 0.5) -> float:
        """Says what it does."""
        return x * rate

    assert "documented" == documented.__name__
    assert "Says what it does." == documented.__doc__
    assert __name__ == documented.__module__
    assert "(x: int, *, rate: float = 0.5) -> float" == str(inspect.signature(documented))
    assert "documented" in repr(documented)
    assert 1.5 == documented(3)
    assert isinstance(documented, Task)
    assert callable(documented)


def test_function_under_a_task_is_reached_by_name() -> None:
    """A task that calls another task of its module gets that task, not a copy."""
    assert [0, 4] == parallel(calls_double).with_options(backend="process").map(range(2))


def calls_double(x: int) -> int:
    return double(x) + sum(double.map(range(2))) * x


# ------------------------------------------------------------------- code that changes


MODULE = """
from sharedtask import parallel

RATE = {rate}

def helper(x):
    return x * {factor}

@parallel(backend="process")
def task(x):
    return helper(x) + {offset}

@parallel(backend="process")
def rated(x):
    return x * RATE

TABLE = [{factor}]

class Rule:
    by = {factor}

@parallel(backend="process")
def looked_up(x):
    return x * TABLE[0]

@parallel(backend="process")
def ruled(x):
    return x * Rule.by
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module on disk that can be rewritten and reloaded."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "changing_module.py"

    class Module:
        def __init__(self) -> None:
            self.write(rate=2, factor=2, offset=0)
            self.module = importlib.import_module("changing_module")

        def write(self, **words: Any) -> None:
            path.write_text(MODULE.format(**words))

        def reload(self, **words: Any) -> Any:
            self.write(**words)
            self.module = importlib.reload(self.module)
            return self.module

    yield Module()
    sys.modules.pop("changing_module", None)
    shutdown()  # the workers know the module of this test's folder


def test_reloaded_module_runs_the_new_code(module: Any) -> None:
    """After ``importlib.reload`` the new function runs."""
    assert [0, 2] == module.module.task.map(range(2))
    assert [10, 12] == module.reload(rate=2, factor=2, offset=10).task.map(range(2))
    assert [20, 22] == module.reload(rate=2, factor=2, offset=20).task.map(range(2))


def test_reloaded_helper_runs_the_new_code(module: Any) -> None:
    """After ``importlib.reload`` a new helper runs, though the task itself is unchanged."""
    assert [0, 2] == module.module.task.map(range(2))
    assert [0, 3] == module.reload(rate=2, factor=3, offset=0).task.map(range(2))


def test_reloaded_constant_is_seen(module: Any) -> None:
    """After ``importlib.reload`` a new module constant is seen."""
    assert [0, 2] == module.module.rated.map(range(2))
    assert [0, 7] == module.reload(rate=7, factor=2, offset=0).rated.map(range(2))


def test_patched_function_of_a_module(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that replaced another one under its name is the one that runs."""

    def other(x: int) -> int:
        return -x

    other.__module__, other.__qualname__ = "changing_module", "task"
    assert [0, 2] == module.module.task.map(range(2))
    monkeypatch.setattr(module.module, "task", parallel(other).with_options(backend="process"))
    assert [0, -1] == module.module.task.map(range(2))


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [
        ("task", "helper", lambda x: 9 * x),
        ("looked_up", "TABLE", [9]),
        ("ruled", "Rule", type("Rule", (), {"by": 9})),
    ],
)
def test_patched_global_of_a_module_is_seen(
    module: Any, monkeypatch: pytest.MonkeyPatch, task: str, name: str, value: Any
) -> None:
    """What a function finds under a name in its module is what workers find, also afterwards."""
    mapped = getattr(module.module, task).map
    assert [0, 2] == mapped(range(2))
    monkeypatch.setattr(module.module, name, value)
    assert [0, 9] == mapped(range(2))
    monkeypatch.undo()
    assert [0, 2] == mapped(range(2))


def test_redefined_function_runs_the_new_code() -> None:
    """A nested function that is defined again between two maps is the new one."""
    results = []
    for factor in (1, 2, 3):

        @parallel(backend="process")
        def task(x: int, by: int = factor) -> int:
            return x * by

        results.append(task.map(range(3)))
    assert [[0, 1, 2], [0, 2, 4], [0, 3, 6]] == results


# ------------------------------------------------------------------------ where code lives

SCRIPT = """
import os, sys
with open(os.environ["COUNTER"], "a") as file:
    file.write("run\\n")

import numpy as np
from sharedtask import Shared, parallel

RATE = 3

def helper(x):
    return x * RATE

@parallel
def task(x, table: Shared[np.ndarray]):
    return helper(x) + int(table[x])

class Mine:
    def __init__(self, n):
        self.n = n
    def __eq__(self, other):
        return type(other) is Mine and other.n == self.n
    @parallel
    def times(self, x):
        return Mine(self.n * x)

class MyError(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code

@parallel
def fail(x):
    raise MyError(x, "text")

table = np.arange(10)
print(task.map(range(3), table=table))
print(Mine(2).times.map(range(3)) == [Mine(0), Mine(2), Mine(4)])
try:
    fail.map([5])
except MyError as error:
    print(error.code, error)

def helper(x):
    return x * 100
print(task.map(range(3), table=table))
RATE = 1

def helper(x):
    return x * RATE
print(task.map(range(3), table=table))
RATE = 2
print(task.map(range(3), table=table))

@parallel
def task(x, table: Shared[np.ndarray]):
    return -x
print(task.map(range(3), table=table))
print(parallel(lambda x: x + RATE).map(range(2)))
"""
PRINTED = """\
[0, 4, 8]
True
5 text
[0, 101, 202]
[0, 2, 4]
[0, 3, 6]
[0, -1, -2]
[2, 3]
"""


@pytest.mark.parametrize("how", ["file", "-c", "stdin"])
def test_functions_of_main(how: str, run: Run, tmp_path: Path) -> None:
    """A script, ``python -c`` and stdin work without a guard, run once, and see redefinitions."""
    counter = tmp_path / "counter"
    assert PRINTED == run(SCRIPT, how=how, COUNTER=str(counter))
    assert "run\n" == counter.read_text()


def test_script_in_a_package(tmp_path: Path) -> None:
    """``python -m package`` works, relative imports included, and runs once."""
    package = tmp_path / "package"
    package.mkdir()
    counter = tmp_path / "counter"
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("def helper(x):\n    return x + 1\n")
    (package / "__main__.py").write_text(
        textwrap.dedent(f"""
        from sharedtask import parallel
        from .parts import helper
        open({str(counter)!r}, "a").write("run\\n")

        @parallel
        def task(x):
            return helper(x)

        print(task.map(range(3)))
        """)
    )
    ran = subprocess.run(
        [sys.executable, "-m", "package"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ("[1, 2, 3]\n", "") == (ran.stdout, ran.stderr)
    assert "run\n" == counter.read_text()


def test_module_beside_the_script(run: Run, tmp_path: Path) -> None:
    """A module in the script's folder is imported by the workers too."""
    (tmp_path / "beside.py").write_text("def helper(x):\n    return x + 1\n")
    assert "[1, 2]\n" == run(
        "import beside\nfrom sharedtask import parallel\n"
        "print(parallel(beside.helper).map(range(2)))\n"
    )


def test_zip_application(tmp_path: Path) -> None:
    """A program inside a zip file works."""
    path = tmp_path / "app.pyz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("parts.py", "def helper(x):\n    return x + 1\n")
        file.writestr(
            "__main__.py",
            "from sharedtask import parallel\nfrom parts import helper\n"
            "print(parallel(helper).map(range(2)), parallel(lambda x: helper(x)).map(range(2)))\n",
        )
    ran = subprocess.run(
        [sys.executable, path], cwd="/", capture_output=True, text=True, check=False, timeout=30
    )
    assert ("[1, 2] [1, 2]\n", "") == (ran.stdout, ran.stderr)


def test_functions_of_an_interactive_session(tmp_path: Path) -> None:
    """Functions that are typed in, and typed in again, work."""
    code = """
from sharedtask import parallel
def helper(x): return x + 1

@parallel
def task(x): return helper(x)

print("ONE", task.map(range(3)))
def helper(x): return x + 5

print("TWO", task.map(range(3)))
"""
    ran = subprocess.run(
        [sys.executable, "-i", "-q"], input=code, capture_output=True, text=True, check=False,
        timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert "ONE [1, 2, 3]" in ran.stdout
    assert "TWO [5, 6, 7]" in ran.stdout
    assert "Traceback" not in ran.stderr


def test_functions_of_a_notebook() -> None:
    """Functions that were compiled from cells run, and run again when their cell is run again."""
    cells = types.ModuleType("__main__")
    saved = sys.modules["__main__"]
    sys.modules["__main__"] = cells
    try:
        cells.__dict__.update(parallel=parallel, __name__="__main__")
        first = "def helper(x):\n    return x + 1\n"
        second = "@parallel(backend='process')\ndef task(x):\n    return helper(x)\n"
        exec(compile(first, "<cell 1>", "exec"), cells.__dict__)
        exec(compile(second, "<cell 2>", "exec"), cells.__dict__)
        assert [1, 2] == cells.__dict__["task"].map(range(2))
        exec(compile(first.replace("1", "7"), "<cell 3>", "exec"), cells.__dict__)
        assert [7, 8] == cells.__dict__["task"].map(range(2))
    finally:
        sys.modules["__main__"] = saved


def test_large_global_of_main_is_not_sent_with_each_map(run: Run) -> None:
    """A function that uses a large global of the script works, and a changed one is seen."""
    assert "[0.0, 0.0] [0.0, 5.0]\n" == run(
        """
import numpy as np
from sharedtask import parallel
TABLE = np.zeros(1_000_000)
task = parallel(lambda x: float(TABLE[x]))
first = task.map([0, -1])
TABLE[-1] = 5
print(first, task.map([0, -1]))
"""
    )


def test_function_that_is_slow_to_import(run: Run, tmp_path: Path) -> None:
    """A module with import side effects is imported once in each worker, not per item."""
    (tmp_path / "slow.py").write_text(
        "import os\nwith open(os.environ['COUNTER'], 'a') as file:\n    file.write('x')\n"
        "def task(x):\n    return x\n"
    )
    counter = tmp_path / "counter"
    out = run(
        "import slow\nfrom sharedtask import parallel\n"
        "for _ in range(5):\n    parallel(slow.task).map(range(20))\nprint('OK')\n",
        COUNTER=str(counter),
    )
    assert "OK\n" == out
    assert 3 >= len(counter.read_text())  # here and in two workers


def test_worker_follows_the_folder_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module whose folder joined ``sys.path`` after the workers started is found."""
    assert [0, 2] == double.map(range(2))
    (tmp_path / "late_module.py").write_text("def task(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    late = importlib.import_module("late_module")
    try:
        assert [1, 2] == parallel(late.task).with_options(backend="process").map(range(2))
    finally:
        del sys.modules["late_module"]


def test_builtin_classes_of_a_result(run: Run) -> None:
    """Instances of a class of the script come back as that class, whatever the direction."""
    assert "True True\n" == run(
        """
from dataclasses import dataclass
from sharedtask import Shared, parallel

@dataclass
class Point:
    x: int
    y: int = 0

@parallel
def move(p, by: Shared[Point]):
    assert isinstance(p, Point) and isinstance(by, Point)
    return Point(p.x + by.x, p.y + by.y)

found = move.map([Point(1), Point(2)], by=Point(1, 1))
print(found == [Point(2, 1), Point(3, 1)], all(type(p) is Point for p in found))
"""
    )


def use(x: int, table: Shared[Any]) -> int:
    return int(table[x])


def test_partial_of_a_task_as_callback() -> None:
    """A task works where any function works: as a key, in map(), in partial()."""
    table = np.arange(5)
    assert [0, 1] == list(map(functools.partial(parallel(use), table=table), range(2)))
    assert [3, 2, 1] == sorted([1, 2, 3], key=parallel(lambda x: -x))
