"""One contestant of the third table in a process of its own; see ``host.py``."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any
from unittest import mock

from benchmarks.host import Host, milliseconds, serve
from benchmarks.machine import proportional_bytes
from benchmarks.writing_contestants import WRITERS, Writer, processes
from benchmarks.writing_work import PERIOD, Writing, writings

SAMPLED_EVERY = 0.005  # seconds, while memory is watched


class WritingHost(Host):
    """The same commands, over the contestants and the jobs of the third table."""

    writer: Writer

    def __init__(self, name: str, tiny: bool) -> None:
        self.begin = WRITERS[name]
        self.works = writings(tiny)

    def open(self) -> dict[str, Any]:
        """Start the workers, where they do not belong to one array."""
        self.writer = self.begin()
        return {}

    def load(self, job: str) -> dict[str, Any]:
        """Rehearse with a small array, then place and fill the job's own."""
        self.work = self.works[job]
        self.rehearse()
        self.place(self.work)
        return {}

    def rehearse(self) -> None:
        self.place(replace(self.work, length=self.work.blocks * PERIOD))
        self.writer.run()

    def place(self, work: Writing) -> None:
        self.writer.place(work)
        work.fill(self.writer.data)

    def check(self, calls: bool = False) -> dict[str, Any]:
        """The first run, timed and checked; from then on the array holds what stays the same."""
        began = time.perf_counter()
        answer = self.writer.run()
        spent = (time.perf_counter() - began) * 1000
        right = self.work.is_right(self.writer.data, answer)
        self.work.steady(self.writer.data)
        return {"equal": right, "ms": spent}

    def run(self, calls: bool = False) -> list[Any]:
        return [self.writer.run()]

    def travel(self) -> dict[str, Any]:
        """How many bytes pass between this process and its workers in one run."""
        with counted() as passed:
            answer = self.writer.run()
        # Small results of ours do not pass a socket: they are written to shared memory.
        unseen = len(pickle.dumps(answer)) if passed["sockets"] else 0
        return {"bytes": sum(passed.values()) + unseen}

    def memory(self, seconds: float) -> dict[str, Any]:
        """How much all processes grow with the array, in its sizes: while it runs, for good."""
        self.rehearse()
        before = proportional_bytes(os.getpid())
        self.place(self.work)
        with watched() as seen:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                self.writer.run()
        after = proportional_bytes(os.getpid())
        size = self.work.nbytes
        return {"stays": (after - before) / size, "during": (median(seen) - before) / size}

    def by_lock(self, times: int) -> dict[str, Any]:
        """One lock of multiprocessing that nobody else wants, taken and given back."""
        lock = processes.Lock()

        def take() -> None:
            for _ in range(times):
                with lock:
                    pass

        return {"ms": [milliseconds(take) / times]}

    def by_locked(self, times: int) -> dict[str, Any]:
        """One write under the lock of ``Locked`` that nobody else wants."""
        from benchmarks.writing_ours import write_under_lock

        return {"ms": [write_under_lock(times) / times]}

    def overlap(self, turns: int, **what: int) -> dict[str, Any]:
        """How long it takes to see that so many blocks are apart."""
        from benchmarks.writing_ours import overlap_check

        check = overlap_check(**what)
        return {"ms": [milliseconds(check) for _ in range(turns)]}

    def close(self) -> dict[str, Any]:
        self.writer.close()
        return {}


@contextlib.contextmanager
def watched() -> Generator[list[int]]:
    """The proportional set size of this process and its descendants, again and again."""
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not seen or not over.wait(SAMPLED_EVERY):
            seen.append(proportional_bytes(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield seen
    over.set()
    watcher.join()


@contextlib.contextmanager
def counted() -> Generator[dict[str, int]]:
    """Count the bytes that pass the pipes of multiprocessing, and those that pass sockets."""
    passed = {"pipes": 0, "sockets": 0}

    def counts(over: Any, name: str, key: str, size: Callable[[Any, Any], int]) -> Any:
        plain = getattr(over, name)

        def call(self: Any, *args: Any) -> Any:
            result = plain(self, *args)
            passed[key] += size(args, result)
            return result

        return mock.patch.object(over, name, call)

    with contextlib.ExitStack() as stack:
        for patch in (
            counts(Connection, "_send_bytes", "pipes", lambda args, _: len(args[0])),
            counts(Connection, "_recv_bytes", "pipes", lambda _, found: found.tell()),
            counts(socket.socket, "sendmsg", "sockets", lambda _, sent: sent),
            counts(socket.socket, "recvmsg_into", "sockets", lambda _, found: found[0]),
        ):
            stack.enter_context(patch)
        yield passed


if __name__ == "__main__":
    serve(WritingHost)
