"""What others may not reach, and what is not believed: the claims of SECURITY.md."""

import array
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from users import NOBODY, as_nobody, as_root

from sharedtask import (
    CopyOnWrite,
    NameRefusedError,
    SerializationError,
    Shared,
    SharedTaskError,
    WorkerDiedError,
    attach,
    options,
    parallel,
    share,
    shutdown,
)
from sharedtask.backends.process import wire
from sharedtask.backends.process.wire import Frame, Kind, ProtocolError
from sharedtask.backends.worker import envelope, result_format
from sharedtask.memory import segments, unlinked_files
from sharedtask.memory.segments import Layout
from sharedtask.serialization import codec
from sharedtask.store import stores

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[2]

# ------------------------------------------------------------------- a map, looked at from outside

PROGRAM = """
import os
import numpy as np
from sharedtask import CopyOnWrite, Partitioned, Reduced, Shared, parallel, share, zeros

def hold(item, table: Shared, own: CopyOnWrite, out: Partitioned, total: Reduced):
    own[0] = out[...] = 1
    ready, go = (os.open(name, os.O_RDWR) for name in ("ready", "go"))
    os.write(ready, f"{os.getpid()}\\n".encode())
    os.read(go, 1)
    return np.full(300_000, 1.0)

table, out, total = np.ones(100_000), zeros(2), np.zeros(9)
task = parallel(backend="process", workers=2)(hold)
with share(table, name="table"), share({"rows": table}, name="dict"):
    print("CALLER", os.getpid(), flush=True)
    found = task.map([0, 1], table=table, own=table + 1, out=out, total=total)
    print("SUM", sum(each.sum() for each in found), flush=True)
"""


@dataclass
class Running:
    """A program in the middle of a map: its processes."""

    caller: int
    forkserver: int
    workers: list[int]

    @property
    def pids(self) -> list[int]:
        return [self.caller, self.forkserver, *self.workers]

    def descriptors(self) -> list[tuple[str, str]]:
        """What each process has open: the path in /proc and what it leads to."""
        paths = [
            f"/proc/{pid}/fd/{fd}" for pid in self.pids for fd in os.listdir(f"/proc/{pid}/fd")
        ]
        return [(path, os.readlink(path)) for path in paths]

    def memory(self) -> list[str]:
        """The descriptors of shared memory."""
        return [path for path, target in self.descriptors() if "memfd:sharedtask" in target]


@pytest.fixture
def running(script: Callable[..., Any], tmp_path: Path) -> Iterator[Running]:
    """A program whose two workers are both in the middle of an item."""
    for name in ("ready", "go"):
        os.mkfifo(tmp_path / name)
    # Open for both, so that neither end is ever missing.
    ready, go = (os.open(tmp_path / name, os.O_RDWR) for name in ("ready", "go"))
    folder = tmp_path / "temporary"
    folder.mkdir()
    program = script(
        PROGRAM, SHAREDTASK_STORE="memfd", SHAREDTASK_NAMES_DIR=str(tmp_path), TMPDIR=str(folder)
    )
    caller = int(program.wait_for("CALLER"))
    with open(ready) as lines:
        workers = [int(next(lines)), int(next(lines))]
    yield Running(caller, int(status_of(workers[0], "PPid")), workers)
    assert "600000.0" == let_go(program, go)
    assert (0, "") == (program.end(), program.err)


def let_go(program: Any, go: int) -> str:
    os.write(go, b"xx")
    try:
        return str(program.wait_for("SUM"))
    finally:
        os.close(go)


def status_of(pid: int, key: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{key}:"))


def flags_of(path: str) -> int:
    text = Path(path.replace("/fd/", "/fdinfo/")).read_text()
    return next(int(line.split()[1], 8) for line in text.splitlines() if "flags:" in line)


def seals_of(path: str) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return fcntl.fcntl(fd, segments._F_GET_SEALS)
    finally:
        os.close(fd)


def listening(pid: int) -> set[str]:
    """The sockets, by inode, that somebody in the process's network listens on or can name."""
    found = set()
    for protocol in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]:
            if line.split()[3] == "0A":
                found.add(line.split()[9])
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & 0x10000 or len(fields) > 7:
            found.add(fields[6])
    return found


