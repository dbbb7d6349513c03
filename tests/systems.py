"""Run a program, or a part of the suite, in each place that we can make on this machine.

    python tests/systems.py [docs/systems-table.md] [--only TEXT]

Each cell is run; the table says what came out. A place that cannot be made here is told as such.
Some need root: a namespace of mounts, a limit of a group.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

from programs import ALL  # noqa: E402
from simulated import environment  # noqa: E402

DENIED = str(HERE / "denied.py")
SERVERS = str(HERE / "servers.py")
CONFORMANCE = "tests/contract/test_conformance.py"
_SECONDS = 1800
_NOT_HERE = ("unshare:", "mount:", "sh:", "OSError: no filter")


@dataclass(frozen=True)
class Cell:
    """A place: how a program is started there, and what is run."""

    where: str
    command: tuple[str, ...] = ("{python}", "{program}")
    variables: dict[str, str] = field(default_factory=dict)
    tests: tuple[str, ...] = ()  # of pytest, in place of the program
    lacks: str = ""


def _mounts(steps: str, *command: str) -> tuple[str, ...]:
    """A command that sees other mounts; "bind": this mount alone, not the whole file system."""
    return ("unshare", "--mount", "sh", "-c", f'{steps} && exec "$@"', "sh", *command)


_RUN = ("{python}", "{program}")
CELLS = (
    Cell("`python -O`", ("{python}", "-O", "{program}")),
    Cell("`python -I`", ("{python}", "-I", "{program}")),
    Cell("`python -X dev -W error`", ("{python}", "-X", "dev", "-W", "error", "{program}")),
    Cell("the library in a zip file", variables={"PYTHONPATH": "{zip}"}),
    Cell("system calls that Docker denies", ("{python}", DENIED, "docker", "{program}")),
    Cell("an old kernel's system calls", ("{python}", DENIED, "old", "{program}")),
    Cell("memfd denied", ("{python}", DENIED, "memfd", "{program}")),
    Cell(
        "memfd denied, /dev/shm read-only",
        _mounts("mount -o remount,bind,ro /dev/shm", "{python}", DENIED, "memfd", "{program}"),
    ),
    Cell("no /proc", _mounts("mount -t tmpfs none /proc", *_RUN), lacks="`Locked`, names"),
    Cell("everything read-only except /dev/shm", _mounts("mount -o remount,bind,ro /", *_RUN)),
    Cell("separate PID and network namespaces", ("unshare", "--pid", "--net", "--fork", *_RUN)),
    Cell("64 open files", ("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", *_RUN)),
    Cell(
        "no HOME, no TMPDIR, `LC_ALL=C`", ("env", "-u", "HOME", "-u", "TMPDIR", "LC_ALL=C", *_RUN)
    ),
    Cell(
        "macOS, simulated",
        variables=environment("mac"),
        tests=(CONFORMANCE, "-k", "TestBackend and ([serial or [thread or [process)"),
        lacks="`Locked`, names",
    ),
    Cell(
        "Windows, simulated",
        variables=environment("windows"),
        tests=("--noconftest", "tests/simulated/contract.py"),
        lacks="`Locked`, names, `memory_limit`, `tasks_per_worker`",
    ),
    Cell("one file made by PyInstaller", tests=("tests/contract/test_frozen.py",)),
    Cell("eventlet, coverage", tests=("tests/contract/test_other_tools.py",)),
    *(
        Cell(where, ("{python}", SERVERS, name))
        for where, name in {
            "workers of gunicorn, `--preload`": "gunicorn",
            "workers of uWSGI": "uwsgi",
            "workers of Celery (billiard)": "celery",
            "gevent, everything patched": "gevent",
            "uvloop": "uvloop",
        }.items()
    ),
)


def _zipped(folder: Path) -> Path:
    made = folder / "library.zip"
    with zipfile.ZipFile(made, "w") as archive:
        for path in (ROOT / "src").rglob("*.py"):
            archive.write(path, path.relative_to(ROOT / "src"))
    return made


def _put(text: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", place)
    return text


def _run(cell: Cell, places: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [_put(each, places) for each in cell.command]
    if cell.tests:
        start = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command = [*start, *cell.tests]
    variables = {name: _put(text, places) for name, text in cell.variables.items()}
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def outcome(cell: Cell, places: dict[str, str]) -> str:
    """What came out, in a few words."""
    ran = _run(cell, places)
    last = (ran.stderr.strip() or ran.stdout.strip() or "nothing was printed").splitlines()[-1]
    if ran.returncode and ran.stderr.startswith(_NOT_HERE):
        return f"not tried: {last}"
    if not cell.tests:
        return "passes" if (ran.returncode, ran.stdout) == (0, "OK\n") else f"**fails**: {last}"
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped)", ran.stdout)
    told = ", ".join(f"{number} {word}" for number, word in counts) or last
    return told if not ran.returncode else f"**fails**: {told}"


def table(only: str) -> str:
    """The page, with a row for each place."""
    with tempfile.TemporaryDirectory(prefix="systems-") as home:
        program = Path(home, "program.py")
        program.write_text(ALL, "utf-8")
        places = {
            "python": sys.executable,
            "program": str(program),
            "zip": str(_zipped(Path(home))),
        }
        rows = []
        for cell in CELLS:
            if only in cell.where:
                what = "tests" if cell.tests else "program"
                rows.append(f"| {cell.where} | {what} | {outcome(cell, places)} | {cell.lacks} |")
                print(rows[-1], flush=True)
    return "\n".join([_HEAD, *rows, "", _about(), ""])


def _about() -> str:
    return (
        f"{platform.platform()}, Python {platform.python_version()}; `make systems` repeats this."
    )


_HEAD = """# Places

*Program* shares values, changes them, copies them and passes a handle; a worker is killed, a task
exceeds its time limit, results are large. *Tests* is a part of the suite. A feature that is missing
in a place raises an error that says what to do.

| where | what ran | result | missing |
|---|---|---|---|"""


def main() -> None:
    """Print the table, or write it to the page that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?")
    parser.add_argument("--only", default="")
    told = parser.parse_args()
    text = table(told.only)
    if told.page:
        Path(told.page).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
