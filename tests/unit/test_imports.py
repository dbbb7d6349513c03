import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

import sharedtask

pytestmark = pytest.mark.timeout(60)

HEAVY = (
    "ray", "pandas", "torch", "scipy", "sklearn", "pyarrow", "polars", "matplotlib", "IPython",
    "joblib", "pytest", "hypothesis", "tqdm", "multiprocessing.pool", "concurrent.futures.process",
)  # fmt: skip


FIRST_STEPS = {
    "import": "import sharedtask",
    "star": "from sharedtask import *",
    "decorate": """
from sharedtask import parallel
@parallel
def f(x): return x
""",
    "thread": """
from sharedtask import parallel
parallel(backend='thread')(lambda x: x).map([1])
""",
    "process": """
from sharedtask import parallel
import numpy as np
parallel(shared=['t'])(lambda x, t: t[x]).map(range(3), t=np.ones(5))
""",
    # What the leak checks ask of every fresh worker.
    "belongings": "from sharedtask.testing.resources import Belongings; Belongings.now()",
}


def modules_after(code: str) -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(ran.stdout.split())


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_nothing_heavy_is_imported(name: str) -> None:
    """Neither the import nor a first map loads ray, pandas, torch and their like."""
    loaded = modules_after(FIRST_STEPS[name])
    assert set() == {name for name in HEAVY if name in loaded}


def test_pydantic_models_are_not_built() -> None:
    """The checks use pydantic's core; its model machinery, which is slow to load, stays out."""
    loaded = modules_after("from sharedtask import parallel\n@parallel\ndef f(x): return x")
    assert "pydantic.main" not in loaded


@pytest.mark.parametrize("name", ["decorate", "thread"])
def test_what_few_need_is_not_loaded(name: str) -> None:
    """Names of shared values, and what they need, come with the first name."""
    few = {"sharedtask.store.named", "sharedtask.store.name_registry", "secrets", "hmac", "json"}
    # wrapt loads json from Python 3.12 on: it asks importlib.metadata for entry points.
    few -= modules_after("import wrapt")
    assert set() == few & modules_after(FIRST_STEPS[name])


def test_import_alone_loads_no_numpy() -> None:
    """The names of the package are loaded when they are used."""
    loaded = modules_after("import sharedtask")
    assert {
        "sharedtask",
        "sharedtask.system",
        "sharedtask.system.interpreters",
        "sharedtask.system.loading",
        "sharedtask.version",
    } == {name for name in loaded if name.startswith("sharedtask")}


@pytest.mark.parametrize(
    "name", ["ray", "pandas", "scipy", "sklearn", "torch", "pytest", "hypothesis"]
)
def test_works_without(name: str) -> None:
    """Where an optional package is not installed, everything else works."""
    code = f"""
import sys
sys.modules[{name!r}] = None
from sharedtask import parallel
import numpy as np
assert parallel(shared=["t"])(lambda x, t: float(t[x])).map(range(3), t=np.ones(5)) == [1.0] * 3
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (0, "") == (ran.returncode, ran.stderr)


def test_ray_that_is_missing_says_how_to_get_it() -> None:
    """Without ray its backend is BackendUnavailableError, an ImportError, with the cure."""
    code = """
import sys
import sharedtask
sys.modules["ray"] = None  # what is not installed cannot be imported
try:
    sharedtask.parallel(backend="ray")(lambda x: x).map([1])
except sharedtask.BackendUnavailableError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert 'pip install "sharedtask[ray]"' in ran.stdout


def test_all_names_are_there() -> None:
    """Every name of ``__all__`` can be had, ``dir`` shows it, and there is no other public one."""
    for name in sharedtask.__all__:
        assert getattr(sharedtask, name) is not None
        assert name in dir(sharedtask)
    public = {
        name
        for name, value in vars(sharedtask).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public - {"import_module", "TYPE_CHECKING", "Any"} <= set(sharedtask.__all__)
    assert sorted(sharedtask.__all__) == list(sharedtask.__all__)


def test_stub_names_equal_all_names() -> None:
    """What type checkers are told is exported is what is exported."""
    source = inspect.getsource(sharedtask)
    told = {
        line.split(" as ")[1].strip()
        for line in source.splitlines()
        if line.startswith("    from ") and " as " in line
    }
    assert told == set(sharedtask.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not there is AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="no attribute 'paralel'"):
        sharedtask.paralel  # noqa: B018


def test_errors_are_exported() -> None:
    """Every error class of the error tree can be imported from the package."""
    from sharedtask import errors

    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.SharedTaskError):
            assert getattr(sharedtask, name) is value


def public_things() -> list[Any]:
    things = []
    for name in sharedtask.__all__:
        thing = getattr(sharedtask, name)
        things.append(pytest.param(thing, id=name))
        if inspect.isclass(thing) and thing.__module__.startswith("sharedtask"):
            for inner, value in inspect.getmembers(thing):
                if (
                    not inner.startswith("_")
                    and callable(value)
                    and "sharedtask" in str(getattr(value, "__module__", ""))
                ):
                    things.append(pytest.param(value, id=f"{name}.{inner}"))
    return things


@pytest.mark.parametrize("thing", public_things())
def test_public_names_have_docstrings(thing: Any) -> None:
    """What is public says what it does."""
    if type(thing).__module__ == "typing" or str(thing).startswith("typing."):
        pytest.skip("an alias of typing has typing's docstring")
    assert thing.__doc__
    assert thing.__doc__.strip()


def test_every_module_imports_and_says_what_it_is_for() -> None:
    """All modules can be imported on their own and have a docstring."""
    names = [
        info.name
        for info in pkgutil.walk_packages(sharedtask.__path__, "sharedtask.")
        if not info.name.endswith("__main__")
    ]
    assert "sharedtask.testing" in names
    for name in names:
        assert importlib.import_module(name).__doc__


def test_version() -> None:
    """The version is that of the installed package."""
    from importlib.metadata import version

    assert version("sharedtask") == sharedtask.__version__


def test_typed_marker() -> None:
    """Type checkers are told that the package is typed."""
    from importlib.resources import files

    assert files("sharedtask").joinpath("py.typed").is_file()