def test_nobody_listens(running: Running) -> None:
    """Caller, forkserver and workers have sockets, and none of them listens or has a name."""
    sockets = {
        target[len("socket:[") : -1]
        for _, target in running.descriptors()
        if target.startswith("socket:[")
    }
    assert 4 <= len(sockets)
    assert set() == sockets & listening(running.caller)


def test_a_listener_would_be_found() -> None:
    """The test above sees a socket that listens, on the network or under a name."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(b"\0sharedtask-test-%d" % os.getpid())
        inodes = {str(os.fstat(sock.fileno()).st_ino) for sock in (tcp, unix)}
        assert inodes <= listening(os.getpid())


def test_memory_is_closed_to_others(running: Running) -> None:
    """Every segment has mode 0600 or tighter, keeps its size, and is closed on exec."""
    memory = running.memory()
    assert len(memory) >= 6
    for path in memory:
        assert 0 == stat.S_IMODE(os.stat(path).st_mode) & ~0o600
        assert segments.FIXED_SIZE == seals_of(path) & segments.FIXED_SIZE
        assert flags_of(path) & os.O_CLOEXEC


def test_shared_values_are_sealed(running: Running) -> None:
    """Shared and CopyOnWrite values and the dict under a name can be written by no one."""
    frozen = [
        path for path in running.memory() if seals_of(path) & segments.FROZEN == segments.FROZEN
    ]
    large = {os.stat(path).st_ino for path in frozen if os.stat(path).st_size >= 800_000}
    assert 3 == len(large)
    for path in frozen:
        with pytest.raises(PermissionError), open(path, "r+b", buffering=0) as file:
            file.write(b"x")


def test_forkserver_and_workers_pass_nothing_on(running: Running) -> None:
    """All that they have open besides the three streams is closed on exec."""
    others = [p for p, _ in running.descriptors() if f"/{running.caller}/" not in p]
    open_on = [p for p in others if int(Path(p).name) > 2 and not flags_of(p) & os.O_CLOEXEC]
    assert [] == [os.readlink(path) for path in open_on]


def is_of_the_pool(name: str) -> bool:
    """Workers that loky starts, in tests that run at the same time, have files."""
    return "sharedtask" in name and "loky" not in name


def test_no_named_objects(running: Running, tmp_path: Path) -> None:
    """Nothing is made in /dev/shm or in the folder for temporary files."""
    assert [] == os.listdir(tmp_path / "temporary")
    assert [] == [name for name in os.listdir("/dev/shm") if is_of_the_pool(name)]
    assert [] == [target for _, target in running.descriptors() if target.startswith("/dev/shm")]
    for pid in running.pids:
        assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()


def test_memory_is_left_out_of_core_dumps(running: Running) -> None:
    """What a worker has mapped of shared memory does not go into its core dump."""
    assert int(Path("/proc/self/coredump_filter").read_text(), 16) & 2
    for pid in running.workers:
        assert 0 == int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16) & 2


@as_root
def test_another_user_opens_nothing(running: Running) -> None:
    """Another user can neither list nor open what caller, forkserver and workers have open."""
    paths = running.memory()

    def attempts() -> list[str]:
        tries: list[Callable[[], object]] = [
            *(lambda path=path: os.open(path, os.O_RDONLY) for path in paths),
            *(lambda pid=pid: os.listdir(f"/proc/{pid}/fd") for pid in running.pids),
            *(lambda pid=pid: os.open(f"/proc/{pid}/mem", os.O_RDONLY) for pid in running.pids),
        ]
        return [outcome(each) for each in tries]

    answers = as_nobody(attempts)
    assert str(["PermissionError"] * (len(paths) + 8)) == answers


def outcome(use: Callable[[], object]) -> str:
    try:
        use()
    except Exception as error:
        return type(error).__name__
    return "done"


# ------------------------------------------------------------------------- what a task passes on


def inherited(_x: int, table: Shared[Any], own: CopyOnWrite[Any]) -> str:
    return listed_by_a_child()


def listed_by_a_child() -> str:
    command = ["ls", "-l", "/proc/self/fd"]
    ran = subprocess.run(command, capture_output=True, text=True, close_fds=False, check=True)
    return ran.stdout


def test_program_started_by_a_task_inherits_nothing() -> None:
    """A program that a task starts without closing descriptors has none of ours."""
    table = np.ones(100_000)
    task = parallel(backend="process")(inherited)
    for told in (*task.map(range(2), table=table, own=table + 1), listed_by_a_child()):
        assert "/proc/" in told
        for ours in ("memfd:", "socket:", "userfaultfd", "pagemap"):
            assert ours not in told


def test_forkserver_socket_is_never_inheritable_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the forkserver is started, a program of another thread would not get its socket."""
    seen: list[bool] = []
    real = subprocess.Popen

    def popen(*args: Any, pass_fds: tuple[int, ...] = (), **kwargs: Any) -> Any:
        seen.extend(map(os.get_inheritable, pass_fds))
        return real(*args, pass_fds=pass_fds, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", popen)
    shutdown()
    assert [1] == parallel(abs).with_options(backend="process").map([-1])
    assert [False] == seen


# ------------------------------------------------------------------------- names and other users


@as_root
@pytest.mark.parametrize(
    ("squats", "reason"),
    [
        (lambda top: (top / "sharedtask").mkdir(mode=0o700), f"belongs to user {NOBODY}"),
        (lambda top: (top / "sharedtask").mkdir(mode=0o777), f"belongs to user {NOBODY}"),
        (lambda top: (top / "sharedtask").symlink_to(top / "own"), "a link or a file"),
        (lambda top: (top / "sharedtask").touch(), "a link or a file"),
    ],
    ids=["directory", "open directory", "link", "file"],
)
def test_squatted_names_are_refused(
    squats: Callable[[Path], object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another user was first at the place of the names, nothing is read or written there."""
    top = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("SHAREDTASK_NAMES_DIR", str(top))
    try:
        top.chmod(0o1777)
        (top / "own").mkdir(mode=0o700)
        assert "None" == as_nobody(lambda: squats(top) and None)
        for use in (lambda: share(1, name="one"), lambda: attach("one")):
            with pytest.raises(NameRefusedError, match=reason):
                use()
        assert [] == os.listdir(top / "own")
    finally:
        shutil.rmtree(top)


@as_root
def test_other_user_cannot_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user who knows a name is told that it is not theirs."""
    top = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("SHAREDTASK_NAMES_DIR", str(top))
    try:
        top.chmod(0o755)
        with share(np.ones(3), name="ones"):
            assert "NameRefusedError: " in as_nobody(lambda: attach("ones"))
    finally:
        shutil.rmtree(top)


# ---------------------------------------------------------------------------- segments in files


@pytest.fixture
def file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Segments are made of files, in a folder of the test's own."""
    folder = tmp_path / "store"
    folder.mkdir()
    monkeypatch.setenv("SHAREDTASK_STORE", "file")
    monkeypatch.setenv("SHAREDTASK_STORE_DIR", str(folder))
    return folder


def test_file_is_made_for_its_user_alone(file_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has 128 random bits in its name, mode 0600 whatever the umask, and no name at once."""
    made: list[tuple[str, int, int]] = []
    real = os.open

    def spy(path: Any, flags: int, mode: int = 0o777, **kwargs: Any) -> int:
        made.append((str(path), flags, mode))
        return real(path, flags, mode, **kwargs)

    monkeypatch.setattr(os, "open", spy)
    before = os.umask(0)
    try:
        fd = unlinked_files.create("sharedtask-")
    finally:
        os.umask(before)
    (name, flags, mode) = made[-1]
    assert re.fullmatch(r"sharedtask-[0-9a-f]{32}", name)
    assert os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC == flags & (
        os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    )
    assert 0o600 == mode == stat.S_IMODE(os.fstat(fd).st_mode)
    assert 0 == os.fstat(fd).st_nlink
    assert [] == os.listdir(file_store)
    os.close(fd)


@pytest.mark.parametrize(("mode", "taken"), [(0o777, False), (0o1777, True), (0o700, True)])
def test_folder_where_everybody_renames(file_store: Path, mode: int, taken: bool) -> None:
    """A folder that everybody may write is taken only with the sticky bit."""
    file_store.chmod(mode)
    if taken:
        os.close(unlinked_files.create("x"))
        assert [] == os.listdir(file_store)
        return
    with pytest.raises(SharedTaskError, match=r"mode 777.*SHAREDTASK_STORE_DIR"):
        unlinked_files.create("x")


@pytest.mark.parametrize("spoils", ["link", "owner"])
def test_file_that_others_have_is_refused(
    file_store: Path, spoils: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that keeps a name, or that belongs to somebody else, is not used."""
    if spoils == "link":
        monkeypatch.setattr(os, "unlink", lambda *_, **__: None)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY + 1)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SharedTaskError, match="keeps a name, or has another owner"):
        unlinked_files.create("x")
    assert before == len(os.listdir("/proc/self/fd"))


# -------------------------------------------------------------------------- damaged segments


@pytest.fixture
def published() -> Iterator[stores.SegmentStore]:
    """A value in a segment, as its publisher has it."""
    store = stores.seal(codec.encode({"rows": np.arange(9000.0), "name": "text"}))
    yield store
    store.close()


def forged(
    store: stores.SegmentStore, change: Callable[[bytearray], object], seals: int = segments.FROZEN
) -> tuple[int, Any]:
    """A segment with other contents, and the mark that it would have."""
    assert store.fd is not None
    data = bytearray(os.pread(store.fd, store.nbytes, 0))
    change(data)
    fd = segments._create()
    os.pwrite(fd, data, 0)
    if segments.uses_memfd():
        fcntl.fcntl(fd, segments._F_ADD_SEALS, seals)
    status = os.fstat(fd)
    return fd, store.mark._replace(device=status.st_dev, inode=status.st_ino)


def refused(store: stores.SegmentStore, fd: int, mark: Any, layout: Layout | None = None) -> str:
    """Why a segment is refused."""
    with pytest.raises(SharedTaskError) as caught:
        stores.unseal(fd, layout or store.layout, mark)
    os.close(fd)
    return str(caught.value)


def test_segment_that_was_published_is_taken(published: stores.SegmentStore) -> None:
    """Without damage the value comes out: what follows here is refused for its damage."""
    fd, mark = forged(published, lambda _: None)
    store = stores.unseal(fd, published.layout, mark)
    assert np.array_equal(np.arange(9000.0), store.value()["rows"])
    assert "text" == store.private_value()["name"]
    store.close()


def test_every_byte_of_head_and_mark_counts(published: stores.SegmentStore) -> None:
    """With any one bit of the head or of the mark flipped nothing is unpickled."""
    start, length = published.layout.parts[-1]
    places = [*range(start, start + length), *range(published.mark.at, published.mark.at + 16)]
    assert len(places) > 100
    for place in places:

        def flip(data: bytearray, place: int = place) -> None:
            data[place] ^= 1 << place % 8

        reason = refused(published, *forged(published, flip))
        assert ("head was damaged" if place < start + length else "carry the mark") in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.__delitem__(slice(-1, None)), "bytes were announced"),
        (lambda data: data.clear(), "bytes were announced"),
        (lambda data: data.__setitem__(slice(None), bytes(len(data))), "carry the mark"),
    ],
    ids=["truncated", "empty", "zeros"],
)
def test_other_contents_are_refused(
    published: stores.SegmentStore, change: Any, reason: str
) -> None:
    """A segment that is shorter, or has other contents, is not used."""
    assert reason in refused(published, *forged(published, change))


