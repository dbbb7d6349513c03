"""The ways in which several processes work on one array by hand, and sharedtask beside them.

All have four long-lived workers. An array is brought to where they see it once (``place``), except
where the way itself is to send it; then the job is run over it again and again.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import secrets
import struct
from collections.abc import Callable
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

import numpy as np

from benchmarks.work import WORKERS
from benchmarks.writing_work import BINS, Array, Writing, cut

SHARE = struct.Struct("qq")  # the first and the last element, as a worker is told them
NAMED = "benchmarks-{pid}-"  # how shared memory of that process is called
processes = multiprocessing.get_context("fork")


class Writer(Protocol):
    """What the host needs of a contestant."""

    data: Array

    def place(self, work: Writing) -> None:
        """Make room for the work's array where the workers see it; what was there before goes."""

    def run(self) -> Any:
        """Do the work once; return its answer."""

    def close(self) -> None:
        """End the workers, give the memory back."""


class Serial:
    """One part after the other, here."""

    def place(self, work: Writing) -> None:
        self.work, self.data = work, np.empty(work.length, work.dtype)

    def run(self) -> Any:
        return self.work.combine([self.work.body(self.data[part]) for part in self.work.parts])

    def close(self) -> None: ...


class AtOnce(Serial):
    """One numpy call over the whole array, here."""

    def run(self) -> Any:
        return self.work.body(self.data)


class ByQueue(Serial):
    """Parts travel to the workers through a queue, and results (or the parts) through another."""

    def __init__(self) -> None:
        self.tasks, self.results = processes.Queue(), processes.Queue()
        self.workers = [
            processes.Process(target=take_and_give, args=(self.tasks, self.results), daemon=True)
            for _ in range(WORKERS)
        ]
        for worker in self.workers:
            worker.start()

    def run(self) -> Any:
        parts = self.work.parts
        for number, part in enumerate(parts):
            self.tasks.put((number, self.work, self.data[part]))
        results: list[Any] = [None] * len(parts)
        for _ in parts:
            number, results[number], changed = self.results.get()
            if changed is not None:
                self.data[parts[number]] = changed
        return self.work.combine(results)

    def close(self) -> None:
        for worker in self.workers:
            worker.terminate()


def take_and_give(tasks: Any, results: Any) -> None:
    """Be a worker of ``ByQueue``. What has no result has changed its part: that goes back."""
    while True:
        number, work, block = tasks.get()
        result = work.body(block)
        results.put((number, result, block if result is None else None))


class Block:
    """Memory of ``multiprocessing.shared_memory`` with an array in it; others attach by name."""

    def __init__(self, work: Writing) -> None:
        name = NAMED.format(pid=os.getpid()) + secrets.token_hex(4)
        self.memory = SharedMemory(name, create=True, size=work.nbytes)
        self.work = work

    def view(self) -> Array:
        return np.ndarray(self.work.length, self.work.dtype, self.memory.buf)

    def attach(self) -> Array:
        """The same for a worker. Its mapping stays for as long as the worker lives."""
        self.memory = SharedMemory(self.memory.name)
        return self.view()

    def close(self) -> None:
        self.memory.close()
        self.memory.unlink()


def over_ctypes(memory: Any, dtype: str) -> Array:
    """The array in memory of ``multiprocessing.Array``."""
    view: Array = np.frombuffer(memory.get_obj(), dtype)
    return view


class Ctypes:
    """Memory of ``multiprocessing.Array``; workers inherit it."""

    def __init__(self, work: Writing) -> None:
        code = np.dtype(work.dtype).char
        self.memory = processes.Array(code, work.length)
        self.work = work

    def view(self) -> Array:
        return over_ctypes(self.memory, self.work.dtype)

    attach = view

    def close(self) -> None: ...


class ByPool:
    """``Pool.map`` over the parts; each call attaches to the shared memory by its name."""

    def __init__(self) -> None:
        # Else each worker would start a tracker of its own, which takes the memory from all.
        resource_tracker.ensure_running()
        self.pool = processes.Pool(WORKERS)
        self.block: Block | None = None

    def place(self, work: Writing) -> None:
        self.clear()
        self.work, self.block = work, Block(work)
        self.data = self.block.view()

    def run(self) -> Any:
        assert self.block is not None
        over_part = partial(over_named, self.block.memory.name, self.work)
        return self.work.combine(self.pool.map(over_part, self.work.parts))

    def clear(self) -> None:
        if self.block is not None:
            del self.data
            self.block.close()
            self.block = None

    def close(self) -> None:
        self.clear()
        self.pool.terminate()


