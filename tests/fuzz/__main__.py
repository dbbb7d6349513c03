"""``python -m tests.fuzz``: random programs on a backend, for as long as one likes."""

import argparse
import itertools
import sys
import time

from fuzz.programs import KINDS, ProcessSettings
from fuzz.running import Runner
from fuzz.shrinking import shrink


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--backend", default="process", help="serial, thread, process or ray")
    parser.add_argument("--seed", type=int, default=0, help="of the first program; counts up")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long; 0: one program")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help=" ".join(KINDS))
    parser.add_argument("--failures", type=int, default=1, help="go on until so many were found")
    parser.add_argument("--shrink", type=float, default=60.0, help="seconds to shorten a program")
    parser.add_argument("--show", action="store_true", help="print the programs, run nothing")
    return parser.parse_args()


def main() -> int:
    """Run programs until the time is over or enough have failed; returns the exit status."""
    told, kinds = parse(), None
    kinds = tuple(told.kinds)
    end, failures, seed = time.monotonic() + told.seconds, 0, told.seed
    runner = Runner()
    try:
        for seed in itertools.count(told.seed):
            program = ProcessSettings.random(seed, told.backend, kinds)
            if told.show:
                print(program.text)
            elif not right(program, runner, told.shrink):
                failures += 1
            if failures >= told.failures or time.monotonic() > end:
                break
    finally:
        runner.end()
    print(f"# {seed - told.seed + 1} programs on {told.backend}, {failures} failed")
    return 1 if failures else 0


def right(program: ProcessSettings, runner: Runner, seconds: float) -> bool:
    """Run a program; where it fails, print a short one that fails in the same way."""
    failure = runner.run(program)
    if failure is None:
        return True
    print(f"Seed {program.seed} fails on {program.backend}: {failure.kind}", flush=True)
    print(failure.text, flush=True)
    short = shrink(program, failure, runner, seconds)
    again = runner.run(short, fresh=True)
    often = "again" if again is not None else "not again"
    print(f"# ---- {len(short.steps)} of {len(program.steps)} steps; in a new process: {often}")
    print(short.text.rstrip())
    print("# ----", (again or failure).text.strip().replace("\n", "\n# "), flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
