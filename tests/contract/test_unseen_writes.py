"""A task that only writes to a variable of the caller is told that the caller does not see it."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from sharedtask import IncompleteValueWarning, parallel

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(60)

results: list[int] = []
seen: dict[int, Any] = {}
groups: defaultdict[int, list[int]] = defaultdict(list)
counts: Counter[int] = Counter()
total = 0
known: dict[int, int] = {}
connection: Any = None
_cache: dict[int, int] = {}


def append(x: int) -> int:
    results.append(x)
    return x


def assign(x: int) -> int:
    seen[x] = 1
    return x


def add_to_item(x: int) -> None:
    seen[x % 2] += x


def group(x: int) -> None:
    groups[x % 3].append(x)


def setdefault(x: int) -> None:
    seen.setdefault(x, []).append(x)


def update(x: int) -> None:
    counts.update([x])


def accumulate(x: int) -> None:
    global total
    total += x


def through_a_helper(x: int) -> int:
    append(x)
    return x


def closure() -> Callable[[int], None]:
    found: list[int] = []
    number = 0

    def collect(x: int) -> None:
        nonlocal number
        number += 1
        found.extend([x])

    return collect


to_results = lambda x: results.append(x)  # noqa: PLW0108

to_results = lambda x: results.append(x)  # noqa: PLW0108  as users write it


def inside(x: int) -> int:
    def add() -> None:
        results.append(x)

    add()
    return x


WRITE_ONLY: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "append": (lambda: append, ["results"]),
    "assign": (lambda: assign, ["seen"]),
    "add to an item": (lambda: add_to_item, ["seen"]),
    "group": (lambda: group, ["groups"]),
    "setdefault": (lambda: setdefault, ["seen"]),
    "update": (lambda: update, ["counts"]),
    "accumulate": (lambda: accumulate, ["total"]),
    "in a function inside": (lambda: inside, ["results"]),
    "through a helper": (lambda: through_a_helper, ["results"]),
    "closure": (closure, ["number", "found"]),
    "lambda": (lambda: to_results, ["results"]),
}


def memo(x: int) -> int:
    if x not in known:
        known[x] = x * x
    return known[x]


def memo_elsewhere(x: int) -> int:
    known.update({x: x})
    return memo(x)


def connect(_: int) -> Any:
    global connection
    if connection is None:
        connection = object()
    return 1


def hidden(x: int) -> None:
    _cache[x] = 1


def own(x: int) -> list[int]:
    results: list[int] = []
    results.append(x)
    return results


def length(x: int) -> int:
    results.append(x)
    return len(results)


def popped(x: int) -> int:
    results.append(x)
    return results.pop()


def parameter(x: int, seen: Any = None) -> int:
    seen = {}
    seen[x] = 1
    return x


def registered(x: int) -> None:
    results.append(x)


registered.__module__ = "another"


def through_another_module(x: int) -> int:
    registered(x)
    return x


NOT_ONLY = [
    through_another_module,
    memo,
    memo_elsewhere,
    connect,
    hidden,
    own,
    length,
    popped,
    parameter,
]


def told(backend: str, function: Any) -> list[str]:
    """The variables that the warnings of a call name."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        parallel(function).with_options(backend=backend, return_exceptions=True).map(range(3))  # type: ignore[arg-type]
    found = [w for w in shown if w.category is IncompleteValueWarning]
    assert all(w.filename == __file__ for w in found)
    return [str(w.message).split("'")[1] for w in found]


@pytest.fixture(params=["process", "ray"])
def elsewhere(request: pytest.FixtureRequest) -> str:
    """The backends whose workers have their own variables."""
    name: str = request.param
    if name == "ray":
        request.getfixturevalue("ray_runtime")
    return name


@pytest.mark.parametrize("how", WRITE_ONLY)
def test_results_that_vanish_are_told_of(elsewhere: str, how: str) -> None:
    """The warning names each variable, once for the function."""
    make, names = WRITE_ONLY[how]
    function = make()
    assert sorted(names) == sorted(told(elsewhere, function))
    assert [] == told(elsewhere, function)


@pytest.mark.parametrize("function", NOT_ONLY, ids=lambda f: f.__name__)
def test_caches_and_own_variables_are_not_told_of(function: Any) -> None:
    """A task that reads what it writes keeps it for later items of its worker."""
    assert [] == told("process", function)


def test_text_has_line_and_cure() -> None:
    """What to do is in the warning."""

    def collect(x: int) -> None:
        results.append(x)

    line = collect.__code__.co_firstlineno + 1
    with pytest.warns(IncompleteValueWarning, match=f"in line {line}.*Return.*Partitioned"):
        parallel(backend="process")(collect).map(range(3))


def test_error_is_raised_again() -> None:
    """Where warnings are errors, each call is one."""

    def collect(x: int) -> None:
        results.append(x)

    task = parallel(backend="process")(collect)
    for _ in range(2):
        with pytest.raises(IncompleteValueWarning):
            task.map(range(3))


@pytest.mark.parametrize("local", ["serial", "thread"])
def test_callers_own_variables_are_written(local: str) -> None:
    """In the caller's process nothing vanishes, and nothing is told."""
    results.clear()
    assert [] == told(local, append)
    assert [0, 1, 2] == sorted(results)


def test_code_without_source_is_left_alone() -> None:
    """What cannot be read is not judged."""
    namespace: dict[str, Any] = {"results": results, "__name__": "made"}
    exec("def collect(x):\n    results.append(x)\n", namespace)
    assert [] == told("process", namespace["collect"])
