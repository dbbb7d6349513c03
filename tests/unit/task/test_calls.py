"""What a warm call costs its thread in calls of Python functions, on a busy machine as well.

Which functions these are is printed where there are more of them.
"""

import contextvars
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import Shared, parallel
from sharedtask.backends.process.event_loop import Loop

SOURCES = Path(sharedtask.__file__).parent

MODEL = {"weights": np.ones((100, 1024))}


@parallel(backend="process", workers=1, chunksize=100)
def classify(number: int, model: Shared[dict[str, Any]], threshold: float = 0.5) -> bool:
    return bool(model["weights"][number].mean() > threshold)


@parallel(backend="process", workers=1)
def double(number: int) -> int:
    return 2 * number


def map_with_model() -> None:
    classify.map(range(100), model=MODEL)


def map_nothing() -> None:
    double.map([])


def submit() -> None:
    double.submit(1).result()


# Once for each module and variable that other tests have left in this process.
FOR_EACH_LEFT = {
    "backends/worker/context_variables.py: _is_left_out",
    "backends/worker/import_path.py: _spec_of",
    "backends/worker/import_path.py: read.<locals>.<genexpr>",
    "backends/worker/settings.py: _umask_seen",
    "(process.py): BaseProcess.authkey",
    "(process.py): current_process",
}


class Calls:
    """Counts the calls in this thread, but for turns of the loop: their number is up to chance."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._turns = 0

    def __call__(self, frame: FrameType, event: str, _arg: object) -> None:
        code = frame.f_code
        if code is Loop._turn.__code__:
            self._turns += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not self._turns and code.co_filename != __file__:
            file = Path(code.co_filename)
            where = file.relative_to(SOURCES) if file.is_relative_to(SOURCES) else f"({file.name})"
            name = f"{where}: {code.co_qualname}"
            self.found[name] += name not in FOR_EACH_LEFT


def calls_of(call: Callable[[], None]) -> Counter[str]:
    counted = Calls()
    sys.setprofile(counted)
    try:
        contextvars.Context().run(call)  # without variables that other tests have set
    finally:
        sys.setprofile(None)
    return counted.found


@pytest.mark.parametrize(
    ("call", "most"), [(map_with_model, 251), (map_nothing, 130), (submit, 138)]
)
def test_warm_call_makes_few_calls(call: Callable[[], None], most: int) -> None:
    """A warm call does not look twice at what it knows."""
    for _ in range(10):
        contextvars.Context().run(call)
    found = min((calls_of(call) for _ in range(5)), key=Counter.total)
    listed = "\n".join(f"{count:3} {name}" for name, count in found.most_common())
    assert found.total() <= most, f"{found.total()} calls:\n{listed}"


def modules_of(call: Callable[[], None]) -> set[str]:
    """The modules of ours that a warm call enters."""
    for _ in range(10):
        contextvars.Context().run(call)
    found = min((calls_of(call) for _ in range(5)), key=lambda found: len(modules_in(found)))
    return modules_in(found)


def modules_in(found: Counter[str]) -> set[str]:
    return {module for name in found if not (module := name.split(":")[0]).startswith(("(", "<"))}


@pytest.mark.parametrize(("call", "most"), [(map_with_model, 53), (submit, 40)])
def test_warm_call_enters_few_modules(call: Callable[[], None], most: int) -> None:
    """It can be followed without meeting a feature that it does not use."""
    found = modules_of(call)
    assert len(found) <= most, "\n".join(sorted(found))


@pytest.mark.parametrize("call", [map_with_model, map_nothing, submit])
@pytest.mark.parametrize("wing", ["writing", "task/journal", "explaining"])
def test_plain_call_enters_no_wing(call: Callable[[], None], wing: str) -> None:
    """What tasks write, results on disk and explanations are entered by those who use them."""
    assert (SOURCES / wing).is_dir()
    assert [] == [module for module in modules_of(call) if module.startswith(f"{wing}/")]


OF_TRACES = (
    "tracing/",
    "backends/worker/chunk_clock.py",
    "backends/worker/inner_calls.py",
    "system/cpu_time.py",
)


def of_traces(found: Counter[str]) -> Counter[str]:
    """Those calls that only a traced call makes; the number of others may be up to the clock."""
    return Counter({name: n for name, n in found.items() if name.startswith(OF_TRACES)})


@pytest.mark.parametrize("call", [map_with_model, map_nothing, submit])
def test_closed_trace_leaves_no_calls(call: Callable[[], None]) -> None:
    """After a trace a call enters no function of it."""
    contextvars.Context().run(call)
    with sharedtask.trace():
        assert of_traces(calls_of(call))
    assert not of_traces(calls_of(call))


class WorkerCalls(Calls):
    """Counts the calls in a worker, from one item of a map to another."""

    def start(self) -> None:
        self.found.clear()
        sys.setprofile(self)

    def stop(self) -> Counter[str]:
        sys.setprofile(None)
        return self.found


COUNTED = WorkerCalls()


@parallel(backend="process", workers=1, chunksize=1)
def counted(number: int) -> Counter[str] | None:
    if number == 0:
        COUNTED.start()
    return COUNTED.stop() if number == 10 else None


def calls_of_worker() -> Counter[str]:
    """The calls that a worker makes for ten chunks."""
    return counted.map(range(11))[-1] or Counter()


def test_worker_makes_few_calls_for_a_trace() -> None:
    """A chunk costs a traced worker some calls, and none after the trace."""
    calls_of_worker()
    with sharedtask.trace():
        calls_of_worker()
        traced = min((of_traces(calls_of_worker()) for _ in range(3)), key=Counter.total)
    assert not of_traces(calls_of_worker())
    assert 10 * 10 < traced.total() <= 18 * 10, traced


@parallel(backend="serial", chunksize=1)
def single(number: int) -> int:
    return number


def calls_of_chunks(chunks: int) -> int:
    """The calls that a trace adds to a map of so many chunks."""

    def run() -> None:
        single.map(range(chunks))

    return of_traces(calls_of(run)).total()


def test_caller_makes_few_calls_for_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk costs a traced caller some calls, with those of the clock, which runs there too."""
    monkeypatch.setattr("sharedtask.tracing.recorder._SAMPLE_SECONDS", 1e9)  # up to the clock
    monkeypatch.setattr("sharedtask.backends.worker.chunk_clock._LOOK_NS", 1 << 60)
    calls_of_chunks(20)
    assert 0 == calls_of_chunks(20)
    with sharedtask.trace():
        calls_of_chunks(20)
        few, many = (min(calls_of_chunks(chunks) for _ in range(3)) for chunks in (20, 60))
    assert 10 * 40 < many - few <= 24 * 40, (many - few) / 40
