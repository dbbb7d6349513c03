"""The caller's ends of the connections: to the starter, and to each worker."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharedtask.system.blas import BLAS_VARIABLES
from sharedtask.worker.status_page import GIVE_UP, HURRY, Board, Word

from . import child, forkserver, wire
from .wire import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from .work_items import Ticket

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
        """Everything that a dead peer has left in the socket."""
        frames: list[Frame] = []
        self.dry = False
        while not (self.ended or self.dry):
            frames.extend(self.receive())
        return frames

    def close(self) -> None:
        """Close the socket and every descriptor on its way."""
        self.reader.close()
        self.writer.close()
        self.sock.close()


class StarterLink(Link):
    """The starter process, as its caller sees it."""

    def __init__(self, *modules: str) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        # It is inheritable in the new process alone: another thread may start a program meanwhile.
        with theirs, _closed_on_error(self.sock), _interrupt_blocked():
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter
                forkserver.command(theirs.fileno(), *modules),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
            )

    def spawn(self, serial: int, tracker: int) -> WorkerLink:
        """Have a worker forked; frames may be sent to it at once.

        ``tracker`` is where it notes what is to be removed in the end.
        """
        ours, theirs = socket.socketpair()
        with theirs, _closed_on_error(ours):
            board = Board()
            fds = (theirs.fileno(), board.fd, tracker)
            birth = child.Birth(serial, os.getpid(), child.caller_name(), working_directory())
            self.writer.send(Frame(Kind.SPAWN, chunk=serial, body=pickle.dumps(birth), fds=fds))
        os.close(board.fd)
        return WorkerLink(ours, board, serial)

    def signal(self, serial: int, number: int) -> None:
        """Send a signal to a worker; nothing happens where it has ended already."""
        self.writer.send(Frame(Kind.SIGNAL, chunk=serial, first=number))

    def dismiss(self, workers: Iterable[WorkerLink]) -> None:
        """Have all workers end, and the starter after them; those that are busy are killed."""
        for worker in workers:
            if worker.tickets:
                self.signal(worker.serial, signal.SIGKILL)
            else:
                worker.writer.send(Frame(Kind.STOP))
        self.writer.send(Frame(Kind.END))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def end(self) -> None:
        """Close the socket: the starter kills the workers and ends."""
        self.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def abandon(self) -> None:
        """In a forked child: close our copies; the process is not ours."""
        self.close()
        self._process.returncode = 0  # no warning that it still runs


@contextlib.contextmanager
def _closed_on_error(sock: socket.socket) -> Generator[None]:
    """What was opened goes where the rest cannot be: no descriptors are left, for one."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def _interrupt_blocked() -> Generator[None]:
    """The mask is inherited: Ctrl-C finds the starter ignoring it from its first instruction."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _environment() -> dict[str, str]:
    """One BLAS thread until a call says otherwise: the starter must have no other threads."""
    return {**dict.fromkeys(BLAS_VARIABLES, "1"), **os.environ, **_hash_seed()}


def _hash_seed() -> dict[str, str]:
    """The seed of hashes that this process began with, whatever its environment says by now."""
    try:
        with open("/proc/self/environ", "rb") as file:
            began_with = file.read().split(b"\0")
    except OSError:
        return {}
    seeds = [each for each in began_with if each.startswith(b"PYTHONHASHSEED=")]
    return {"PYTHONHASHSEED": os.fsdecode(seeds[0].partition(b"=")[2])} if seeds else {}


def working_directory() -> str:
    """The caller's; "/" where it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Why a worker was stopped, and what must still hold on its board for it to be killed."""

    reason: str
    chunk: int
    started: int | None
    until: float  # the time by which it has stopped
    reached: int = 0  # bytes of private memory


class WorkerLink(Link):
    """A worker, as its caller sees it: what it was given, and its board."""

    def __init__(self, sock: socket.socket, board: Board, serial: int) -> None:
        super().__init__(sock)
        self.board = board
        self.serial = serial
        self.pid: int | None = None
        self.ran = 0  # items
        self.leaving = False  # it gets no more chunks
        self.leave_by = 0.0  # it was told to end, and is killed then
        self.tickets: deque[Ticket] = deque()
        self.seen_at = 0  # the chunk in hand when somebody last looked
        self.tokens: dict[int, bool] = {}  # published values it has; True: with a descriptor
        self.suspicion: Suspicion | None = None
        self.verdict: Suspicion | None = None
        self.exit: tuple[int | None, int | None, int | None] | None = None

    def free_slot(self) -> int:
        """The place on the board, 0 or 1, where its next chunk can be cancelled."""
        return 1 - self.tickets[0].slot if self.tickets else 0

    def prepare(self, slot: int) -> None:
        """Wipe out what was noted about the chunk that had this slot before."""
        words = self.board.words
        words[Word.NOTE + slot] = (words[Word.NOTE + slot] + HURRY) & ~GIVE_UP

    def cancel(self, ticket: Ticket) -> None:
        """Have the worker give a chunk up between two items."""
        self.board.words[Word.NOTE + ticket.slot] |= GIVE_UP

    def hurry(self) -> None:
        """Have the worker send what it has after the item in hand."""
        if self.tickets:
            self.board.words[Word.NOTE + self.tickets[0].slot] += HURRY

    def in_hand(self) -> int:
        """The number of the chunk that it is working on, or worked on last."""
        return self.board.words[Word.CHUNK]

    def still(self, suspicion: Suspicion) -> bool:
        """True where the stopped worker is at the very item that it was stopped for."""
        words = self.board.words
        return words[Word.CHUNK] == suspicion.chunk and suspicion.started in (
            None,
            words[Word.STARTED],
        )