def over_named(name: str, work: Writing, part: slice) -> Any:
    """Attach, do one part, detach."""
    memory = SharedMemory(name)
    try:
        return work.body(np.ndarray(work.length, work.dtype, memory.buf)[part])
    finally:
        memory.close()


class ByKeptPool(ByPool):
    """``Pool.map`` over the parts; the workers attached when the pool was started."""

    def __init__(self) -> None:
        resource_tracker.ensure_running()
        self.block: Block | None = None

    def place(self, work: Writing) -> None:
        self.clear()
        self.work, self.block = work, Block(work)
        self.data = self.block.view()
        self.pool = processes.Pool(WORKERS, attach_here, (self.block,))

    def run(self) -> Any:
        return self.work.combine(self.pool.map(over_attached, self.work.parts))

    def clear(self) -> None:
        if self.block is not None:
            self.pool.terminate()
            self.pool.join()
        super().clear()

    def close(self) -> None:
        self.clear()


_attached: list[tuple[Writing, Array]] = []


def attach_here(block: Block) -> None:
    """Be a worker of ``ByKeptPool``: attach once, for all parts to come."""
    _attached.append((block.work, block.attach()))


def over_attached(part: slice) -> Any:
    """Do one part of what was attached."""
    ((work, data),) = _attached
    return work.body(data[part])


class ByPipe:
    """The best one writes by hand: workers attach once, and a pipe tells each its share.

    The shares are always the same, so they could know them; but then they could do nothing else.
    """

    def __init__(self, memory: Callable[[Writing], Block | Ctypes] = Block) -> None:
        self.make = memory
        self.pipes: list[Connection] = []
        self.memory: Block | Ctypes | None = None

    def place(self, work: Writing) -> None:
        self.clear()
        self.work, self.memory = work, self.make(work)
        self.data = self.memory.view()
        self.shares = [SHARE.pack(s.start, s.stop) for s in cut(slice(0, work.length), WORKERS)]
        self.pipes = [self.start() for _ in range(WORKERS)]

    def start(self) -> Connection:
        """One more worker; our end of its pipe."""
        ours, theirs = processes.Pipe()
        processes.Process(target=self.serve, args=(theirs,), daemon=True).start()
        theirs.close()
        return ours

    def serve(self, pipe: Connection) -> None:
        """Be a worker, until nothing is what it is told."""
        assert self.memory is not None
        data = self.memory.attach()
        while share := pipe.recv_bytes():
            pipe.send_bytes(pickle.dumps(self.over(data, slice(*SHARE.unpack(share)))))
        os._exit(0)

    def over(self, data: Array, share: slice) -> Any:
        return self.work.over(data, share)

    def run(self) -> Any:
        for pipe, share in zip(self.pipes, self.shares, strict=True):
            pipe.send_bytes(share)
        return self.work.combine([pickle.loads(pipe.recv_bytes()) for pipe in self.pipes])

    def clear(self) -> None:
        for pipe in self.pipes:
            pipe.send_bytes(b"")
            pipe.close()
        for worker in multiprocessing.active_children():
            worker.join()
        if self.memory is not None:
            del self.data
            self.memory.close()
        self.pipes, self.memory = [], None

    def close(self) -> None:
        self.clear()


class UnderLock(ByPipe):
    """All add to one shared histogram, under one lock, block by block."""

    def __init__(self) -> None:
        super().__init__()
        self.total = processes.Array("q", BINS)

    def over(self, data: Array, share: slice) -> None:
        counts = over_ctypes(self.total, "int64")
        for block in cut(share, self.work.blocks // WORKERS):
            more = self.work.body(data[block])
            with self.total.get_lock():
                counts += more

    def run(self) -> Array:
        counts = over_ctypes(self.total, "int64")
        counts[:] = 0
        for pipe, share in zip(self.pipes, self.shares, strict=True):
            pipe.send_bytes(share)
        for pipe in self.pipes:
            pipe.recv_bytes()
        return counts.copy()


def ours(**how: Any) -> Writer:
    """sharedtask itself; imported late, so that the others run without it."""
    from benchmarks.writing_ours import Ours

    return Ours(**how)


# The order of the table's columns, and of the turns: ours stands beside the best by hand.
WRITERS: dict[str, Callable[[], Writer]] = {
    "serial": Serial,
    "at once": AtOnce,
    "Queue": ByQueue,
    "Pool.map": ByPool,
    "Pool kept": ByKeptPool,
    "lock": UnderLock,
    "mp.Array": partial(ByPipe, Ctypes),
    "shared_memory": ByPipe,
    "ours": ours,
    "ours plain": partial(ours, born=False),
    "ours returned": partial(ours, reduced=False),
}
