import ctypes
import errno
import fcntl
import mmap
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import ALL

from sharedtask import SharedTaskError, StoreFullError, parallel, share, shutdown
from sharedtask.memory import capacity, mapping, segments
from sharedtask.serialization import codec
from sharedtask.system import libc

pytestmark = pytest.mark.timeout(60)

F_GET_SEALS = 1034


@pytest.fixture(params=["memfd", "file"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of segments."""
    name: str = request.param
    if name == "file":
        monkeypatch.setenv("SHAREDTASK_STORE", "file")
    else:
        monkeypatch.delenv("SHAREDTASK_STORE", raising=False)
    return name


@pytest.fixture(params=[100, 1 << 20, 5_000_001], ids=["small", "1 MiB", "5 MB"])
def segment(request: pytest.FixtureRequest, store: str) -> Iterator[segments.Segment]:
    """A frozen segment of several sizes in either store."""
    made = segments.write(codec.encode(np.full(request.param, 7, np.uint8)))
    yield made
    made.close()


def content(fd: int, size: int) -> Any:
    return mapping.view(fd, size)


def test_segment_holds_its_parts(segment: segments.Segment) -> None:
    """Head and buffers stand where the layout says."""
    head, buffers = segment.layout.split(content(segment.fd, segment.size))
    array = codec.decode(head, buffers)
    assert 7 * array.size == array.sum()


def test_frozen_segment_cannot_be_written(segment: segments.Segment) -> None:
    """write(2), pwrite(2) and a writable mapping of a frozen segment are refused."""
    with pytest.raises(OSError):
        os.pwrite(segment.fd, b"x", 0)
    with pytest.raises(OSError):
        os.write(segment.fd, b"x")
    with pytest.raises(OSError):
        mmap.mmap(segment.fd, segment.size)
    with pytest.raises(OSError):
        mapping.view(segment.fd, segment.size, writable=True)
    assert 7 == content(segment.fd, segment.size)[segment.layout.parts[0][0]]


def test_frozen_segment_cannot_change_its_size(segment: segments.Segment) -> None:
    """A segment can be neither shrunk nor grown: a reader would die by SIGBUS."""
    for size in (0, segment.size - 1, segment.size + 1_000_000):
        with pytest.raises(OSError):
            os.ftruncate(segment.fd, size)


def test_mapping_cannot_be_made_writable(segment: segments.Segment) -> None:
    """mprotect(2) of a reader's mapping is refused."""
    view = content(segment.fd, segment.size)
    c = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(mapping.address_of(view))
    assert -1 == c.mprotect(address, ctypes.c_size_t(mmap.PAGESIZE), 3)
    assert errno.EACCES == ctypes.get_errno()


def test_memfd_cannot_be_opened_for_writing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sealed memfd that is opened again through /proc is sealed still."""
    monkeypatch.delenv("SHAREDTASK_STORE", raising=False)
    made = segments.write(codec.encode(np.ones(1000)))
    try:
        again = os.open(f"/proc/self/fd/{made.fd}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(again, 0)
        os.close(again)
        wanted = segments.FROZEN
        assert wanted == fcntl.fcntl(made.fd, F_GET_SEALS) & wanted
    finally:
        made.close()


def test_nobody_else_may_open_a_segment(segment: segments.Segment) -> None:
    """Mode 0600, close-on-exec, no name."""
    status = os.fstat(segment.fd)
    assert 0o600 == stat.S_IMODE(status.st_mode)
    assert 0 == status.st_nlink
    assert not os.get_inheritable(segment.fd)
    names = [name for name in os.listdir("/dev/shm") if "sharedtask" in name]
    assert not [name for name in names if "loky" not in name]


def test_scratch_keeps_its_size(store: str) -> None:
    """Memory that two processes may write keeps its size where the system can promise it."""
    fd = segments.scratch(8192)
    try:
        assert 8192 == os.fstat(fd).st_size
        assert 0o600 == stat.S_IMODE(os.fstat(fd).st_mode)
        assert not os.get_inheritable(fd)
        mapping.view(fd, 8192, writable=True)[:] = 1
        if store == "memfd":
            with pytest.raises(PermissionError):
                os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_wrong_descriptor_is_refused(tmp_path: Path) -> None:
    """A descriptor that is too short, or not sealed, is not mapped."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    with path.open("rb") as file:
        with pytest.raises(SharedTaskError, match="101 bytes were announced"):
            segments.check(file.fileno(), 101, frozen=True)
        with pytest.raises(SharedTaskError, match="not sealed"):
            segments.check(file.fileno(), 100, frozen=True)


def test_view_keeps_the_memory_and_gives_it_back(segment: segments.Segment) -> None:
    """The mapping lives as long as a view of it, and no longer."""
    view = content(segment.fd, segment.size)
    address = mapping.address_of(view)
    part = view[3:5]
    del view
    assert is_mapped(address)
    assert 2 == len(part.tolist())
    del part
    assert not is_mapped(address)


def is_mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if start <= address < end:
            return "sharedtask" in line
    return False


def test_view_cannot_be_made_writable(segment: segments.Segment) -> None:
    """``flags.writeable`` of a read-only view is a ValueError, never a crash."""
    view = content(segment.fd, segment.size)
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True


@pytest.mark.parametrize(
    "size", [1, 4095, 4096, 4097, 1 << 21, (1 << 22) - 1, (1 << 22) + 1, 9_437_185]
)
def test_bytes_are_exact_at_every_size(size: int, store: str) -> None:
    """Sizes around pages and huge pages arrive to the last byte, nothing beside them."""
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    made = segments.write(codec.encode(data))
    try:
        assert np.array_equal(data, content(made.fd, made.size)[: data.size])
        assert made.size == os.fstat(made.fd).st_size
    finally:
        made.close()


@pytest.mark.parametrize("refused", ["first", "second", "never aligned"])
def test_huge_pages_that_are_refused(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel gives no huge pages, the bytes are the same."""
    data = np.arange(9_000_000, dtype=np.uint8)
    calls: list[int] = []
    real = libc.collapse

    def collapse(address: int, size: int) -> bool:
        calls.append(address)
        if refused == "second" and len(calls) < 2:
            return real(address, size)
        return False

    if refused == "never aligned":

        def refuse(*_: Any) -> int:
            raise OSError(errno.ENOMEM, "no")

        monkeypatch.setattr(segments, "mapped", refuse)
    else:
        monkeypatch.setattr(libc, "collapse", collapse)
    made = segments.write(codec.encode(data))
    try:
        assert np.array_equal(data, content(made.fd, made.size)[: data.size])
    finally:
        made.close()


def test_worker_cannot_write_a_segment(store: str) -> None:
    """A task that opens the segment of its value for writing is refused."""

    def attack(_x: int, table: Any) -> str:
        c = ctypes.CDLL(None, use_errno=True)
        page = table.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
        if c.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 3) == 0:
            return "writable"
        return "refused"

    shutdown()  # workers know the store of the time when they were started
    table = np.ones(1_000_000)
    task = parallel(shared=["table"], backend="process")(attack)
    try:
        assert ["refused"] * 2 == task.map(range(2), table=table)
    finally:
        shutdown()


# --------------------------------------------------------------------------- the file store


def test_file_store_gives_the_same_results(run: Callable[..., str]) -> None:
    """Without memfd everything works through files without a name."""
    out = run(ALL, SHAREDTASK_STORE="file")
    assert "OK\n" == out


def test_file_store_in_a_folder_of_ones_own(tmp_path: Path, run: Callable[..., str]) -> None:
    """``SHAREDTASK_STORE_DIR`` says where the files are; none stays there."""
    folder = tmp_path / "store"
    folder.mkdir()
    assert "OK\n" == run(ALL, SHAREDTASK_STORE="file", SHAREDTASK_STORE_DIR=str(folder))
    assert [] == list(folder.iterdir())


# --------------------------------------------------------------------------------- no room


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


FULL = """
import os, resource, sys
import numpy as np
import sharedtask
from sharedtask import Shared, StoreFullError, parallel, share

def use(x, table: Shared):
    return float(table.sum())

def make(n):
    return np.ones(n)

task = parallel(use).with_options(backend="process")
small = np.ones(1000)
assert task.map([0], table=np.ones(200_000)) == [200_000.0]  # what is opened once is open now
assert task.map([0], table=small) == [1000.0]
{limit}
assert task.map([0], table=small) == [1000.0]
files = len(os.listdir("/proc/self/fd"))
big = np.ones({size})
for attempt in range(5):
    for call in (lambda: task.map([0], table=big), lambda: share(big)):
        try:
            call()
        except StoreFullError as error:
            text = str(error)
            assert isinstance(error, MemoryError)
            assert "needed" in text and "available" in text, text
        else:
            raise SystemExit("no error")
assert len(os.listdir("/proc/self/fd")) == files
found = parallel(make).with_options(backend="process", return_exceptions=True).map([10, {size}, 20])
assert [len(found[0]), len(found[2])] == [10, 20]
assert {result}, repr(found[1])
items = parallel(lambda a: float(a.sum())).with_options(return_exceptions=True).map([small, big])
assert items[0] == 1000.0
assert isinstance(items[1], StoreFullError), items[1]
assert task.map([0], table=small * 2) == [2000.0]
print("OK")
"""


def test_limit_on_file_sizes(run: Callable[..., str]) -> None:
    """Under RLIMIT_FSIZE a value that is too large is StoreFullError, and the pool lives on."""
    limit = (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))"
    )
    # The worker was started before the limit, so its result may still pass.
    text = FULL.format(limit=limit, size=2_000_000, result="True")
    assert "OK\n" == run(text)


def test_limit_on_file_sizes_from_the_start(run: Callable[..., str]) -> None:
    """Where workers live under RLIMIT_FSIZE too, a result that is too large is StoreFullError."""
    limit = (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000)); sharedtask.shutdown()"
    )
    result = "isinstance(found[1], StoreFullError)"
    assert "OK\n" == run(FULL.format(limit=limit, size=2_000_000, result=result))


@pytest.fixture
def tiny_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A RAM disk of 8 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_tmpfs(tiny_tmpfs: Path, run: Callable[..., str]) -> None:
    """On a full RAM disk a value is StoreFullError, never SIGBUS, and what was begun is freed."""
    text = FULL.format(limit="", size=2_000_000, result="isinstance(found[1], StoreFullError)")
    text += f"""
sharedtask.shutdown()
import gc; gc.collect()
status = os.statvfs({str(tiny_tmpfs)!r})
assert status.f_bfree > 0.9 * status.f_blocks, (status.f_bfree, status.f_blocks)
"""
    out = run(text, SHAREDTASK_STORE="file", SHAREDTASK_STORE_DIR=str(tiny_tmpfs))
    assert "OK\n" == out


UNMARKED = """
import numpy as np
from sharedtask import StoreFullError, parallel

big = np.ones(2_000_000)

def identity(x, extra=None, other=None):
    return x

def make(x):
    return np.ones(2_000_000) if x == 1 else x

class Model:
    def __init__(self):
        self.weights = np.ones(2_000_000)
    @parallel
    def score(self, x):
        return x

task = parallel(identity).with_options(backend="process")
for captured in ("share", "copy"):
    one = task.with_options(captured=captured)
    for call, name in (
        (lambda: one.map([1], extra=big, other=3), "identity(): 'extra'"),
        (lambda: one.map([1], extra=3, other={"a": [big]}), "identity(): 'other'"),
        (lambda: one.submit(1, other=b"x" * 16_000_000), "identity(): 'other'"),
        (lambda: Model().score.with_options(captured=captured).map([1]), "Model.score(): 'self'"),
        (lambda: parallel(lambda x: big).with_options(captured=captured).map([1]), "captures"),
    ):
        try:
            call()
        except StoreFullError as error:
            assert name in str(error) and "does not fit: 16.0 MB needed" in str(error), error
            assert 1 == str(error).count("needed"), error
        else:
            raise SystemExit("no error")
kept = {"return_exceptions": True}
for call, name in (
    (lambda: task.with_options(**kept, chunksize=3).map([0, big, 2]), "item 1"),
    (lambda: parallel(make).with_options(**kept).map([0, 1, 2]), "result of item 1"),
):
    before, full, after = call()
    assert (before, after) == (0, 2)
    assert isinstance(full, StoreFullError) and f"{name} does not fit" in str(full), full
print("OK")
"""


def test_what_is_not_marked_and_does_not_fit(tiny_tmpfs: Path, run: Callable[..., str]) -> None:
    """An argument, ``self``, an item or a result that does not fit is named by StoreFullError."""
    out = run(UNMARKED, SHAREDTASK_STORE="file", SHAREDTASK_STORE_DIR=str(tiny_tmpfs))
    assert "OK\n" == out


def test_value_larger_than_the_machine() -> None:
    """A value that cannot fit is refused before a byte is written."""
    with pytest.raises(StoreFullError, match="needed"):
        capacity.require(1 << 46)


@pytest.mark.parametrize("count", [300])
def test_few_descriptors(count: int, run: Callable[..., str]) -> None:
    """With 64 descriptors and 300 shared values it works, or the error names the limit."""
    out = run(
        f"""
import resource
import numpy as np
from sharedtask import Shared, StoreFullError, parallel

def use(x, table: Shared):
    return float(table[0])

task = parallel(use).with_options(backend="process")
task.map([0], table=np.ones(3))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
values = [np.full(2000, float(k)) for k in range({count})]
try:
    for k, value in enumerate(values):
        assert task.map([0, 1], table=value) == [float(k)] * 2
except StoreFullError as error:
    assert "RLIMIT_NOFILE" in str(error), error
    del values, value
    task.cache_clear()
assert task.map([0], table=np.full(10, 3.0)) == [3.0]
print("OK")
"""
    )
    assert "OK\n" == out


SECCOMP = """
import ctypes, platform, struct
def deny(*numbers):
    # if nr in numbers: return EPERM; else allow
    code = [struct.pack("HBBI", 0x20, 0, 0, 0)]
    for k, number in enumerate(numbers):
        code.append(struct.pack("HBBI", 0x15, len(numbers) - k, 0, number))
    code.append(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    code.append(struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | 1))
    text = ctypes.create_string_buffer(b"".join(code))
    pair = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text))
    program = ctypes.create_string_buffer(pair)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter has numbers of x86-64")
@pytest.mark.parametrize("numbers", [(319,), (323,), (319, 323)], ids=["memfd", "uffd", "both"])
def test_denied_system_calls(numbers: tuple[int, ...], run: Callable[..., str]) -> None:
    """Where a container denies memfd_create or userfaultfd, results are the same."""
    names = {319: "os.memfd_create('x')", 323: "libc.syscall(323, 1)"}
    checks = "".join(
        f"""
try:
    {names[number]}
    raise SystemExit("not denied")
except PermissionError:
    pass
"""
        for number in numbers
    )
    imports = "import os\nfrom sharedtask.system import libc\n"
    assert "OK\n" == run(f"{SECCOMP}\ndeny{numbers}\n{imports}{checks}{ALL}")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter has numbers of x86-64")
def test_denied_system_calls_are_told_once(run: Callable[..., str]) -> None:
    """What is done in another way, because the system does not let us, is one debug line each."""
    log = """
import logging, sys
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(logging.Formatter("%(levelname)s %(message).20s"))
logging.getLogger("sharedtask").addHandler(handler)
logging.getLogger("sharedtask").setLevel(logging.DEBUG)
"""
    use = """
import numpy as np
from sharedtask import parallel
task = parallel(shared=["table"], backend="process")(lambda k, table: float(table[k]))
for _ in range(3):
    assert [1.0, 1.0] == task.map(range(2), table=np.ones(1_000_000))
"""
    told = run(f"{SECCOMP}\ndeny(319, 323)\n{log}{use}").splitlines()
    assert ["DEBUG memfd_create is deni", "DEBUG userfaultfd is denie"] == sorted(told)


def test_closed_handle_gives_its_memory_back() -> None:
    """The memory of a handle is unmapped at its end."""
    before = open_files()
    handle = share(np.ones(1_000_000))
    address = handle.value.ctypes.data
    assert is_mapped(address)
    handle.close()
    assert not is_mapped(address)
    assert before == open_files()
