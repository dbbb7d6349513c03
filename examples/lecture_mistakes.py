"""Mistakes with shared memory by hand, and the same mistakes with sharedtask.

The program makes each mistake in a separate process and prints what happened. ``python
lecture_mistakes.py NAME`` makes a single one. `docs/writing/squares.md` explains them.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import numpy.typing as npt

import sharedtask
from sharedtask import Partitioned, Shared, SharedTaskError, parallel, partition

SIZE = 1_000_003  # a length that no other program on this machine uses
CUTS = np.linspace(0, SIZE, 5, dtype=int)
SHM = Path("/dev/shm")  # noqa: S108 - where Linux keeps named shared memory
processes = multiprocessing.get_context("fork")


def wrong(numbers: np.ndarray) -> str:
    """How many twos have not become fours."""
    return f"{np.count_nonzero(numbers != 4):,} of {SIZE:,} numbers are wrong"


# --- unlink() is never reached -------------------------------------------------------------------


def killed_by_hand() -> None:
    shared = SharedMemory(create=True, size=8 * SIZE)
    numbers = np.ndarray(SIZE, np.float64, shared.buf)
    numbers[:] = 2
    os.killpg(0, signal.SIGKILL)  # a closed laptop, a stopped container, no memory left


def killed_declared() -> None:
    numbers = sharedtask.empty(SIZE)
    numbers[:] = 2
    square.map(partition(SIZE, 4), out=numbers)
    os.killpg(0, signal.SIGKILL)


# --- the array outlives its SharedMemory ---------------------------------------------------------


def collected_by_hand() -> None:
    print(f"alive, the sum is {twos_by_hand().sum():,.0f}")


def twos_by_hand() -> np.ndarray:
    shared = SharedMemory(create=True, size=8 * SIZE)
    numbers = np.ndarray(SIZE, np.float64, shared.buf)
    numbers[:] = 2
    return numbers  # `shared` ends here, and takes the memory along


def collected_declared() -> None:
    print(f"alive, the sum is {twos_declared().sum():,.0f}")


def twos_declared() -> np.ndarray:
    numbers = sharedtask.empty(SIZE)
    numbers[:] = 2
    return numbers


# --- the blocks overlap --------------------------------------------------------------------------


def overlap_by_hand() -> None:
    in_place(square_slice, [(start, stop + 1) for start, stop in pairwise(CUTS)])


def square_slice(name: str, start: int, stop: int) -> None:
    shared = SharedMemory(name)
    numbers = np.ndarray(SIZE, np.float64, shared.buf)
    numbers[start:stop] **= 2
    del numbers
    shared.close()


def overlap_declared() -> None:
    numbers = np.full(SIZE, 2.0)
    blocks = [slice(start, stop + 1) for start, stop in pairwise(CUTS)]
    try:
        square.map(blocks, out=numbers)
    except SharedTaskError as error:
        print(f"{type(error).__name__}: {error}")


# --- a worker gets the wrong dtype --------------------------------------------------------------


def dtype_by_hand() -> None:
    in_place(square_floats, list(pairwise(CUTS)))


def square_floats(name: str, start: int, stop: int) -> None:
    shared = SharedMemory(name)
    numbers = np.ndarray(SIZE, np.float32, shared.buf)  # it is float64
    numbers[start:stop] **= 2
    del numbers
    shared.close()


def dtype_declared() -> None:
    try:
        total.map(partition(SIZE, 4), values=np.full(SIZE, 2.0))
    except TypeError as error:
        print(f"{type(error).__name__}: {error}")


@parallel
def total(block: slice, values: Shared[npt.NDArray[np.float32]]) -> float:
    return float(values[block].sum())


# --- a worker raises -----------------------------------------------------------------------------


def raised_by_hand() -> None:
    in_place(square_or_raise, list(pairwise(CUTS)))


def square_or_raise(name: str, start: int, stop: int) -> None:
    if start > SIZE // 2:
        raise FileNotFoundError("calibration.txt")
    square_slice(name, start, stop)


def raised_declared() -> None:
    try:
        square_declared_or_raise.map(partition(SIZE, 4), out=np.full(SIZE, 2.0))
    except FileNotFoundError as error:
        print(f"{type(error).__name__}: {error}, {error.__notes__[0]}")


@parallel
def square_declared_or_raise(block: slice, out: Partitioned[np.ndarray]) -> None:
    if block.start > SIZE // 2:
        raise FileNotFoundError("calibration.txt")
    out **= 2


# --- a worker is killed --------------------------------------------------------------------------


def lost_by_hand() -> None:
    with processes.Pool(4) as pool:
        results = pool.map_async(die_at_two, range(4))  # pool.map waits without a limit
        results.wait(2)
        print("an answer" if results.ready() else "no answer after 2 seconds, and none will come")


def lost_declared() -> None:
    try:
        parallel(die_at_two).map(range(4))
    except SharedTaskError as error:
        print(f"{type(error).__name__}: {error}")


def die_at_two(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    return item


# --- another program reads along -----------------------------------------------------------------


def visited_by_hand() -> None:
    shared = SharedMemory(create=True, size=8 * SIZE)
    try:
        visit_twice(
            shared.name,
            "import sys; from multiprocessing.shared_memory import SharedMemory;"
            "visit = SharedMemory(sys.argv[1]); visit.close()",
        )
    finally:
        shared.close()
        shared.unlink()


def visited_declared() -> None:
    name = f"mistakes-{os.getpid()}"
    with sharedtask.share(np.full(SIZE, 2.0), name):
        visit_twice(
            name,
            "import sys, sharedtask; visit = sharedtask.attach(sys.argv[1]); visit.close()",
        )


def visit_twice(name: str, visitor: str) -> None:
    for number in (1, 2):
        command = [sys.executable, "-c", visitor, name]
        # The pipe ends with the last process that the visitor has started, which may outlive it.
        visit = subprocess.run(command, check=False, stderr=subprocess.PIPE)  # noqa: S603
        print(f"visitor {number}: {'no such memory' if visit.returncode else 'fine'}")


# --- what they have in common --------------------------------------------------------------------


@parallel
def square(block: slice, out: Partitioned[np.ndarray]) -> None:  # noqa: ARG001
    out **= 2


def in_place(work: Callable[..., None], cuts: list[tuple[int, int]]) -> None:
    """Run ``work(name, start, stop)`` for each cut in its own process, and check the result."""
    shared = SharedMemory(create=True, size=8 * SIZE)
    try:
        numbers = np.ndarray(SIZE, np.float64, shared.buf)
        numbers[:] = 2
        workers = [processes.Process(target=work, args=(shared.name, *cut)) for cut in cuts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(f"the program goes on, {wrong(numbers)}")
        del numbers
    finally:
        shared.close()
        shared.unlink()


MISTAKES: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
    "the program is killed before unlink()": (killed_by_hand, killed_declared),
    "the array outlives its SharedMemory": (collected_by_hand, collected_declared),
    "the blocks overlap by one number": (overlap_by_hand, overlap_declared),
    "a worker takes float64 for float32": (dtype_by_hand, dtype_declared),
    "a worker raises": (raised_by_hand, raised_declared),
    "a worker is killed": (lost_by_hand, lost_declared),
    "two other programs read along, by name": (visited_by_hand, visited_declared),
}


def happened(mistake: Callable[[], None]) -> str:
    """Run it in a separate program, and describe what happened."""
    ran = subprocess.run(  # noqa: S603
        [sys.executable, __file__, mistake.__name__],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    if mistake in (killed_by_hand, killed_declared):
        return left_behind()
    if ran.returncode < 0:
        return f"the program is ended by {signal.Signals(-ran.returncode).name}"
    return ", ".join(ran.stdout.splitlines())


def left_behind() -> str:
    """Look for memory of this size, and clear it away."""
    left = [path for path in SHM.iterdir() if path.is_file() and size(path) == 8 * SIZE]
    for path in left:
        path.unlink()
    return f"{8e-6 * SIZE * len(left):.1f} MB stay in {SHM}"


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another program's, gone while we looked
        return 0


if len(sys.argv) > 1:
    globals()[sys.argv[1]]()
    sys.exit()

for mistake, programs in MISTAKES.items():
    print(mistake)
    for way, program in zip(("by hand", "sharedtask"), programs, strict=True):
        told = f"    {way:12}{happened(program)}"
        print(textwrap.fill(told, 98, subsequent_indent=16 * " "))
