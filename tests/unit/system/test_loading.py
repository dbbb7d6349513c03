"""Modules that are loaded late: what interrupts such an import may call the library itself."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from budget import with_long

from sharedtask.system.loading import undisturbed

Run = Callable[..., str]

# Where a module of the library that is half executed imports another, ``interrupt`` is called.
HEAD = """\
import gc, os, signal, sys, tempfile
import numpy as np
import sharedtask

BACKEND, calls, failed, busy = sys.argv[1], [], [], []

class Midway:
    def find_spec(self, name, path=None, target=None):
        if any(half_executed(*each) for each in list(sys.modules.items())):
            interrupt()

def half_executed(name, module):
    spec = getattr(module, "__spec__", None)
    return name.startswith("sharedtask.") and getattr(spec, "_initializing", False)

sys.meta_path.insert(0, Midway())

def use_library(*_):
    if busy:
        return
    busy.append(1)
    try:
        task = sharedtask.parallel(backend=BACKEND, workers=2)(lambda x: x + 1)
        calls.append(task.map(range(3)))
    except BaseException as error:
        failed.append(repr(error))
    finally:
        busy.clear()

class Dropped:
    def __init__(self): self.itself = self
    def __del__(self): use_library()
"""

HANDLER = """
signal.signal(signal.SIGUSR1, use_library)

def interrupt():
    signal.raise_signal(signal.SIGUSR1)
"""

FINALIZER = """
gc.set_threshold(1, 1, 1)

def interrupt():
    Dropped()
    kept = [[] for _ in range(50)]
"""

FIRST_STEPS = """
from sharedtask import parallel

task = parallel(backend=BACKEND, workers=2)(lambda x: x + 1)
assert task.map(range(3)) == [1, 2, 3]
journal = os.path.join(tempfile.gettempdir(), f"loading-{os.getpid()}")
assert task.with_options(journal=journal).map(range(3)) == [1, 2, 3]
os.unlink(journal)
assert task.with_options(strict=True).map(range(3)) == [1, 2, 3]
task.explain()
sharedtask.shutdown()
print(failed, calls.count([1, 2, 3]) == len(calls) > 2)
"""


WAYS = {"handler": HANDLER, "finalizer": FINALIZER}


@pytest.mark.parametrize(
    ("way", "backend"),
    [
        *with_long(
            [(way, backend) for way in WAYS for backend in ("serial", "thread", "process")],
            *[(way, "serial") for way in WAYS],
        ),
        pytest.param("handler", "ray", marks=pytest.mark.long),
        # With a collection at every object, Ray takes half a minute.
        pytest.param("finalizer", "ray", marks=[pytest.mark.long, pytest.mark.besides]),
    ],
)
def test_first_calls_are_interrupted_by_others(run: Run, way: str, backend: str) -> None:
    """A handler or finalizer that uses the library finds no module of it half loaded."""
    assert "[] True" == run(HEAD + WAYS[way] + FIRST_STEPS, backend).splitlines()[-1]


# ------------------------------------------------------------------------------ the block


@pytest.fixture
def noted() -> Any:
    """The signals whose handler was called, with the frame that it was given."""
    found: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        found.append((number, frame))
        if number == signal.SIGUSR2:
            raise RuntimeError("by a handler")

    numbers = signal.SIGUSR1, signal.SIGUSR2
    old = [signal.signal(number, note) for number in numbers]
    yield found
    for number, handler in zip(numbers, old, strict=True):
        signal.signal(number, handler)


def test_handlers_run_after_the_block(noted: Any) -> None:
    """A signal's handler runs once, when the block has ended, and is in force again."""
    handler = signal.getsignal(signal.SIGUSR1)
    with undisturbed("not loaded yet"):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert [] == noted
    ((number, frame),) = noted
    assert signal.SIGUSR1 == number
    assert "test_handlers_run_after_the_block" == frame.f_code.co_name
    assert handler is signal.getsignal(signal.SIGUSR1)


def test_handler_that_raises_keeps_no_other_away(noted: Any) -> None:
    """What a handler raises is raised at the end of the block; the others have been called."""
    with (
        pytest.raises(RuntimeError, match="by a handler"),
        undisturbed("not loaded yet"),
    ):
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR1)
    assert [signal.SIGUSR2, signal.SIGUSR1] == [number for number, _ in noted]


def test_handler_that_the_module_installs_stays(noted: Any) -> None:
    """A module that is imported may have a handler of its own installed."""
    mine: Callable[..., Any] = lambda *_: None
    with undisturbed("not loaded yet"):
        signal.signal(signal.SIGUSR1, mine)
    assert mine is signal.getsignal(signal.SIGUSR1)


def test_block_for_a_loaded_module_defers_nothing(noted: Any) -> None:
    """Where the module is loaded there is nothing to keep away."""
    with undisturbed("signal"):
        signal.raise_signal(signal.SIGUSR1)
        assert [signal.SIGUSR1] == [number for number, _ in noted]
