"""To act as another user, where the tests run as root."""

import os
from collections.abc import Callable

import pytest

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def in_child(work: Callable[[], object]) -> str:
    """What ``work`` returns, or raises, in a forked child."""
    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = repr(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writable, answer.encode())
        os._exit(0)
    os.close(writable)
    with open(readable) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return answer


def as_nobody(use: Callable[[], object]) -> str:
    """What comes of it in a child that is another user."""

    def run() -> object:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return use()

    return in_child(run)
