"""What all tests share: the backends, two workers, a clean end, scripts that run on their own."""

import contextlib
import faulthandler
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
from isolation import Isolation
from processes import slowness

import sharedtask
from sharedtask import parallel
from sharedtask.backends import registry
from sharedtask.backends.process import forkserver

pytest.register_assert_rewrite("sharedtask.testing")

from sharedtask.testing import (  # noqa: E402
    Belongings,
    assert_nothing_left,
    no_leaks,  # noqa: F401  fixtures are found here
    no_leaks_warm,  # noqa: F401
    unharmed,  # noqa: F401
)

BACKENDS = ("serial", "thread", "process", "ray")

os.environ.setdefault("SHAREDTASK_WORKERS", "2")


def pytest_configure(config: pytest.Config) -> None:
    """A crash of the test process prints the stack of every thread, and fails its test alone.

    A debugger needs the terminal: with ``--pdb``, or ``-p no:isolation``, tests run right here.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable()
    if not config.option.usepdb and not config.option.trace:
        config.pluginmanager.register(Isolation(), "isolation")


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Some files take minutes on all backends: on most of them, their tests count as long.

    Each fault is followed by the common check; one that hangs prints all stacks and fails.
    """
    for item in items:
        if item.path.parent.name == "faults":
            item.fixturenames.insert(0, "common_check")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(60))
        if _backend_of(item) in MANY.get(item.path.name, ()):
            item.add_marker(pytest.mark.long)
        if _backend_of(item) in BESIDES.get(item.path.name, ()):
            item.add_marker(pytest.mark.long)
            item.add_marker(pytest.mark.besides)
        if item.path.name == "test_loky.py" and item.cls and item.originalname not in ON_LOKY:
            item.add_marker(pytest.mark.long)
    for item in _further_cases(items):
        item.add_marker(pytest.mark.long)


def _further_cases(items: list[pytest.Function]) -> list[pytest.Function]:
    """Of many cases of a test that takes long, all but one, which is on processes if one is."""
    tests: dict[object, list[pytest.Function]] = {}
    for item in items:
        if _is_one_of_many(item):
            tests.setdefault((item.path, item.cls, item.originalname), []).append(item)
    for cases in tests.values():
        cases.sort(key=lambda item: (_is_long(item), _backend_of(item) != "process"))
    return [item for _, *further in tests.values() for item in further]


def _is_long(item: pytest.Function) -> bool:
    return item.get_closest_marker("long") is not None


def _is_one_of_many(item: pytest.Function) -> bool:
    """Faults start programs and kill workers; Ray and loky take longer than our own processes."""
    kinds_on_ray = item.path.name == "test_conformance.py" and _backend_of(item) == "ray"
    many = item.path.name in {"test_docs.py", "test_loky.py"}
    return kinds_on_ray or many or item.path.parent.name == "faults"


# The slice of the contract that is not long on workers of loky, which start slowly.
ON_LOKY = {
    "test_death_is_an_error_of_its_item",
    "test_program_that_is_killed",
    "test_error_in_place",
    "test_change_in_place_is_seen",
    "test_copy_on_write_is_private_to_the_item",
    "test_sum_of_all_items",
    "test_block_of_a_failed_item",
}


# What they test does not depend on the backend much, and is tested on another in any case.
MANY = {
    "test_captured.py": ("ray",),
    "test_journal.py": ("ray",),
    "test_kinds.py": ("serial", "ray"),
    "test_forks.py": ("serial",),
    "test_initializer.py": ("ray",),
    "test_per_worker.py": ("ray",),
    "test_reentry.py": ("serial", "thread", "ray"),
    "test_rng.py": ("ray",),
    "test_strict.py": ("ray",),
}


# The same program on backends that share the code in question: run by hand, not each time.
BESIDES = {
    "test_captured.py": ("thread",),
    "test_composition.py": ("thread", "ray"),
    "test_exceptions.py": ("serial", "thread"),
    "test_interrupted.py": ("serial", "thread"),
    "test_journal.py": ("thread",),
    "test_kinds.py": ("thread",),
    "test_reentry.py": ("serial", "ray"),
    "test_rng.py": ("thread",),
    "test_strict.py": ("thread",),
}


def _backend_of(item: pytest.Function) -> object:
    return getattr(item, "callspec", None) and item.callspec.params.get("backend")


def pytest_collection_finish() -> None:
    """All test modules and what they import are loaded."""
    _leave_out_what_is_loaded()


def _leave_out_what_is_loaded() -> None:
    """Leave it out of the many collections that the leak checks need."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend in turn."""
    name: str = request.param
    if name == "ray":
        request.getfixturevalue("ray_runtime")
    return name


@pytest.fixture
def busy_switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="session")
def ray_runtime() -> Iterator[None]:
    """One Ray of two CPUs for all tests here: starting it takes longer than most of them."""
    ray = pytest.importorskip("ray", reason="Ray has no build for this Python")
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=1 << 30,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    _leave_out_what_is_loaded()
    # Where Ray is initialised, "auto" means Ray: not for tests that name no backend.
    registry._ray_is_initialized = lambda: False
    yield
    sharedtask.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module", autouse=True)
