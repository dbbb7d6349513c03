"""The page of messages: each of its headings is what Python, or the library, really says."""

import asyncio
import concurrent.futures
import contextlib
import errno
import mmap
import multiprocessing
import multiprocessing.spawn
import pickle
import re
import resource
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from collections.abc import Callable
from multiprocessing import process
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import Locked, Partitioned, Shared, attach, parallel, share
from sharedtask.backends import registry
from sharedtask.text import see

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "messages.md"
HEADING = re.compile(r"^### `(.*)` \{ #(\S+) \}$", re.MULTILINE)
MESSAGES = {anchor: text for text, anchor in HEADING.findall(PAGE.read_text())}


@parallel(backend="serial")
def plain(x: Any, model: Shared[Any] = None, other: Any = None) -> Any:
    return x


@parallel(backend="serial")
def write(_x: int, t: Shared[np.ndarray]) -> None:
    t[0] = 1


@parallel(backend="serial")
def add(_x: int, t: Shared[np.ndarray]) -> None:
    t += 1


@parallel(backend="serial")
def unlock(_x: int, t: Shared[np.ndarray]) -> None:
    t.flags.writeable = True


@parallel(backend="serial")
def change(x: int, model: Shared[dict[str, Any]]) -> None:
    model["seen"] = x


@parallel(backend="serial")
def fill(_rows: slice, out: Partitioned[np.ndarray]) -> None:
    out[:] = 1


@parallel(backend="serial")
def enter_twice(_x: int, g: Locked[np.ndarray]) -> None:
    with g.write(0), g.write(0):
        pass


@parallel(backend="serial")
def pair(x: int, y: object = None) -> object:
    return x, y


@parallel(backend="serial")
def divide(x: int) -> float:
    return 1 / x


def pause(seconds: float) -> None:
    time.sleep(seconds)


def leave(status: int) -> None:
    sys.exit(status)


def shared_called() -> None:
    marker: Any = Shared
    marker({})


def local_class() -> Any:
    class Local:
        pass

    return Local()


def chain() -> list[Any]:
    link: list[Any] = []
    for _ in range(100_000):
        link = [link]
    return link


def in_a_worker(work: Callable[[int], Any], **options: Any) -> Any:
    task: Any = parallel(work).with_options(backend="process", workers=1)
    return task.with_options(**options).map([0])


def bootstrapping() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process.current_process(), "_inheriting", True, raising=False)
        multiprocessing.spawn.get_preparation_data("x")


