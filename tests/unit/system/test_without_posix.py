"""Systems that lack what POSIX systems have: the library is imported, and runs on threads."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Not a real one: it takes away names that Windows lacks. What is loaded before exists there.
_LACKS = '''
import ctypes, mmap, os, select, selectors, signal, socket, sys
import cloudpickle, numpy, pydantic, threadpoolctl, wrapt

for name in ("fcntl", "resource", "termios", "pwd", "grp", "_posixsubprocess"):
    sys.modules[name] = None
gone = {
    os: """fork register_at_fork uname geteuid getuid fchmod pwrite pread statvfs O_CLOEXEC killpg
        O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_NOCTTY O_PATH memfd_create posix_fallocate WNOHANG
        sched_getaffinity WUNTRACED""".split(),
    socket: "SCM_RIGHTS MSG_CMSG_CLOEXEC MSG_NOSIGNAL CMSG_SPACE CMSG_LEN AF_UNIX".split(),
    signal: """SIGKILL SIGCHLD SIGSTOP SIGCONT SIGHUP SIGUSR1 SIGPIPE pthread_sigmask SIG_BLOCK
        SIG_SETMASK""".split(),
    select: ["epoll", "poll"],
    selectors: ["EpollSelector", "PollSelector"],
    mmap: [n for n in dir(mmap) if n.startswith(("MAP_", "PROT_", "MADV_"))],
}
for module, names in gone.items():
    for name in names:
        vars(module).pop(name, None)
selectors.DefaultSelector = selectors.SelectSelector

class NoneRefused(ctypes.CDLL):
    def __init__(self, name, *arguments, **options):
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        super().__init__(name, *arguments, **options)

ctypes.CDLL = NoneRefused
'''

_PROGRAM = """
import numpy as np
from sharedtask import BackendUnavailableError, Partitioned, Reduced, Shared, parallel

@parallel
def use(x, table: Shared, part: Partitioned, total: Reduced):
    total += x
    return float(table.sum() + part)

for backend in ("serial", "thread"):
    task = use.with_options(backend=backend, workers=2)
    total = np.zeros(1)
    found = task.map(range(4), table=np.ones(50_000), part=np.arange(4.0), total=total)
    assert found == [50_000.0 + x for x in range(4)], (backend, found)
    assert total[0] == 6, (backend, total)
try:
    parallel(abs).with_options(backend="process").map([1])
except BackendUnavailableError as error:
    print(error)
"""


def test_a_system_without_fork_runs_threads_and_names_what_process_needs(tmp_path: Path) -> None:
    """Import, serial and thread work without POSIX; the process backend says what is missing."""
    (tmp_path / "sitecustomize.py").write_text(_LACKS)
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (ended.returncode, ended.stderr)
    assert "needs os.fork" in ended.stdout
    assert 'backend="thread"' in ended.stdout
