"""What users of other libraries type by habit leads on, in one line."""

import copy
import itertools
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import pandas as pd
import pytest

import sharedtask
from sharedtask import ArgumentError, DefinitionError, HintWarning, OptionsError, parallel
from sharedtask.habits import OTHER_NAMES

pytestmark = pytest.mark.timeout(60)


@parallel(backend="serial")
def double(x: Any) -> Any:
    return 2 * x


@parallel(backend="serial")
def join(x: Any, y: Any = None) -> Any:
    return x, y


# Type checkers refuse most of these calls as well.
ANNOTATIONS: Any = sharedtask

WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "map of two": (
        lambda: double.map([1, 2], [3, 4]),  # type: ignore[call-arg]
        ArgumentError,
        r"too many positional arguments.*starmap\(zip\(a, b, strict=True\)\)",
    ),
    "named items": (
        lambda: double.map(x=range(3)),  # type: ignore[call-arg]
        ArgumentError,
        r"double\(\): the items are missing.*without a name.*double\.map\(items, other=value\)",
    ),
    "named pairs": (
        lambda: join.starmap(x=range(3)),  # type: ignore[call-arg]
        ArgumentError,
        "the items are missing",
    ),
    "calls": (
        lambda: parallel(double(i) for i in range(3)),  # type: ignore[call-overload]
        DefinitionError,
        r"only a function can be a task.*parallel\(f\).*task\.map\(items\)",
    ),
    "multiprocessing": (
        lambda: double.with_options(backend="multiprocessing"),  # type: ignore[arg-type]
        OptionsError,
        "Did you mean 'process'",
    ),
    "threading": (
        lambda: double.with_options(backend="threading"),  # type: ignore[arg-type]
        OptionsError,
        "Did you mean 'thread'",
    ),
    "Parallel": (lambda: sharedtask.Parallel, AttributeError, r"@sharedtask.parallel.*f\.map"),
    "delayed": (lambda: sharedtask.delayed, AttributeError, r"@sharedtask.parallel.*f\.starmap"),
    "Pool": (lambda: sharedtask.Pool, AttributeError, "no pool to open"),
    "Shared": (
        lambda: ANNOTATIONS.Shared({"a": 1}),
        TypeError,
        r"Shared annotates a parameter.*x: Shared\[T\].*f\.map\(items, x=value\).*share\(value\)",
    ),
    "Shared of a type": (
        lambda: ANNOTATIONS.Shared[dict](a=1),
        TypeError,
        "Shared annotates a parameter",
    ),
    "CopyOnWrite": (lambda: ANNOTATIONS.CopyOnWrite([1]), TypeError, "CopyOnWrite annotates"),
    "Partitioned": (lambda: ANNOTATIONS.Partitioned([1]), TypeError, "pass the array itself"),
    "Reduced": (lambda: ANNOTATIONS.Reduced([1]), TypeError, "pass the array itself"),
    "PerWorker": (
        lambda: ANNOTATIONS.PerWorker(open),
        TypeError,
        r"PerWorker annotates a parameter.*per_worker\(function, \*args\)",
    ),
    "Rng": (
        lambda: ANNOTATIONS.Rng(0),
        TypeError,
        "Rng annotates a parameter.*rng: Rng = per_item",
    ),
    "per_item": (lambda: ANNOTATIONS.per_item(), TypeError, "rng: Rng = per_item"),  # noqa: PLW0108
    "put": (lambda: sharedtask.put, AttributeError, r"Shared\[...\]"),
}


@pytest.mark.parametrize("habit", WRONG)
def test_habit_of_another_library_leads_on(habit: str) -> None:
    """The error names what to write here."""
    do, error, says = WRONG[habit]
    with pytest.raises(error, match=says):
        do()


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_import_of_another_librarys_name_leads_on(name: str) -> None:
    """`from sharedtask import Parallel` names what to write; `hasattr` stays False."""
    with pytest.raises(ImportError, match=re.escape(OTHER_NAMES[name])) as caught:
        exec(f"from sharedtask import {name}", {})
    assert name == caught.value.name
    assert not hasattr(sharedtask, name)


def test_import_of_an_unknown_name_fails_as_usual() -> None:
    """A name that no library has gives Python's own error."""
    with pytest.raises(ImportError, match="cannot import name 'parallell' from 'sharedtask' "):
        exec("from sharedtask import parallell", {})


FRAME = pd.DataFrame({"a": [1, 2, 3], "b": [4, 5, 6]})
HINTS: dict[str, tuple[Callable[[Any], Any], Any, str]] = {
    "dict": (lambda task: task.map({"a": 1}), [("a", None)], "keys of a dict, 1 of them.*items"),
    "frame": (
        lambda task: task.map(FRAME),
        [("a", None), ("b", None)],
        "columns of a DataFrame, 2 of them.*itertuples",
    ),
    "second": (
        lambda task: task.map([1, 2], [3, 4]),
        [(1, [3, 4]), (2, [3, 4])],
        r"every item gets the whole second collection.*starmap\(zip\(",
    ),
}


@pytest.mark.parametrize("name", HINTS)
def test_call_that_is_often_meant_otherwise_is_told_once(name: str) -> None:
    """The call gives what a loop gives; the hint comes at the user's line, once for a task."""
    call, results, says = HINTS[name]
    with pytest.warns(HintWarning, match=says) as told:
        assert results == call(join)
    assert __file__ == told[0].filename
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert results == call(join)


@pytest.mark.parametrize(
    "call",
    [
        lambda: join.map([1, 2], [3, 4, 5]),
        lambda: join.map([1, 2], y=[3, 4]),
        lambda: join.map([1, 2], "ab"),
        lambda: join.map(iter([1, 2]), [3, 4]),
    ],
)
def test_call_that_is_clear_gets_no_hint(call: Callable[[], Any]) -> None:
    """A second argument that cannot be a second collection of items is no reason for a hint."""
    assert 2 == len(call())


def test_bar_of_a_product_has_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    """A product, like the other finite iterators of itertools, is counted for the bar."""
    join.with_options(progress=True).starmap(itertools.product([1, 2], [3, 4]))
    assert "4/4" in capsys.readouterr().err


def test_stream_of_a_product_is_read_as_it_is_needed() -> None:
    """A stream takes no more of a product than it has room for."""
    stream = join.with_options(progress=True).imap(itertools.product(range(10), repeat=12))
    assert ((0,) * 12, None) == next(stream)
    stream.close()


@pytest.mark.parametrize("word", ["Shared", "CopyOnWrite", "Partitioned", "Reduced", "PerWorker"])
def test_annotation_is_what_typing_knows(word: str) -> None:
    """An annotation is an alias of Annotated: equal, hashed, united, copied and pickled as one."""
    annotation = getattr(sharedtask, word)
    plain = Annotated[int, annotation.__metadata__[0]]
    ours = annotation[int]
    for alias in (ours, copy.copy(ours), pickle.loads(pickle.dumps(ours))):
        assert (plain, hash(plain)) == (alias, hash(alias))
        assert Annotated is get_origin(alias)
    assert (plain, type(None)) == get_args(ours | None)
