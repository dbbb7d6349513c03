"""The floor: the hand-written equivalent of one shared, parallel map, and nothing more.

What one would write for a single job: workers started once, one socketpair per worker, the shared
value written once into a memfd, mapped and unpickled once in each worker, items travelling in
chunks, two chunks in flight. No checks at all: nothing notices a changed value, an exception, a
dead worker or a full disk. It says what the job costs at the least.

    caller                         worker (4 of them)
    publish(value) -> memfd
    "value" + fd      ---------->  mmap, pickle.loads: once
    "chunk" (i, f, [items])  --->  [f(item, model=value) for item in items]
    results[i] = ...  <----------  (i, [results]), through a memfd of its own when large
"""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import select
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

PACKET = 64 << 10  # what travels in one packet; anything larger goes through a memfd
ALIGNMENT = 64


def publish(value: object) -> int:
    """Write the pickle of ``value``, its buffers out of band, into a new memfd; return the fd."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return write_segment([memoryview(head), *(buffer.raw() for buffer in buffers)])


def write_segment(parts: list[memoryview]) -> int:
    """Write ``parts`` one after the other, each aligned, behind a table of their sizes."""
    fd = os.memfd_create("floor", os.MFD_CLOEXEC)
    sizes = [part.nbytes for part in parts]
    os.pwrite(fd, struct.pack(f"{1 + len(sizes)}Q", len(sizes), *sizes), 0)
    for offset, part in zip(offsets(sizes), parts, strict=True):
        done = 0
        while done < part.nbytes:
            done += os.pwrite(fd, part[done:], offset + done)
    os.ftruncate(fd, offsets([*sizes, 0])[-1])
    return fd


def load(fd: int) -> Any:
    """Map the segment and unpickle it over its own pages, then close the fd."""
    pages = memoryview(mmap.mmap(fd, 0))
    os.close(fd)
    (count,) = struct.unpack_from("Q", pages)
    sizes = struct.unpack_from(f"{count}Q", pages, 8)
    head, *buffers = (pages[at : at + size] for at, size in zip(offsets(sizes), sizes, strict=True))
    return pickle.loads(head, buffers=buffers)


def offsets(sizes: Iterable[int]) -> list[int]:
    """Where each part begins, behind a table of one count and one size per part."""
    sizes = list(sizes)
    at, found = 8 * (1 + len(sizes)), []
    for size in sizes:
        at = -(-at // ALIGNMENT) * ALIGNMENT
        found.append(at)
        at += size
    return found


def send(sock: socket.socket, message: object) -> None:
    """Send ``message`` in one packet, or in a memfd where it is larger than that."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    if not buffers and len(head) < PACKET:
        sock.send(b"p" + head)
        return
    fd = write_segment([memoryview(head), *(buffer.raw() for buffer in buffers)])
    socket.send_fds(sock, [b"m"], [fd])
    os.close(fd)


def receive(sock: socket.socket) -> tuple[bytes, Any]:
    """Return the packet's kind and its message: "p" in the packet, "m" and "v" in a memfd."""
    packet, fds, _, _ = socket.recv_fds(sock, PACKET, 1)
    return packet[:1], load(fds[0]) if fds else pickle.loads(packet[1:]) if packet else None


def serve(sock: socket.socket) -> None:
    """Work until the other end closes; keep the last value that came."""
    value = None
    while True:
        kind, message = receive(sock)
        if not kind:
            os._exit(0)
        if kind == b"v":
            value = message
            continue
        index, function, items = message
        call = function if value is None else partial(function, model=value)
        send(sock, (index, [call(item) for item in items]))


