import asyncio
import io
import re
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import tqdm.auto

from sharedtask import defaults, parallel
from sharedtask.options import Options
from sharedtask.task import progress as progress_module
from sharedtask.testing import count_up

pytestmark = pytest.mark.timeout(60)


class Bar:
    """Replaces tqdm and keeps what it was told."""

    made: ClassVar[list["Bar"]] = []

    def __init__(self, **words: Any) -> None:
        self.words = words
        self.steps: list[tuple[float, int]] = []
        self.told: list[str] = []
        self.closed = 0
        Bar.made.append(self)

    def update(self, n: int = 1) -> None:
        self.steps.append((time.monotonic(), n))

    def set_postfix_str(self, s: str, refresh: bool) -> None:
        assert not refresh
        self.told.append(s)

    def close(self) -> None:
        self.closed += 1

    @property
    def count(self) -> int:
        return sum(n for _, n in self.steps)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """The bars that a test draws."""
    Bar.made = []
    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return Bar.made


def square(x: int) -> int:
    return x * x


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail_on_three(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x


def drain(results: Any) -> Any:
    async def gather() -> Any:
        if hasattr(results, "__await__"):
            return await results
        return [result async for result in results]

    if hasattr(results, "__aiter__") or hasattr(results, "__await__"):
        return asyncio.run(gather())
    return list(results)


METHODS = ["map", "imap", "imap_unordered", "amap", "aimap"]


@pytest.mark.parametrize("method", METHODS)
def test_bar_counts_items(backend: Any, method: str, bars: list[Bar]) -> None:
    """Every way to map counts every item once, of the whole number, and closes its bar."""
    task = parallel(square).with_options(backend=backend, progress=True)
    drain(getattr(task, method)(range(100)))
    (bar,) = bars
    assert (100, 100) == (bar.words["total"], bar.count)
    assert bar.closed


def test_starmap_counts_items(backend: Any, bars: list[Bar]) -> None:
    """``starmap`` counts too."""
    task = parallel(pow_).with_options(backend=backend, progress=True)
    task.starmap([(2, 3)] * 7)
    assert [7] == [bar.count for bar in bars]


def pow_(base: int, exponent: int) -> int:
    return int(base**exponent)


def test_total_is_unknown_for_a_generator(backend: Any, bars: list[Bar]) -> None:
    """A source without a length has a bar without a total."""
    task = parallel(square).with_options(backend=backend, progress=True)
    task.map(x for x in range(30))
    assert [(None, 30)] == [(bar.words["total"], bar.count) for bar in bars]


def test_description_alone_shows_the_bar(backend: Any, bars: list[Bar]) -> None:
    """``desc`` is shown, and means that a bar is wanted."""
    task = parallel(square).with_options(backend=backend, desc="squares")
    task.map(range(3))
    assert ["squares"] == [bar.words["desc"] for bar in bars]


def test_bar_has_the_name_of_the_task(backend: Any, bars: list[Bar]) -> None:
    """Without ``desc`` the bar shows which task runs."""
    parallel(square).with_options(backend=backend, progress=True).map(range(3))
    assert ["square"] == [bar.words["desc"] for bar in bars]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_bar_tells_the_workers_that_are_busy(kind: Any, bars: list[Bar]) -> None:
    """Each time that items are counted it says how many workers have a chunk; at the end none."""
    parallel(square).with_options(backend=kind, workers=2, chunksize=1, progress=True).map(
        range(20)
    )
    (bar,) = bars
    assert "2 of 2 workers busy" == bar.told[0]
    assert "0 of 2 workers busy" == bar.told[-1]
    assert len(bar.steps) == len(bar.told)


def test_no_bar_unless_asked(backend: Any, bars: list[Bar]) -> None:
    """Without the option nothing is drawn; ``defaults`` can ask for it."""
    task = parallel(square).with_options(backend=backend)
    task.map(range(3))
    assert [] == bars
    with defaults(progress=True):
        task.map(range(3))
    assert [3] == [bar.count for bar in bars]


@pytest.mark.parametrize("returns", [False, True])
def test_bar_of_a_map_with_an_error(backend: Any, returns: bool, bars: list[Bar]) -> None:
    """A bar is closed when its map fails; errors that stand in the results count as items."""
    task = parallel(fail_on_three).with_options(
        backend=backend,
        progress=True,
        return_exceptions=returns,
    )
    if returns:
        task.map(range(8))
        assert [8] == [bar.count for bar in bars]
    else:
        with pytest.raises(KeyError):
            task.map(range(8))
    assert all(bar.closed for bar in bars)


def test_retried_items_count_once(bars: list[Bar], tmp_path: Any) -> None:
    """An item that is tried again counts when it is done."""

    def fails_once(x: int) -> int:
        if count_up(tmp_path, x) == 1:
            raise KeyError(x)
        return x

    task = parallel(fails_once).with_options(backend="process", progress=True, retries=1)
    assert [0, 1, 2, 3] == task.map(range(4))
    assert [4] == [bar.count for bar in bars]


def test_bar_is_smooth_in_one_large_chunk(bars: list[Bar]) -> None:
    """A bar moves while one chunk of many slow items is under way."""
    task = parallel(nap).with_options(backend="process", workers=1, chunksize=50, progress=True)
    task.map([0.02] * 50)
    (bar,) = bars
    assert 50 == bar.count
    assert 10 <= len(bar.steps)
    times = [at for at, _ in bar.steps]
    assert 0.5 < times[-1] - times[0]


def test_bar_of_a_stream_that_was_left(bars: list[Bar]) -> None:
    """A stream that is left early closes its bar."""
    stream = parallel(square).with_options(backend="process", progress=True).imap(range(1000))
    next(stream)
    stream.close()
    assert [1] == [bar.closed for bar in bars]


def test_real_bar(backend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The bar itself is tqdm's on stderr and ends at the number of items; stdout stays clean."""
    task = parallel(square).with_options(backend=backend, desc="squares")
    task.map(range(57))
    captured = capsys.readouterr()
    assert "" == captured.out
    assert "squares" in captured.err
    assert "57/57" in captured.err
    assert "item/s" in captured.err


def test_bar_in_a_script(script: Callable[..., Any]) -> None:
    """In a program the bar stands on stderr, whole, with 100 % at its end."""
    ran = script(
        "from sharedtask import parallel\n"
        "print(sum(parallel(progress=True)(lambda x: x).map(range(1000))))\n"
    )
    assert 0 == ran.end()
    assert "499500\n" == ran.out
    assert re.search(r"100%.*1000/1000", ran.err)
    assert "Traceback" not in ran.err


def test_no_bar_is_no_import() -> None:
    """Without a bar the null object is used, which draws nothing."""
    bar = progress_module.open_bar(Options(), "square", 10)
    stream, sys.stderr = sys.stderr, io.StringIO()
    try:
        bar.update(3)
        bar.close()
        text = sys.stderr.getvalue()
    finally:
        sys.stderr = stream
    assert "" == text