@pytest.mark.parametrize("seals", [0, segments.FIXED_SIZE, segments.FROZEN & ~2], ids=str)
def test_missing_seals_are_refused(
    published: stores.SegmentStore, seals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that could still be changed is not used, though every byte is right."""
    monkeypatch.delenv("SHAREDTASK_STORE", raising=False)
    assert "not sealed" in refused(published, *forged(published, lambda _: None, seals))


def test_reused_descriptor_is_refused(published: stores.SegmentStore) -> None:
    """Another segment, also one with the same bytes, is not the one that was told of."""
    fd, _ = forged(published, lambda _: None)
    assert "another file by now" in refused(published, fd, published.mark)


@pytest.mark.parametrize(
    "change", [{"nonce": bytes(16)}, {"at": 0}, {"at": 1 << 40}, {"checksum": 1}], ids=str
)
def test_wrong_mark_is_refused(published: stores.SegmentStore, change: Any) -> None:
    """A mark that does not fit refuses the segment."""
    fd, mark = forged(published, lambda _: None)
    assert "refused" in refused(published, fd, mark._replace(**change))


@pytest.mark.parametrize(
    "parts", [(), ((0, 1 << 40),), ((-8, 8),), ((8, -8),), ((1 << 62, 1 << 62),)], ids=str
)
def test_parts_beyond_the_segment_are_refused(published: stores.SegmentStore, parts: Any) -> None:
    """Parts that do not lie within the segment are not looked at."""
    fd, mark = forged(published, lambda _: None)
    reason = refused(published, fd, mark, Layout(parts, published.layout.size))
    assert "do not lie within" in reason


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory"])
def test_what_is_no_file_is_refused(published: stores.SegmentStore, kind: str) -> None:
    """A descriptor that is no memory at all is refused."""
    if kind == "pipe":
        fd, other = os.pipe()
    elif kind == "socket":
        fd, other = (end.detach() for end in socket.socketpair())
    else:
        fd, other = (os.open(ROOT, os.O_RDONLY) for _ in range(2))
    os.close(other)
    assert "bytes were announced" in refused(published, fd, published.mark)


# ----------------------------------------------------------------- the same, through whole calls


def row_sum(row: int, table: Shared[Any]) -> float:
    return float(table["rows"].sum()) + row


def private_sum(row: int, table: CopyOnWrite[Any]) -> float:
    return float(table["rows"].sum()) + row


@pytest.mark.parametrize("function", [row_sum, private_sum])
def test_damaged_value_is_an_error_of_the_call(function: Any, new_file_pool: None) -> None:
    """A head that was overwritten is an error that says so; with the damage undone all is well."""
    task = parallel(backend="process", workers=1)(function)
    with share({"rows": np.ones(9000)}) as handle:
        store: Any = handle.publication.store
        place = store.layout.parts[-1][0] + 40
        overwrite(store.fd, place)
        for _ in range(2):
            with pytest.raises(SharedTaskError, match="its head was damaged"):
                task.map([0], table=handle)
        overwrite(store.fd, place)
        shutdown()
        assert [9000.0] == task.map([0], table=handle)


@pytest.fixture
def new_file_pool(file_store: Path) -> Iterator[None]:
    """Workers know the store of the time when they were started."""
    shutdown()
    yield
    shutdown()


def overwrite(fd: int, place: int) -> None:
    """Flip a byte, as only a process of the same user can."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.pwrite(again, bytes((os.pread(again, 1, place)[0] ^ 0x55,)), place)
    os.close(again)


def test_value_whose_descriptor_is_lost_is_there_again(common_check: None) -> None:
    """Where other code has put a file of its own in the place of a segment, that is left alone."""
    task = parallel(backend="process")(row_sum)
    with share({"rows": np.ones(9000)}) as handle:
        store: Any = handle.publication.store
        twin, _ = forged(store, lambda _: None)
        place = store.fd
        os.dup2(twin, place, inheritable=False)
        os.close(twin)
        assert [9000.0 + row for row in range(4)] == task.map(range(4), table=handle)
    os.close(place)
    task.cache_clear()


# --------------------------------------------------------------------------------- frames

FRAMES = [
    Frame(Kind.CHUNK, 7, 3, 100, 0, b"body of a chunk"),
    Frame(Kind.RESULTS, 1 << 40, 0, 1, 12_345, b""),
    Frame(Kind.DROP, 5),
]


def read(data: bytes) -> list[Frame]:
    """The frames that a reader finds in what a peer has sent before it ended."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = wire.Reader(ours)
        theirs.sendall(data)
        theirs.close()
        found = []
        try:
            while reader.fill():
                found += reader.frames()
        finally:
            reader.close()
    return found


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"kind {frame.kind}")
def test_every_bit_of_a_header_counts(frame: Frame) -> None:
    """With any one bit of its header flipped nothing of a frame is believed."""
    header = frame.header()
    assert [frame] == read(header + frame.body)
    for bit in range(8 * len(header)):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError, match="not a frame"):
            read(bytes(flipped) + bytes(frame.body))


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"kind {frame.kind}")
def test_cut_frame_is_no_frame(frame: Frame) -> None:
    """A peer that ends in the middle of a frame has not sent it."""
    data = frame.header() + frame.body
    for length in range(len(data)):
        assert [] == read(data[:length])


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_frame(data: bytes) -> None:
    """Whatever arrives is a ProtocolError, or nothing where it is too short to tell."""
    with contextlib.suppress(ProtocolError):
        assert [] == read(data)


@settings(max_examples=examples(100), deadline=None)
@given(st.sampled_from(FRAMES), st.binary(min_size=44, max_size=100))
def test_random_bytes_after_a_frame(frame: Frame, data: bytes) -> None:
    """What follows a frame is looked at again."""
    with pytest.raises(ProtocolError):
        read(frame.header() + frame.body + data)


def test_descriptors_that_did_not_come() -> None:
    """A frame that tells of descriptors which did not come with it is an error, no crash."""
    header = Frame(Kind.CHUNK, fds=(1, 2, 3)).header()
    with pytest.raises(ProtocolError, match="3 descriptors were sent with a frame, and 0"):
        read(header)


def test_descriptors_that_nobody_told_of() -> None:
    """Descriptors that come with garbage are closed."""
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = wire.Reader(ours)
        told = array.array("i", [0, 0]).tobytes()
        theirs.sendmsg([b"x" * 50], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, told)])
        assert reader.fill()
        with pytest.raises(ProtocolError):
            reader.frames()
        reader.close()
    assert before == len(os.listdir("/proc/self/fd"))


def write_to_own_socket(x: int) -> int:
    """What a task does that writes to a descriptor which is not its own."""
    if x == 3:
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    os.write(int(name), b"\x48\x53" + bytes(range(100)))
        os.kill(os.getpid(), signal.SIGSTOP)  # it is the caller's to end it
    return x


def test_garbage_from_a_worker_is_its_end(common_check: None) -> None:
    """A worker that sends what is no frame is ended; the others and their results are right."""
    task = parallel(write_to_own_socket).with_options(
        backend="process", chunksize=1, return_exceptions=True
    )
    found: list[Any] = task.map(range(8))
    assert isinstance(found[3], WorkerDiedError)
    assert [0, 1, 2, 4, 5, 6, 7] == [x for x in found if isinstance(x, int)]


# -------------------------------------------------------------------------------- results


def loaded(mode: int, data: bytes, count: int) -> Any:
    return result_format.load_batch(mode, data, count, 5, "task", iter(()))


@pytest.mark.parametrize(
    ("mode", "value"),
    [
        (result_format.FLOATS, 1.5),
        (result_format.INTS, 7),
        (result_format.BOOLS, True),
        (result_format.SCALARS, "text"),
        (result_format.NUMPY, np.float32(2.5)),
        (result_format.RECORDS, {"a": np.arange(9)}),
    ],
)
def test_cut_results_are_errors_of_their_items(mode: int, value: Any) -> None:
    """Results that end too early are the errors of these items, never a value."""
    if mode in result_format.COLUMN_MODES:
        data = struct.pack(result_format.COLUMN_MODES[mode], value)
    elif mode == result_format.RECORDS:
        data = result_format.record(result_format.OK, envelope.pack_inline(codec.encode(value)))
    else:
        data = result_format.dump_scalar(value)
    assert {} == loaded(mode, data, 1).errors
    for length in range(len(data)):
        batch = loaded(mode, data[:length], 1)
        assert isinstance(batch.errors[0], SerializationError)
        assert "item 5" in str(batch.errors[0])
        assert [None] == batch.values


@settings(max_examples=examples(200), deadline=None)
@given(
    st.integers(7, 127) | st.sampled_from(sorted(result_format.COLUMN_MODES)),
    st.binary(max_size=40),
)
def test_random_results_have_an_outcome_each(mode: int, data: bytes) -> None:
    """Whatever a message says it has, each item has an outcome and each error is ours."""
    batch = loaded(mode, data, 3)
    assert 3 == len(batch.values)
    assert all(isinstance(error, SharedTaskError) for error in batch.errors.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1], "envelope"),
        (lambda data: data[:1] + struct.pack("<I", 1 << 31) + data[5:], "buffer"),
        (lambda data: data[:1] + struct.pack("<I", 0) + data[5:], "index"),
        (lambda data: bytes((1,)) + data[1:], "has not come with it"),
        (lambda data: bytes((2,)) + data[1:], "has not come with it"),
    ],
    ids=["cut", "too many", "none", "in a segment", "beside"],
)
def test_damaged_envelope_is_refused(change: Any, reason: str) -> None:
    """An envelope is taken only where its lengths fit the message."""
    data = envelope.pack_inline(codec.encode([b"x" * 100_000, bytearray(b"y" * 100_000)])).data
    with pytest.raises(envelope.DAMAGED, match=reason):
        envelope.unpack(memoryview(change(data)), iter(()), private=False)


@pytest.mark.parametrize("part", [(1 << 40, 8), (0, 1 << 40)])
def test_parcel_beyond_its_segment_is_refused(part: tuple[int, int]) -> None:
    """An envelope in a segment is taken only where its lengths fit the segment."""
    packed = envelope.pack(codec.encode(np.ones(200_000)), frozen=False)
    assert packed.file is not None
    data = bytearray(packed.data)
    struct.pack_into("<QQ", data, 5, *part)
    with pytest.raises(SharedTaskError, match="do not lie within"):
        envelope.unpack(memoryview(data), iter((packed.file.number,)), private=False)
    packed.close()


def scribble(x: int) -> int:
    """What native code does that writes over memory of others, and crashes."""
    if x == 2:
        frame: Any = sys._getframe()
        while "words" not in frame.f_locals:
            frame = frame.f_back
        frame.f_locals["words"][2] = 1 << 60  # how many results lie in the outbox
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_damaged_board_is_not_believed(common_check: None) -> None:
    """A worker that dies after writing over its board costs an item and no memory."""
    task = parallel(scribble).with_options(
        backend="process", chunksize=4, workers=1, return_exceptions=True
    )
    found = task.map(range(8))
    assert [3, 4, 5, 6, 7] == found[3:]
    assert 1 <= sum(isinstance(each, WorkerDiedError) for each in found)


# ------------------------------------------------------------------------------ environment

EVIL = """
import sys
open({marker!r}, "a").write(sys.argv[0] + "\\n")
"""

VARIABLES = """
import os, sys
import numpy as np
from sharedtask import Shared, SharedTaskError, parallel, share, shutdown

def modules(x, table: Shared):
    return "evil" in sys.modules

table = np.ones(20_000)
ran = 0
for name in sys.argv[1:]:
    for value in ("evil", "evil:run", "evil.run", "/no/where:evil"):
        os.environ[name] = value
        try:
            assert parallel(modules).map([0, 1], table=table) == [False, False]
            with share({"a": 1}, name="one") as handle:
                ran += 1
        except (SharedTaskError, OSError):
            pass
        del os.environ[name]
    shutdown()
assert "evil" not in sys.modules
print("RAN", ran > 0)
"""


def variables() -> list[str]:
    """Every variable of ours that the library reads."""
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    found = {name for text in sources for name in re.findall(r"\bSHAREDTASK_[A-Z_]*[A-Z]\b", text)}
    return sorted(found | set(options.VARIABLES))


def test_no_variable_names_code(script: Callable[..., Any], tmp_path: Path) -> None:
    """Whatever is in a variable of ours, no module is imported for it, here or in a worker."""
    marker = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(EVIL.format(marker=str(marker)))
    names = variables()
    assert {"SHAREDTASK_BACKEND", "SHAREDTASK_STORE", "SHAREDTASK_NAMES_DIR"} <= set(names)
    ran = script(VARIABLES, *names)
    assert 0 == ran.end(50), ran.err
    assert "RAN True\n" == ran.out
    assert not marker.exists()


def test_start_of_workers_follows_python(run: Callable[..., str], tmp_path: Path) -> None:
    """PYTHONSTARTUP is not run, PYTHONPATH is what it is to the caller, the folder is not."""
    marker = tmp_path / "imported"
    here, library = tmp_path / "here", tmp_path / "library"
    for folder in (here, library):
        folder.mkdir()
    for path in (tmp_path / "startup.py", here / "numpy.py", here / "pickle.py"):
        path.write_text(EVIL.format(marker=str(marker)))
    (library / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    out = run(
        f"""
import os
os.chdir({str(here)!r})  # anybody may have left modules there
import helper
from sharedtask import parallel
print(parallel(helper.double).with_options(backend="process").map([1, 2]))
""",
        PYTHONSTARTUP=str(tmp_path / "startup.py"),
        PYTHONPATH=os.pathsep.join([str(library), *filter(None, sys.path)]),
    )
    assert "[2, 4]\n" == out
    assert not marker.exists()


# ------------------------------------------------------------------------------ what is told


def test_tests_that_are_told_of_exist() -> None:
    """SECURITY.md names the tests that hold it to its word."""
    text = (ROOT / "SECURITY.md").read_text()
    told = set(re.findall(r"`(test_\w+)`", text))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(told) > 10
    assert [] == sorted(name for name in told if f"def {name}(" not in sources)