def loaded_forkserver(request: pytest.FixtureRequest) -> Iterator[None]:
    """The forkserver loads what the module needs of pytest and the test kit, once for all workers.

    A fresh one would need up to half a second for it, within the time limits under test. The module
    itself it imports as it would a user's. Programs of their own, and Ray, start as always.
    """
    text = request.path.read_text()
    needed = ["sharedtask.testing" if "\nfrom sharedtask.testing import" in text else "pytest"]
    if "\nfrom light import" in text:  # so that workers need not even that, nor its memory
        needed = []
    command = forkserver.command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "command", lambda fd, *modules: command(fd, *modules, *needed))
        yield


@pytest.fixture(scope="module", autouse=True)
def ended_pool(loaded_forkserver: None) -> Iterator[None]:
    """No module inherits the workers of another."""
    yield
    sharedtask.shutdown()


# --------------------------------------------------------------------------------- faults

_NEVER_SEEN = ("Traceback", "Exception ignored in", "resource_tracker", "ResourceWarning")


@pytest.fixture
def common_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a fault the same pool works at once, and all that could leak is as it was.

    A fault in a program of its own, or on Ray, is nothing to the workers of this process.
    """
    wanted = set(request.fixturenames)
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    if params.get("backend") == "thread":
        _start_threads()
    if params.get("backend") == "ray":
        request.getfixturevalue("ray_runtime")
        wanted.add("ray_runtime")
    if not wanted & {"script", "run", "ray_runtime"}:
        request.getfixturevalue("unharmed")
        yield
        return
    before = Belongings.now()
    yield
    if "ray_runtime" in wanted:
        assert [0, 1, 4, 9] == parallel(backend="ray")(lambda x: x * x).map(range(4))
        gc.collect()
        now = Belongings.now()
        assert (before.mappings, frozenset()) == (now.mappings, now.names - before.names)
    else:
        assert_nothing_left(before)


def _start_threads() -> None:
    """Those of the thread backend stay for the next call."""
    both = threading.Barrier(2)
    parallel(lambda _: both.wait(60)).with_options(backend="thread", workers=2).map(range(2))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A fault tells what it has to tell by exceptions: stderr is free of the interpreter's words.

    What programs of their own write there is for their tests to look at.
    """
    report = yield
    for when, stream, text in item._report_sections if item.path.parent.name == "faults" else ():
        said = [word for word in _NEVER_SEEN if word in text]
        if (when, stream, report.outcome) == (report.when, "stderr", "passed") and said:
            report.outcome = "failed"
            report.longrepr = f"stderr has {said}:\n{text}"
    return report


# -------------------------------------------------------------------------------- scripts


@dataclass
class Script:
    """A Python program in a process group of its own; everything it starts carries its mark."""

    process: subprocess.Popen[str]
    mark: str
    out: str = ""
    err: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        """The pid of the program, and of its process group."""
        return self.process.pid

    @property
    def stdout(self) -> IO[str]:
        """What it prints, to read line by line."""
        assert self.process.stdout is not None
        return self.process.stdout

    def wait_for(self, word: str) -> str:
        """Read lines until one starts with ``word``; returns the rest of it."""
        for line in self.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        pytest.fail(f"the script ended without {word!r}: {self.process.communicate()[1]}")

    def end(self, seconds: float = 20) -> int:
        """Wait for its end, longer on a busy machine, and return the exit code."""
        out, self.err = self.process.communicate(timeout=seconds * slowness())
        self.out += out
        return self.process.returncode

    def survivors(self) -> list[int]:
        """The processes that carry its mark and still live."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self.mark.encode() in Path("/proc", name, "environ").read_bytes():
                    found.append(int(name))
        return found

    def assert_gone(self, seconds: float) -> None:
        """Fail unless every process of it ends within this time, on an idle machine."""
        limit = time.monotonic() + seconds * slowness()
        while left := self.survivors():
            assert time.monotonic() < limit, f"processes {left} still live"
            time.sleep(0.01)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """Start programs: ``script(text)``, from a file, or with ``how`` "-c" or "stdin"."""
    started: list[Script] = []

    def start(text: str, *args: object, how: str = "file", **env: str) -> Script:
        mark = f"mark-{uuid.uuid4().hex}"
        where = {
            **os.environ,
            "SHAREDTASK_TEST_MARK": mark,
            "PYTHONFAULTHANDLER": "1",
            "PYTHONDEVMODE": "",  # any text turns it on
            "PYTHONDONTWRITEBYTECODE": "1",
            **env,
        }
        path = tmp_path / f"script_{len(started)}.py"
        path.write_text(text)
        command = {"file": [str(path)], "-c": ["-c", text], "stdin": ["-"]}[how]
        process = subprocess.Popen(
            [sys.executable, "-W", "error", *command, *map(str, args)],
            cwd=tmp_path,
            env=where,
            text=True,
            stdin=subprocess.PIPE if how == "stdin" else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        if process.stdin is not None:
            process.stdin.write(text)
            process.stdin.close()
            process.stdin = None
        started.append(Script(process, mark))
        return started[-1]

    yield start
    for each in started:
        for pid in each.survivors():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            each.process.kill()
        each.process.wait()
        for stream in (each.process.stdout, each.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def run(script: Callable[..., Script]) -> Callable[..., str]:
    """Run a program that has to end well, with nothing on stderr; returns what it printed."""

    def run_it(text: str, *args: object, **env: Any) -> str:
        ran = script(text, *args, **env)
        code = ran.end(60)
        assert "" == ran.err
        assert 0 == code
        return ran.out

    return run_it


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt in this process, whatever started the tests."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)
