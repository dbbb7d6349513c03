import json
import os
import pty
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import share, zeros
from sharedtask.cli import bench, search
from sharedtask.cli import main as cli
from sharedtask.store import name_registry
from sharedtask.system.cpus import available_cpus

ROOT = Path(__file__).parents[2]

OWNER = """
import os, signal
import numpy as np
from sharedtask import share
share(np.ones((3, 4), "f4"), name="grid")
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A register of the test's own."""
    path = tmp_path / "sharedtask"
    monkeypatch.setenv("SHAREDTASK_NAMES_DIR", str(tmp_path))
    yield path
    assert not path.exists()


@pytest.fixture
def dead(script: Callable[..., Any]) -> int:
    """The pid of an owner that was killed, and had shared "grid"."""
    process = script(OWNER)
    process.wait_for("ready")
    os.kill(process.pid, signal.SIGKILL)
    process.process.wait()
    pid: int = process.pid
    return pid


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "sharedtask", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def said(*arguments: str) -> str:
    ran = call(*arguments)
    assert (0, "") == (ran.returncode, ran.stderr)
    return ran.stdout


def on_terminal(*arguments: str) -> str:
    """What it writes to a terminal."""
    ours, theirs = pty.openpty()
    ran = subprocess.Popen([sys.executable, "-m", "sharedtask", *arguments], stdout=theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 1 << 16):
            text += part
    except OSError:  # Linux's word for the end of a terminal
        pass
    os.close(ours)
    assert 0 == ran.wait(60)
    return text.decode().replace("\r\n", "\n")


def test_list_in_a_pipe() -> None:
    """Into a pipe each name is a line of plain fields between tabs, without a heading."""
    with share(zeros((3, 4), "f4"), name="grid"), share({"a": 1}, name="a-model") as model:
        lines = [line.split("\t") for line in said("ls").splitlines()]
    pid = str(os.getpid())
    assert [
        ["a-model", "value", "dict", str(model.nbytes), pid, "alive"],
        ["grid", "array", "float32 (3, 4)", "48", pid, "alive"],
    ] == [line[:-1] for line in lines]
    assert all(60 > int(line[-1]) for line in lines)


def test_list_on_a_terminal() -> None:
    """On a terminal it is a table with a heading, and units that people read."""
    with share(np.ones((1000, 1000)), name="grid"):
        heading, row = on_terminal("ls").splitlines()
    assert "NAME  KIND   WHAT                  BYTES   OWNER" == heading[:48]
    assert row.startswith("grid  array  float64 (1000, 1000)  8.0 MB")
    assert row.endswith(" s")
    assert heading.index("STATE") == row.index("alive")


def test_empty_list() -> None:
    """Without names a pipe gets nothing, a terminal a sentence, and JSON an empty list."""
    assert "" == said("ls")
    assert "nothing is shared under a name.\n" == on_terminal("ls")
    assert [] == json.loads(said("ls", "--json"))


def test_list_as_json() -> None:
    """JSON has every field of the entry, and the state."""
    with share(zeros(3), name="grid"):
        (told,) = json.loads(said("ls", "--json"))
        entry = name_registry.find("grid")[0]
    assert ("grid", "alive", os.getpid(), 24) == (
        told["name"], told["state"], told["pid"], told["nbytes"],
    )  # fmt: skip
    assert entry.inode == told["inode"]
    assert [3] == told["form"]["shape"]


def test_dead_and_damaged_are_listed_and_cleaned(dead: int, place: Path) -> None:
    """``ls`` shows what is gone or damaged, ``clean`` removes it and leaves the living."""
    (place / "broken").write_text("{")
    (place / "broken").chmod(0o600)
    with share(1, name="living"):
        states = [line.split("\t") for line in said("ls").splitlines()]
        assert [("broken", "damaged"), ("grid", "gone"), ("living", "alive")] == [
            (line[0], line[5]) for line in states
        ]
        assert ["damaged", "gone", "alive"] == [
            each["state"] for each in json.loads(said("ls", "--json"))
        ]
        assert (
            "removed broken: its entry was damaged.\n"
            f"removed grid: process {dead}, which had shared it, has ended.\n"
        ) == said("clean")
        assert "nothing to remove.\n" == said("clean")
        assert ["living"] == [line.split("\t")[0] for line in said("ls").splitlines()]


@pytest.mark.parametrize("command", ["ls", "clean"])
def test_error_is_one_line(place: Path, command: str) -> None:
    """An error is exit code 1 and one line on standard error."""
    place.symlink_to("/")
    ran = call(command)
    assert (1, "") == (ran.returncode, ran.stdout)
    assert 1 == ran.stderr.count("\n")
    assert ran.stderr.startswith(f"sharedtask: '{place}' is refused: ")
    place.unlink()


@pytest.mark.parametrize("arguments", [("lss",), ("clean", "--all"), ("ls", "--js")])
def test_wrong_command_line(arguments: tuple[str, ...]) -> None:
    """What is not understood is refused with the usage, and exit code 2."""
    ran = call(*arguments)
    assert (2, "") == (ran.returncode, ran.stdout)
    assert "usage: sharedtask" in ran.stderr


