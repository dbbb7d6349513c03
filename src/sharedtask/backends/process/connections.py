"""The caller's ends of the connections: to the forkserver and to each worker."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
from collections import deque
from typing import TYPE_CHECKING

from sharedtask.backends.worker.status_page import FLUSH, GIVE_UP, StatusPage, Word, fence
from sharedtask.system.blas import BLAS_VARIABLES
from sharedtask.system.records import dataclass

from . import child, forkserver, wire
from .wire import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from .work_items import WorkItem

_END_SECONDS = 2.0


class Link:
    """A non-blocking socket with frames on it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = wire.OwnSocket(sock)
        self.reader = wire.Reader(self.sock)
        self.writer = wire.Writer(self.sock)
        self.ended = self.dry = False

    def receive(self) -> list[Frame]:
        """Read once: the frames that are complete now. Sets ``ended``, or ``dry`` for "not yet"."""
        frames: list[Frame] = []
        if not self.sock.is_open():
            self.dry = True
            return frames
        try:
            self.dry = False
            self.ended = not self.reader.fill()
            frames.extend(self.reader.frames())
        except BlockingIOError:
            self.dry = True
        except (OSError, wire.ProtocolError):
            self.ended = True
        return frames

    def drain(self) -> list[Frame]:
        """All frames that a dead peer left in the socket."""
        frames: list[Frame] = []
        self.dry = False
        while not (self.ended or self.dry):
            frames.extend(self.receive())
        return frames

    def close(self) -> None:
        """Close the socket and every descriptor received but not claimed."""
        self.reader.close()
        self.writer.close()
        self.sock.close()


class ForkserverLink(Link):
    """The caller's view of the forkserver process."""

    def __init__(self, *modules: str) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        # Only the new process inherits it: another thread may start a program at the same time.
        with theirs, _closed_on_error(self.sock), _interrupt_blocked():
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter
                forkserver.command(theirs.fileno(), *modules),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**_environment(), **forkserver.environment(theirs.fileno(), *modules)},
            )

    def spawn(self, serial: int, number: int, tracker: int) -> WorkerLink:
        """Ask for a worker to be forked; frames may be sent to it at once.

        It has this ``number`` among those that live, and notes in ``tracker`` the names that must
        be removed in the end.
        """
        ours, theirs = socket.socketpair()
        with theirs, _closed_on_error(ours):
            page = StatusPage()
            fds = (theirs.fileno(), page.fd, tracker)
            birth = child.Birth(
                serial, os.getpid(), child.caller_name(), working_directory(), number
            )
            self.writer.send(Frame(Kind.SPAWN, chunk=serial, body=pickle.dumps(birth), fds=fds))
        os.close(page.fd)
        return WorkerLink(ours, page, serial, number)

    def signal(self, serial: int, number: int) -> None:
        """Send a signal to a worker; no effect if it has ended already."""
        self.writer.send(Frame(Kind.SIGNAL, chunk=serial, first=number))

    def _dismiss(self, workers: Iterable[WorkerLink]) -> None:
        """End all workers, then the forkserver; busy workers are killed."""
        for worker in workers:
            if worker.work_items:
                self.signal(worker.serial, signal.SIGKILL)
            else:
                worker.writer.send(Frame(Kind.STOP))
        self.writer.send(Frame(Kind.END))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def end(self, workers: Iterable[WorkerLink] | None = None) -> None:
        """End ``workers``, if given, in good order, then the forkserver, which kills the others."""
        if workers is not None:
            self._dismiss(workers)
        self.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def abandon(self) -> None:
        """In a forked child: close our copies; the process belongs to the parent."""
        self.close()
        self._process.returncode = 0  # no warning that it still runs


@contextlib.contextmanager
def _closed_on_error(sock: socket.socket) -> Generator[None]:
    """Close the socket if a later step fails, for lack of descriptors for example."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def _interrupt_blocked() -> Generator[None]:
    """The mask is inherited: the forkserver ignores Ctrl-C from its first instruction."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _environment() -> dict[str, str]:
    """One BLAS thread until a call sets more: the forkserver must have no other threads."""
    return {**dict.fromkeys(BLAS_VARIABLES, "1"), **os.environ, **_hash_seed()}


