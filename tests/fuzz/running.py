"""Runs programs in a process of their own, one after the other, and sees what comes of them."""

import linecache
import os
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import IO, Any

import numpy as np
import pandas as pd
from processes import GONE, Server

import sharedtask.testing
from fuzz.programs import PROLOGUE, ProcessSettings

# What programs import is loaded before the process that runs them is forked, for the next one too.
LOADED = (np, pd, sharedtask.testing)
LIMIT_SECONDS = 40.0
NEVER_PRINTED = ("Traceback", "Exception ignored", "ResourceWarning", "resource_tracker")


@dataclass(frozen=True)
class Failure:
    """How a program failed; two of the same ``kind`` are held for the same fault."""

    kind: str
    text: str


class Runner:
    """A process that runs programs; it is replaced when one hangs or ends it."""

    def __init__(self) -> None:
        self._server: Server | None = None

    def run(self, program: ProcessSettings, *, fresh: bool = False) -> Failure | None:
        """Run a program; None where all was right."""
        if fresh:
            self.end()
        if self._server is None:
            self._server = Server.fork(serve)
        try:
            self._server.pipe.send(program)
            found: Failure | None = self._server.receive(LIMIT_SECONDS)
        except (TimeoutError, *GONE) as error:
            server, self._server = self._server, None
            hangs = isinstance(error, TimeoutError)
            return Failure("hang" if hangs else "death", server.end_now(hangs=hangs))
        if found is not None and not fresh:
            self.end()  # what it has left behind is not to be blamed on the next
        return found

    def end(self) -> None:
        if self._server is not None:
            self._server.end()
            self._server = None


def serve(parent: Connection) -> None:
    """Run the programs that the parent sends."""
    with tempfile.TemporaryFile("w+", buffering=1) as printed, TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # with all that programs write
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        sys.stdout = sys.stderr = os.fdopen(os.dup(1), "w", buffering=1)
        code = compile(PROLOGUE, "judge", "exec")
        while (program := parent.recv()) is not None:
            parent.send(execute(code, program, printed))


def execute(code: Any, program: ProcessSettings, printed: IO[str]) -> Failure | None:
    """Run one program as the main module."""
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    linecache.cache["program"] = (1, None, program.body.splitlines(keepends=True), "program")
    size = os.fstat(printed.fileno()).st_size
    try:
        exec(code, vars(module))
        exec(compile(program.body, "program", "exec"), vars(module))
    except BaseException as error:
        return Failure(type(error).__name__, traceback.format_exc())
    finally:
        tidy()
    printed.seek(size)
    said = printed.read()
    return Failure("stderr", said) if any(word in said for word in NEVER_PRINTED) else None


def tidy() -> None:
    """Undo what a program may have done to its process."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setswitchinterval(0.005)
    os.close = getattr(os.close, "plain", os.close)
    sys.stdout = sys.stderr
