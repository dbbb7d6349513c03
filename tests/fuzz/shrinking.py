"""Makes a program that fails shorter, as long as it fails in the same way."""

import time

from fuzz.programs import ProcessSettings
from fuzz.running import Failure, Runner


def shrink(
    program: ProcessSettings, failure: Failure, runner: Runner, seconds: float
) -> ProcessSettings:
    """Leave out steps, many at first, then one by one."""
    limit = time.monotonic() + seconds
    size = max(len(program.steps) // 2, 1)
    while True:
        start = len(program.steps)
        while start > 0:
            start = max(start - size, 0)
            if time.monotonic() > limit:
                return program
            shorter = program.without(range(start, start + size))
            found = runner.run(shorter)
            if found is not None and found.kind == failure.kind:
                program = shorter
        if size == 1:
            return program
        size //= 2