def test_info(place: Path) -> None:
    """``info`` says what is installed, what a call would do, and what works on this machine."""
    told = dict(line.split("  ", 1) for line in said("info").splitlines())
    assert {
        "sharedtask", "python", "numpy", "ray", "linux", "backend", "workers", "CPUs",
        "memory", "memfd", "userfaultfd", "huge pages", "names",
    } == {name.strip() for name in told}  # fmt: skip
    facts = {name.strip(): value.strip() for name, value in told.items()}
    assert (sharedtask.__version__, np.__version__, str(place)) == (
        facts["sharedtask"], facts["numpy"], facts["names"],
    )  # fmt: skip
    assert {"yes", "no"} >= {facts[name] for name in ("memfd", "userfaultfd", "huge pages")}
    assert facts["memory"].endswith(" available")


def test_info_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults from variables are shown, and a wrong one is an error."""
    monkeypatch.setenv("SHAREDTASK_BACKEND", "thread")
    monkeypatch.setenv("SHAREDTASK_WORKERS", "7")
    monkeypatch.setenv("SHAREDTASK_STORE", "file")
    monkeypatch.setenv("SHAREDTASK_WATCH", "off")
    told = said("info")
    assert "backend      thread\nworkers      7\n" in told
    assert "memfd        no\nuserfaultfd  no\n" in told
    monkeypatch.setenv("SHAREDTASK_WORKERS", "none at all")
    ran = call("info")
    assert (1, 1) == (ran.returncode, ran.stderr.count("\n"))


def test_version() -> None:
    """``--version`` is that of the package."""
    assert f"sharedtask {sharedtask.__version__}\n" == said("--version")


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"], ["clean"]])
def test_lists_are_light(arguments: list[str]) -> None:
    """To list and to clean loads neither numpy nor ray nor pydantic."""
    code = f"""
import sys
from sharedtask.cli.main import main
assert main({arguments!r}) == 0
print({{"numpy", "ray", "pydantic_core", "cloudpickle"}} & set(sys.modules), file=sys.stderr)
"""
    with share(1, name="one"):
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
    assert "set()\n" == ran.stderr


def test_info_does_not_load_ray() -> None:
    """The version of ray is told without loading it."""
    code = """
import sys
from sharedtask.cli.main import main
assert main(["info"]) == 0
sys.exit("ray" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert 0 == ran.returncode


def test_reader_that_has_enough() -> None:
    """Where the reader of the list ends early nothing is complained of."""
    readable, writable = os.pipe()
    os.close(readable)
    with share(1, name="one"):
        ran = subprocess.run(
            [sys.executable, "-m", "sharedtask", "ls"],
            stdout=writable,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    os.close(writable)
    assert (0, "") == (ran.returncode, ran.stderr)


def test_the_installed_command() -> None:
    """The command that is installed runs ``main``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["sharedtask"].partition(":")
    assert getattr(import_module(module), function) is cli.main


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (86_400 * 3 + 5, "3 d")],
)
def test_age(seconds: int, text: str) -> None:
    """An age is told in the largest unit that it fills."""
    assert text == cli._age(seconds)


def test_command_alone_shows_the_commands() -> None:
    """Without a command, the commands are listed, and that is no mistake."""
    shown = said()
    for name in ("ls", "clean", "info", "journal", "demo", "bench"):
        assert f"    {name} " in shown


def test_info_as_json() -> None:
    """JSON has the facts of the table, as numbers and booleans where they are."""
    told = json.loads(said("info", "--json"))
    assert sharedtask.__version__ == told["sharedtask"]
    assert {"python", "names", "huge pages", "ray"} <= set(told)
    assert available_cpus() == told["CPUs"]
    assert 0 < told["memory"]["available"] < told["memory"]["total"]
    assert {bool} == {type(told[name]) for name in ("memfd", "userfaultfd", "huge pages")}


def test_demo_names_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job runs with what the library itself needs, and says what is missing."""
    monkeypatch.setattr(search, "has_joblib", lambda: False)
    monkeypatch.setattr(search, "with_futures", lambda work, items: [work(i) for i in items])
    lines = list(search.run(rows=500))
    assert ["a loop", "concurrent.futures", "sharedtask, first call", "sharedtask, again"] == [
        line[:24].strip() for line in lines[2:6]
    ]
    assert "pip install joblib" in lines[6]


def test_bench_tells_where_a_loop_is_faster() -> None:
    """The work that a map needs is what it costs, over the share of it that other CPUs take."""
    found = bench.Constants(0.3, 0.0003, 1e-7, 5e-4, 2e-6, 0.0003)
    assert 0.5 == bench.work_needed(0.25, 2)
    assert bench.work_needed(0.25, 1) is None
    lines = list(bench.told(found, 4))
    assert "a GB unchanged, again       2 ms" in lines
    assert "       10 items  401 us (400 ms for the first call of a program)" in lines
    assert "always faster" in list(bench.told(found, 1))[-1]


def test_bench_measures_all_constants() -> None:
    """Each constant is a time, measured here, and a start takes longer than a call."""
    found = bench.measured(repeats=2, many=1000, large=1)
    assert 0 < found.call < found.start
    assert 0 < found.put
    assert 0 < found.submit
    assert 0 <= min(found.item, found.again)
