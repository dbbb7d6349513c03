"""SIGINT at a chosen place of a call, as if it had arrived there by chance.

The interpreter runs signal handlers at a few kinds of places only: where a Python function begins,
where a loop jumps back, and where a call of something written in C has returned. All those that a
call comes by are listed first. Then the call is made again, once for each of them, and is told of a
SIGINT just before that place: the interpreter itself finds it there, and does what it does.
"""

import ctypes
import dis
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise, repeat
from types import CodeType, FrameType
from typing import Any

from sharedtask.system import interrupts

# From Python 3.12 on, code has its instructions traced from its second run on, from 3.14 on of
# those under the same trace function.
_RUNS = 1 if sys.version_info < (3, 12) else 2
_CHECKED = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD"}
_ENTRY = -1

# Tells the interpreter of a SIGINT. As a trace function that is written in C it does so without an
# instruction in between. What it returns is the trace function from then on.
_trip: Any = ctypes.PYFUNCTYPE(ctypes.c_long, *[ctypes.py_object] * 3)(
    ("PyErr_SetInterrupt", ctypes.pythonapi)
)


def _ignore(_frame: FrameType, _event: str, _arg: Any) -> None:
    pass


_trip.restype = defaultdict(repeat(_ignore).__next__).__getitem__


@dataclass(frozen=True)
class Place:
    """A code object, and the instruction before the one whose end is meant."""

    code: CodeType
    offset: int

    def __str__(self) -> str:
        lines = {o: line for o, _, line in _spans(self.code)}
        line = lines.get(self.offset, self.code.co_firstlineno)
        return f"{self.code.co_filename}:{line} in {self.code.co_qualname} at {self.offset}"


def _spans(code: CodeType) -> Iterator[tuple[int, int, int | None]]:
    for start, end, line in code.co_lines():
        for offset in range(start, end, 2):
            yield offset, end, line


@dataclass
class Tracer:
    """Lists the places that a call comes by, or interrupts it at one of them."""

    target: Place | None = None
    found: dict[Place, int] = field(default_factory=dict)
    fired: bool = False

    def __call__(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        if self.fired or not _is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if self._comes_by(Place(frame.f_code, _ENTRY)):
            return _trip
        return self._local

    def _local(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if self.fired or event != "opcode":
            return None
        code, offset = frame.f_code, frame.f_lasti
        if offset in _ends_of(code) and self._comes_by(Place(code, offset)):
            frame.f_trace = _trip
        return None

    def _comes_by(self, place: Place) -> bool:
        self.found[place] = self.found.get(place, 0) + 1
        self.fired = self.fired or place == self.target
        return self.fired


@cache
def _ends_of(code: CodeType) -> frozenset[int]:
    steps = list(dis.get_instructions(code))
    return frozenset(a.offset for a, b in pairwise(steps) if b.opname in _CHECKED)


def _is_ours(code: CodeType) -> bool:
    return code.co_filename != __file__ and "importlib" not in code.co_filename


_TRACER_CODES = {Tracer.__call__.__code__, Tracer._local.__code__, _ignore.__code__}
_TRACER_CODES |= {Tracer._comes_by.__code__, _is_ours.__code__}


@contextmanager
def _transparent() -> Iterator[None]:
    """Where the interpreter finds the SIGINT in a trace function, it is the traced one's."""
    real = interrupts._Handler.__call__

    def call(self: Any, number: int, frame: FrameType | None) -> Any:
        while frame is not None and frame.f_code in _TRACER_CODES:
            frame = frame.f_back
        return real(self, number, frame)

    interrupts._Handler.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        interrupts._Handler.__call__ = real  # type: ignore[method-assign]


def places_of(call: Callable[[], object]) -> list[Place]:
    """The places of a call where SIGINT can be handled, in the order in which it comes by first."""
    tracer = Tracer()
    for _ in range(_RUNS):
        tracer.found.clear()
        sys.settrace(tracer)
        try:
            call()
        finally:
            sys.settrace(None)
    return list(tracer.found)


@dataclass
class Outcome:
    """What became of an interrupted call."""

    fired: bool
    raised: BaseException | None
    ignored: list[str]


def interrupted_at(place: Place, call: Callable[[], object]) -> Outcome:
    """Make a call with a SIGINT at the first time it comes by a place."""
    tracer, ignored, raised = Tracer(place), [], None
    hook = sys.unraisablehook
    sys.unraisablehook = lambda what: ignored.append(f"{what.exc_value!r} in {what.object!r}")
    with _transparent():
        try:
            for _ in range(_RUNS if sys.version_info >= (3, 14) else 1):
                sys.settrace(tracer)
                call()
                sys.settrace(None)
                if tracer.fired:
                    break
        except BaseException as error:
            sys.settrace(None)
            raised = error.with_traceback(None)
        finally:
            sys.settrace(None)
            sys.unraisablehook = hook
    assert signal.default_int_handler is signal.getsignal(signal.SIGINT), place
    assert interrupts._state.handler is None, place
    return Outcome(tracer.fired, raised, ignored)
