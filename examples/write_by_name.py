"""Two programs, one array: one shares it under a name, the other finds it there and fills it.

They are unrelated programs and exchange only the name. Here the first starts the second, as
``python write_by_name.py NAME``; you could also start it by hand in another terminal.
"""

import os
import subprocess
import sys

import numpy as np

from sharedtask import Partitioned, UnknownNameError, attach, parallel, partition, share, zeros


@parallel
def fill(rows: slice, out: Partitioned[np.ndarray]) -> None:
    out[...] = np.arange(rows.start, rows.stop)[:, np.newaxis]


def second(name: str) -> None:
    """The other program."""
    with attach(name, writable=True) as board:
        fill.map(partition(len(board.value), 4), out=board.value)
        print(f"  program {os.getpid()} has written {board.value.nbytes:,} bytes", flush=True)


def first(name: str) -> None:
    """This one."""
    board = zeros((1_000, 100))
    with share(board, name):  # an array that is born in shared memory is shared where it lies
        print(f"program {os.getpid()} shares a board as {name!r}", flush=True)
        subprocess.run([sys.executable, __file__, name], check=True)  # noqa: S603
    print(f"all of it is here: {np.array_equal(board[:, 0], np.arange(1_000))}")
    try:
        attach(name)
    except UnknownNameError:
        print("the name is gone with the block that shared it")


if len(sys.argv) > 1:
    second(sys.argv[1])
else:
    first(f"board-{os.getpid()}")