def child_of_a_daemon() -> None:
    child = multiprocessing.get_context("spawn").Process(target=print)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(process.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
        child.start()


def broken_pool() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fork beside threads
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            pool.submit(sys.exit).exception()
            pool.submit(end).result()


def end() -> None:
    import os

    os._exit(1)


def after_shutdown() -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.shutdown()
    pool.submit(print)


def leak() -> None:
    code = (
        "from multiprocessing.shared_memory import SharedMemory; SharedMemory(create=True, size=1)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    raise RuntimeError(ran.stderr)


def many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with contextlib.ExitStack() as kept:
            while True:
                kept.enter_context(open("/dev/null"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def full_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


async def run_inside() -> None:
    nothing = asyncio.sleep(0)
    try:
        asyncio.run(nothing)
    finally:
        nothing.close()


def another_file(folder: Path) -> None:
    path = folder / "notes.txt"
    path.write_text("hello" * 1000)
    plain.with_options(journal=str(path)).map([1])


def twice() -> None:
    with share(1, name="model"):
        share(2, name="model")


def no_ray() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_made", {})  # tests on Ray may have run before
        for name in [name for name in sys.modules if name.startswith("sharedtask.backends.ray")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "ray", None)
        plain.with_options(backend="ray").map([1])


def closed() -> None:
    with share(np.ones(3)) as handle:
        pass
    plain.map([1], model=handle)


def noted() -> None:
    try:
        divide.map([1, 0])
    except ZeroDivisionError as error:
        raise RuntimeError(error.__notes__[-1]) from None


def breakpoint_in_a_worker() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONBREAKPOINT", raising=False)  # Ray sets it
        in_a_worker(lambda _: breakpoint())  # noqa: T100


MODULE_LEVEL: Any = lambda: None

PROVOKED: dict[str, Callable[[], Any]] = {
    "pickle-lock": lambda: pickle.dumps(threading.Lock()),
    "pickle-generator": lambda: pickle.dumps(x for x in "a"),
    "pickle-file": lambda: pickle.dumps(sys.__stdout__),
    "pickle-lambda": lambda: pickle.dumps(MODULE_LEVEL),
    "pickle-local": lambda: pickle.dumps(local_class()),
    "pickle-main": lambda: pickle.loads(b"c__main__\nNothing\n."),
    "pickle-inheritance": lambda: pickle.dumps(multiprocessing.Lock()),
    "pickle-recursion": lambda: pickle.dumps(chain()),
    "main-guard": bootstrapping,
    "daemonic": child_of_a_daemon,
    "broken-process-pool": broken_pool,
    "after-shutdown": after_shutdown,
    "leaked-shared-memory": leak,
    "no-space": full_disk,
    "too-many-files": many_files,
    "errno-12": lambda: mmap.mmap(-1, 1 << 46),
    "running-loop": lambda: asyncio.run(run_inside()),
    "read-only": lambda: write.map([0], t=np.ones(3)),
    "output-read-only": lambda: add.map([0], t=np.ones(3)),
    "writeable-flag": lambda: unlock.map([0], t=np.ones(3)),
    "memoryview-read-only": lambda: memoryview(b"abc").__setitem__(0, 1),
    "unable-to-allocate": lambda: np.ones(1 << 47),
    "no-map": lambda: end.map([1]),  # type: ignore[attr-defined]
    "no-parallel-class": lambda: sharedtask.Parallel,
    "no-parallel-import": lambda: exec("from sharedtask import Parallel"),
    "only-a-function": lambda: parallel(plain(i) for i in "ab"),  # type: ignore[call-overload]
    "items-are-missing": lambda: plain.map(x=[1]),  # type: ignore[call-arg]
    "shared-called": shared_called,
    "too-many-arguments": lambda: divide.map([1], [2]),  # type: ignore[call-arg]
    "second-collection": lambda: pair.map([1, 2], [3, 4]),
    "unexpected-keyword": lambda: divide.map([1], workers=2),  # type: ignore[call-arg]
    "no-option": lambda: divide.with_options(n_jobs=4),  # type: ignore[call-arg]
    "no-backend": lambda: divide.with_options(backend="multiprocessing"),  # type: ignore[arg-type]
    "str-is-no-items": lambda: divide.map("abc"),
    "not-iterable": lambda: divide.map(10),  # type: ignore[arg-type]
    "starmap-items": lambda: divide.starmap([1, 2]),  # type: ignore[list-item]
    "maps-over-keys": lambda: divide.map({1: "a"}),
    "names-no-parameter": lambda: parallel(shared=["modle"])(lambda x, model: x),
    "wrong-type": lambda: write.map([0], t=[1]),  # type: ignore[arg-type]
    "item-note": noted,
    "killed": lambda: in_a_worker(lambda _: killed()),
    "memory-limit": lambda: in_a_worker(lambda _: np.ones(30_000_000), memory_limit="100MB"),
    "timeout": lambda: parallel(pause).with_options(backend="serial", timeout=0.01).map([0.05]),
    "system-exit": lambda: parallel(leave).with_options(backend="serial").map([3]),
    "changed": lambda: change.map([1], model={"a": 1}),
    "same-random-numbers": lambda: plain.map([1], other=np.random.default_rng(0)),
    "overlap": lambda: fill.map([slice(0, 5), slice(4, 8)], out=np.ones(8)),
    "lock-order": lambda: enter_twice.map([0], g=np.ones(3)),  # type: ignore[arg-type]
    "cannot-be-shared": lambda: plain.map([1], model={"lock": threading.Lock()}),
    "cannot-be-sent": lambda: plain.with_options(backend="process").map(
        [1], other=threading.Lock()
    ),
    "result-cannot-be-pickled": lambda: in_a_worker(lambda _: threading.Lock()),
    "closed": closed,
    "unknown-name": lambda: attach("nothing"),
    "name-in-use": twice,
    "no-journal": lambda: None,  # needs a folder, see below
    "no-ray": no_ray,
    "bdb-quit": breakpoint_in_a_worker,
}


def killed() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


# What newer versions of Python say, which stands in the texts of the page.
NOW = dict(
    re.findall(
        r"^### .*\{ #(\S+) \}\n\n.*\(from Python 3\.14 on: `(.+?)`\)",
        (ROOT / "docs" / "messages.md").read_text("utf-8"),
        re.MULTILINE,
    )
)


def told(anchor: str, folder: Path) -> str:
    """What is said, as the last line of a traceback has it, or by a warning."""
    provoke = (lambda: another_file(folder)) if anchor == "no-journal" else PROVOKED[anchor]
    try:
        provoke()
    except BaseException as error:
        module = type(error).__module__
        return f"{error}" if str(error) else f"{module}.{type(error).__name__}"
    raise AssertionError(anchor)


@pytest.mark.parametrize("anchor", MESSAGES)
def test_message_is_what_is_said(
    anchor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What provokes the message gives its heading, with anything in the place of "..."."""
    monkeypatch.setenv("SHAREDTASK_NAMES_DIR", str(tmp_path))
    said = " ".join(told(anchor, tmp_path).split())
    # As Python 3.13 has it.
    said = said.replace("'TextIOWrapper' instances", "'_io.TextIOWrapper' object")
    now = NOW[anchor] if sys.version_info >= (3, 14) and anchor in NOW else MESSAGES[anchor]
    expected = ".*".join(re.escape(part) for part in now.split("..."))
    assert re.search(expected, said), said


def test_every_message_is_provoked() -> None:
    """The page and the table above have the same messages, some forty or more."""
    assert sorted(PROVOKED) == sorted(MESSAGES)
    assert 40 <= len(MESSAGES)
    assert 3 == len(NOW)


def test_notes_lead_to_the_page() -> None:
    """A note that says "See ...#name" names the site of the project, and a heading of the page."""
    sources = (ROOT / "src").rglob("*.py")
    named = {name for path in sources for name in re.findall(r"see\('(.+?)'\)", path.read_text())}
    assert named
    assert set() == named - set(MESSAGES)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"See {project['urls']['Documentation']}/messages/#killed" == see("killed")
    with pytest.raises(ValueError, match="read-only") as caught:
        write.with_options(backend="serial").map([0], t=np.ones(3))
    assert caught.value.__notes__[0].endswith(see("read-only"))


def test_error_numbers_are_those_of_linux() -> None:
    """The page says numbers, for that is what is pasted."""
    assert (12, 24, 28) == (errno.ENOMEM, errno.EMFILE, errno.ENOSPC)
