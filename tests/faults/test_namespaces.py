"""Arrays that are written, where /proc does not lead from a worker to its caller."""

import ctypes
import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.timeout(60)

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18

PREPARE = """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    def must(done):
        if done < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""
ELSEWHERE = {
    # The processes have other numbers than /proc shows.
    "another PID namespace": """
        must(libc.unshare(0x20000000))
        child = os.fork()
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """,
    "no /proc": """
        must(libc.unshare(0x00020000))
        must(libc.mount(None, b"/", None, 0x4000 | 1 << 18, None))
        must(libc.mount(b"tmpfs", b"/proc", b"tmpfs", 0, None))
    """,
}
WORK = """
    import numpy as np
    import sharedtask
    from sharedtask import Locked, Partitioned, Reduced, Shared, parallel

    @parallel(backend="process", workers=2)
    def fill(k: int, out: Partitioned[np.ndarray], table: Shared[np.ndarray]) -> int:
        out[...] = table[k]
        return k

    @parallel(backend="process", workers=2)
    def add(k: int, total: Reduced[np.ndarray]) -> None:
        total += k

    @parallel(backend="process", workers=2)
    def lock(k: int, grid: Locked[np.ndarray]) -> None:
        with grid.write() as whole:
            whole += 1

    for make in (sharedtask.zeros, np.zeros):
        out, table = make(4), make(4)
        table[:] = 1, 2, 3, 4
        assert [0, 1, 2, 3] == fill.map(range(4), out=out, table=table)
        assert [1, 2, 3, 4] == out.tolist()
        table[0] = 9
        fill.map(range(4), out=out, table=table)
        assert [9, 2, 3, 4] == out.tolist()
        total = make(2)
        add.map(range(10), total=total)
        assert [45, 45] == total.tolist()
        squares = make(6)
        parallel(lambda k: k * k).with_options(backend="process").map_into(squares, range(6))
        assert [0, 1, 4, 9, 16, 25] == squares.tolist()
"""
LOCK = """
    for make in (sharedtask.zeros, np.zeros):
        grid = make(3)
        lock.map(range(50), grid=grid)
        assert [50, 50, 50] == grid.tolist()
"""
NO_LOCK = """
    try:
        lock.map(range(2), grid=np.zeros(3))
    except sharedtask.SharedTaskError as error:
        assert "/proc" in str(error) and "'grid'" in str(error), error
    else:
        raise SystemExit("locks need /proc")
"""


def run(*parts: str) -> None:
    code = "\n".join(map(textwrap.dedent, parts))
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ("", "", 0) == (ran.stdout, ran.stderr, ran.returncode)


def may_unshare() -> bool:
    """Asked in a child: this process stays where it is."""
    flags = CLONE_NEWNS | CLONE_NEWPID
    code = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare({flags}))"
    return 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not may_unshare(), reason="needs the right to make namespaces"
)


@needs_namespaces
@pytest.mark.parametrize(
    ("where", "locks"), [("another PID namespace", LOCK), ("no /proc", NO_LOCK)]
)
def test_arrays_that_tasks_write_need_no_proc(where: str, locks: str) -> None:
    """Workers get descriptors where they cannot open the caller's; locks say what they need."""
    run(PREPARE, ELSEWHERE[where], WORK, locks)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every process")
def test_arrays_of_a_process_that_nobody_may_look_into() -> None:
    """A caller that is not dumpable hands its descriptors over."""
    run("import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)", WORK, LOCK)


def test_descriptors_travel_where_nobody_may_look() -> None:
    """Also where /proc would do: handing descriptors over changes nothing else."""
    hidden = "import ctypes; assert 0 == ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)"
    check = "from sharedtask.memory import locations; assert not locations.is_reachable()"
    run(hidden, check, WORK, LOCK)


def test_proc_is_enough_where_it_leads_to_us() -> None:
    """In an ordinary process no further descriptors travel."""
    assert 1 == ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
    run("from sharedtask.memory import locations; assert locations.is_reachable()")
