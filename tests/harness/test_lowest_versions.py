"""The lowest versions: what ``make test-lowest`` installs is what ``pyproject.toml`` allows."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = "sharedtask"


def lowest_allowed() -> dict[str, tuple[int, ...]]:
    """The lower bounds of what the library needs, of its extras, and of what its tests use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [each for name in ("ray", "loky", "joblib", "test") for each in extras[name]]
    needed = [each.partition(";")[0] for each in (*project["dependencies"], *optional)]
    pairs = [re.split(">=", each) for each in needed if not each.startswith(OURS)]
    return {name: numbers(version) for name, version in pairs}


def numbers(version: str) -> tuple[int, ...]:
    """A version of three numbers."""
    given = tuple(map(int, version.split(".")))
    return (*given, *(0,) * (3 - len(given)))


def test_lowest_versions_are_those_of_the_project() -> None:
    """Each bound has its line in the constraints, with the same version."""
    lines = (ROOT / "tests" / "constraints-lowest.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    assert lowest_allowed() == {name: numbers(version) for name, version in pairs}
    assert sorted(pairs) == pairs


def test_versions_of_python_are_told_alike() -> None:
    """The classifiers begin with the lowest Python that may install the library."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = [c.rpartition(" ")[2] for c in project["classifiers"] if ":: 3." in c]
    assert project["requires-python"] == f">={told[0]}"
    assert sorted(told, key=numbers) == told