class Floor:
    """Four (or so) warm workers, forked from here, or from a fresh process that loads numpy."""

    def __init__(self, workers: int, starter: bool = False) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers)]
        self.workers = [ours for ours, _ in pairs]
        theirs = [sock for _, sock in pairs]
        if starter:
            self.started = start_workers(theirs)
        else:
            fork_workers(theirs, self.workers)
        for sock in theirs:
            sock.close()
        self.value: object = None
        self.poll = select.poll()
        self.by_fd = {sock.fileno(): sock for sock in self.workers}
        for fd in self.by_fd:
            self.poll.register(fd, select.POLLIN)

    def share(self, value: object) -> None:
        """Publish ``value`` to every worker, unless it is the very object they hold already."""
        if value is self.value:
            return
        fd = publish(value)
        for sock in self.workers:
            socket.send_fds(sock, [b"v"], [fd])
        os.close(fd)
        self.value = value

    def map(self, function: Callable[..., Any], items: Iterable[Any], value: object) -> list[Any]:
        """Return ``function(item, model=value)`` for each item, in order."""
        self.share(value)
        items = list(items)
        size = max(1, -(-len(items) // (4 * len(self.workers))))
        chunks = [items[at : at + size] for at in range(0, len(items), size)]
        results: list[list[Any]] = [[] for _ in chunks]
        waiting = iter(enumerate(chunks))
        for sock, (index, chunk) in zip(self.workers * 2, waiting, strict=False):
            send(sock, (index, function, chunk))
        left = len(chunks)
        while left:
            for fd, _ in self.poll.poll():
                _, (index, outcome) = receive(self.by_fd[fd])
                results[index] = outcome
                left -= 1
                for following, chunk in itertools.islice(waiting, 1):
                    send(self.by_fd[fd], (following, function, chunk))
        return list(itertools.chain.from_iterable(results))

    def call(self, function: Callable[..., Any], item: object) -> Any:
        """One item there and back, to the first worker."""
        self.share(None)
        send(self.workers[0], (0, function, [item]))
        _, (_, [result]) = receive(self.workers[0])
        return result

    def close(self) -> None:
        """Close the sockets: the workers end by themselves."""
        for sock in self.workers:
            sock.close()


class FloorOfFutures:
    """One warm worker and the thread that completes its futures: what an executor adds.

    :meth:`Floor.call` blocks on the socket itself. A ``Future`` that others may wait for needs
    somebody who reads meanwhile, and so two more switches between threads.
    """

    def __init__(self) -> None:
        self.floor = Floor(1, starter=True)
        self.promised: deque[Future[Any]] = deque()
        threading.Thread(target=self.complete, daemon=True).start()

    def submit(self, function: Callable[..., Any], item: object) -> Future[Any]:
        """Send one item; the future completes when its result is back."""
        future: Future[Any] = Future()
        self.promised.append(future)
        send(self.floor.workers[0], (0, function, [item]))
        return future

    def complete(self) -> None:
        """Complete the futures in the order of their items, until the worker ends."""
        while True:
            kind, message = receive(self.floor.workers[0])
            if not kind:
                return
            _, [result] = message
            self.promised.popleft().set_result(result)

    def close(self) -> None:
        """End the worker; the thread ends with it."""
        self.floor.workers[0].shutdown(socket.SHUT_WR)


def fork_workers(theirs: list[socket.socket], ours: list[socket.socket]) -> None:
    """Fork one worker per socket out of this very process: fast, and unsafe beside threads."""
    for sock in theirs:
        if os.fork() == 0:
            for other in (*ours, *theirs):
                if other is not sock:
                    other.close()
            serve(sock)


def start_workers(theirs: list[socket.socket]) -> subprocess.Popen[bytes]:
    """Start a fresh, single-threaded process that loads numpy and forks the workers."""
    fds = [sock.fileno() for sock in theirs]
    root = str(Path(__file__).resolve().parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); from benchmarks import floor"
    command = [sys.executable, "-c", f"{code}; floor.run_starter({fds})"]
    return subprocess.Popen(command, pass_fds=fds)


def run_starter(fds: list[int]) -> None:
    """Be the fresh process of :func:`start_workers`; stay until the workers have ended."""
    import numpy as np  # noqa: F401  loaded once here, so that no worker has to

    fork_workers([socket.socket(fileno=fd) for fd in fds], [])  # closed here when it returns
    for _ in fds:
        os.wait()