def _hash_seed() -> dict[str, str]:
    """The hash seed that this process started with; its environment may have changed."""
    try:
        with open("/proc/self/environ", "rb") as file:
            began_with = file.read().split(b"\0")
    except OSError:
        return {}
    seeds = [each for each in began_with if each.startswith(b"PYTHONHASHSEED=")]
    return {"PYTHONHASHSEED": os.fsdecode(seeds[0].partition(b"=")[2])} if seeds else {}


def working_directory() -> str:
    """The caller's directory; "/" if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why a worker was stopped, and the status page state that a kill requires."""

    cause: str
    chunk: int
    started: int | None
    until: float  # the deadline for it to stop
    reached: int = 0  # bytes of private memory


class WorkerLink(Link):
    """The caller's view of a worker: its chunks, its published values, its status page."""

    def __init__(self, sock: socket.socket, page: StatusPage, serial: int, number: int) -> None:
        super().__init__(sock)
        self.status_page = page
        self.serial = serial
        self.number = number
        self.pid: int | None = None
        self.ran = 0  # items
        self.logs_dropped = 0  # records that it had no room for, as far as it was told
        self.leaving = False  # it gets no more chunks
        self.used_up = ""  # the option because of which it is replaced
        self.leave_by = 0.0  # it was asked to end, and is killed at this time
        self.work_items: deque[WorkItem] = deque()
        self.seen_at = 0  # its current chunk at the last check
        self.tokens: dict[int, bool] = {}  # published values it has; True: with a descriptor
        self.stop_reason: StopReason | None = None
        self.kill_reason: StopReason | None = None
        self.exit: tuple[int | None, int | None, int | None] | None = None

    def find(self, number: int) -> WorkItem | None:
        """The chunk of this number, if the worker has it."""
        for work_item in self.work_items:  # the first one, nearly always
            if work_item.number == number:
                return work_item
        return None

    def free_request_slot(self) -> int:
        """The slot, 0 or 1, of the caller's requests about its next chunk."""
        return 1 - self.work_items[0].request_slot if self.work_items else 0

    def prepare(self, request_slot: int) -> None:
        """Clear the entries of the previous chunk of this slot."""
        words = self.status_page.words
        words[Word.REQUEST + request_slot] = (words[Word.REQUEST + request_slot] + FLUSH) & ~GIVE_UP

    def cancel(self, work_item: WorkItem) -> None:
        """Ask the worker to give up a chunk between two items."""
        self.status_page.words[Word.REQUEST + work_item.request_slot] |= GIVE_UP

    def take_back(self, work_item: WorkItem) -> bool:
        """Take a chunk back; False if the worker has begun it.

        Both sides write before they read: the worker the chunk that it begins, the caller that the
        chunk is given up. So either the caller sees that it was begun, or the worker sees that it
        must not begin it.
        """
        self.cancel(work_item)
        fence()
        return self.in_hand() != work_item.number

    def request_flush(self) -> None:
        """Ask the worker to send its results after the current item."""
        if self.work_items:
            self.status_page.words[Word.REQUEST + self.work_items[0].request_slot] += FLUSH

    def in_hand(self) -> int:
        """The number of its current chunk, or of its last one."""
        return self.status_page.words[Word.CHUNK]

    def begun(self, work_item: WorkItem) -> int:
        """How many items of a chunk may have begun, if each is announced: see ``Word.BEGUN``."""
        in_hand = self.in_hand()
        if in_hand == work_item.number:
            return self.status_page.words[Word.BEGUN]
        behind = work_item is self.work_items[0] and len(self.work_items) > 1
        is_past = behind and in_hand == self.work_items[1].number
        return len(work_item.chunk.items) if is_past else 0

    def still(self, reason: StopReason) -> bool:
        """Whether the stopped worker is still at the item that it was stopped for."""
        words = self.status_page.words
        return words[Word.CHUNK] == reason.chunk and reason.started in (
            None,
            words[Word.STARTED],
        )
