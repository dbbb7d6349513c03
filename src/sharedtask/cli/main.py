"""The command line: names, entries of dead owners, available features, journals' contents.

    sharedtask ls [--json]   sharedtask clean   sharedtask info [--json]   sharedtask --version
    sharedtask journal FILE [--json | --recover NEW]   sharedtask demo   sharedtask bench
    sharedtask trace [-o FILE] PROGRAM ARGUMENTS...

On a terminal ``ls`` and ``journal`` show a table for people. Into a pipe they write a line for each
name or run, with tabs between plain fields and no heading.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

from sharedtask.errors import SharedTaskError
from sharedtask.memory import capacity
from sharedtask.store import name_registry
from sharedtask.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sharedtask.store.name_registry import Listed
    from sharedtask.task.journal.database import Told

    _Command = Callable[[argparse.Namespace], None]

__all__ = ["main", "parser"]

_L = TypeVar("_L")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 1 after one line on standard error.

    A wrong command line exits with 2, as argparse does.
    """
    ours = parser()
    given = ours.parse_args(arguments)
    if given.command is None:
        ours.print_help()
        return 0
    command: _Command = given.command
    try:
        command(given)
        sys.stdout.flush()
    except BrokenPipeError:  # `sharedtask ls | head -1`: the reader has enough
        _drop_output()
    except (SharedTaskError, OSError) as error:
        sys.stderr.write(f"sharedtask: {error}\n")
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The commands, their options and their help."""
    parser = argparse.ArgumentParser(prog="sharedtask", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sharedtask {VERSION}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    ls = _add(commands, "ls", _ls, "list the names that values are shared under")
    ls.add_argument("--json", action="store_true", help="as JSON, every field")
    _add(commands, "clean", _clean, "remove names whose owners have ended")
    info = _add(commands, "info", _info, "show versions, defaults, and what works here")
    info.add_argument("--json", action="store_true", help="as JSON")
    _add(commands, "bench", _bench, "measure what a call costs here, and where a loop is faster")
    _add(commands, "demo", _demo, "do one real job in several ways, with time and memory")
    journal = _add(commands, "journal", _journal, "show what a journal has recorded")
    journal.add_argument("file", metavar="FILE", help="as given to journal=")
    how = journal.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON, every field")
    how.add_argument("--recover", metavar="NEW", help="copy what is readable into a new journal")
    trace = _add(commands, "trace", _trace, "run a program and record what its calls do")
    to = "the file of the trace: .html (a page), .json (Perfetto, chrome://tracing) or .txt"
    trace.add_argument("-o", "--output", metavar="FILE", default="trace.html", help=to)
    trace.add_argument("program", metavar="PROGRAM", help="a Python program")
    trace.add_argument("arguments", nargs=argparse.REMAINDER, help="of the program")
    return parser


def _add(commands: Any, name: str, command: _Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(command=command)
    return parser


_ABOUT = "Measure, trace and inspect sharedtask: the machine, journals, and values with a name."


def _drop_output() -> None:
    """Avoid Python's error at exit that the output cannot be written."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _say(*lines: str) -> None:
    coding = sys.stdout.encoding or "utf-8"
    for line in lines:  # any name of a file or a dtype
        sys.stdout.write(f"{line}\n".encode(coding, "backslashreplace").decode(coding))


# ------------------------------------------------------------------------------------ ls, clean


def _ls(given: argparse.Namespace) -> None:
    _list(given, name_registry.listing(), _as_json, _table, _fields)


def _list(
    given: argparse.Namespace,
    found: list[_L],
    as_json: Callable[[_L], dict[str, Any]],
    table: Callable[[list[_L]], list[str]],
    fields: Callable[[_L], Iterable[str]],
) -> None:
    """Print names as JSON for programs, as a table for people, line by line for a pipe."""
    if given.json:
        _say(json.dumps([as_json(each) for each in found], indent=2))
    elif sys.stdout.isatty():
        _say(*table(found))
    else:
        _say(*("\t".join(fields(each)) for each in found))


def _as_json(each: Listed) -> dict[str, Any]:
    told = {} if each.entry is None else dataclasses.asdict(each.entry)
    return {**told, "name": each.name, "state": each.state}


def _printable(text: str) -> str:
    """Escape control characters of foreign text, which could move the cursor."""
    return text if text.isprintable() else ascii(text)


_HEADING = ("NAME", "KIND", "WHAT", "BYTES", "OWNER", "STATE", "AGE")


def _fields(each: Listed, size: Callable[[int], str] = str, age: Callable[[int], str] = str) -> Any:
    entry = each.entry
    if entry is None:
        return (_printable(each.name), "-", "-", "-", "-", each.state, "-")
    seconds = max(int(time.time() - entry.created), 0)
    return (
        each.name,
        _printable(entry.kind),
        _printable(entry.look),
        size(entry.nbytes),
        str(entry.pid),
        each.state,
        age(seconds),
    )


def _table(found: list[Listed]) -> list[str]:
    if not found:
        return ["nothing is shared under a name."]
    return _aligned([_HEADING, *(_fields(each, capacity.human, _age) for each in found)])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _age(seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _clean(_given: argparse.Namespace) -> None:
    removed = name_registry.clean()
    _say(*map(_removal, removed))
    if not removed:
        _say("nothing to remove.")


def _removal(each: Listed) -> str:
    if each.entry is None:
        return f"removed {_printable(each.name)}: its entry was damaged."
    return f"removed {each.name}: process {each.entry.pid}, which had shared it, has ended."


# -------------------------------------------------------------------------------------- journal


def _journal(given: argparse.Namespace) -> None:
    from sharedtask.task.journal import database  # loads SQLite, and numpy

    if given.recover is not None:
        _recover(given.file, given.recover)
        return
    _list(given, database.reading(given.file), _run_as_json, _run_table, _run_fields)


def _recover(path: str, new: str) -> None:
    from sharedtask.task.journal import recovery

    found = recovery.recover(path, new)
    _say(f"{new}: {found.results} results of {found.runs} runs.")


def _run_as_json(each: Told) -> dict[str, Any]:
    row = each.row
    return {
        "run": _run_name(each),
        "task": row.task,
        "begun": row.begun,
        "written": row.written,
        "recorded": each.recorded,
        "total": row.total,
        "bytes": each.nbytes,
        "finished": bool(row.finished),
        "digests": row.digests(),
    }


_RUN_HEADING = ("RUN", "TASK", "BEGUN", "WRITTEN", "RECORDED", "OF", "BYTES", "STATE", "KEYED ON")


def _run_fields(
    each: Told, size: Callable[[int], str] = str, when: Callable[[float], str] = "{:.0f}".format
) -> tuple[str, ...]:
    row = each.row
    return (
        _run_name(each),
        _printable(row.task),
        when(row.begun),
        when(row.written),
        str(each.recorded),
        "-" if row.total is None else str(row.total),
        size(each.nbytes),
        "finished" if row.finished else "unfinished",
        _printable(", ".join(f"{name} {d[:6]}" for name, d in _telling(row.digests()).items())),
    )


def _run_name(each: Told) -> str:
    return f"{each.row.id:016x}"[:8]


def _telling(digests: dict[str, str]) -> dict[str, str]:
    """Digests that distinguish runs of one task, with all parts of its code as one."""
    return {name: digest for name, digest in digests.items() if name.startswith(_TELLING)}


_TELLING = ("the code", "the value", "the argument", "the global")


def _run_table(found: list[Told]) -> list[str]:
    if not found:
        return ["nothing is recorded."]
    return _aligned([_RUN_HEADING, *(_run_fields(each, capacity.human, _ago) for each in found)])


def _ago(when: float) -> str:
    return f"{_age(max(int(time.time() - when), 0))} ago"


# ----------------------------------------------------------------------------------------- info


def _info(given: argparse.Namespace) -> None:
    facts = {**_versions(), **_defaults(), **_machine(), "names": name_registry.directory()}
    if given.json:
        _say(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    _say(*(f"{name.ljust(width)}  {_for_people(value)}" for name, value in facts.items()))


def _for_people(value: object) -> str:
    """A fact as text; JSON has the numbers, true and false, and null."""
    match value:
        case None:
            return "not installed"
        case bool():
            return "yes" if value else "no"
        case {"total": int(total), "available": int(available)}:
            return f"{capacity.human(total)}, {capacity.human(available)} available"
        case _:
            return str(value)


def _versions() -> dict[str, str | None]:
    import platform

    return {
        "sharedtask": VERSION,
        "python": platform.python_version(),
        "numpy": _version_of("numpy"),
        "ray": _version_of("ray"),
        "linux": platform.release(),
    }


def _version_of(package: str) -> str | None:
    """The installed version, or None, without an import: that of ray takes half a second."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _defaults() -> dict[str, str | int]:
    from sharedtask import options
    from sharedtask.system.cpus import available_cpus

    chosen, cpus = options.resolve({}), available_cpus()
    return {
        "backend": chosen.backend,
        "workers": cpus if chosen.workers is None else chosen.workers,
        "CPUs": cpus,
    }


def _machine() -> dict[str, bool | dict[str, int]]:
    return {
        "memory": {"total": capacity.total(), "available": capacity.available()},
        "memfd": _has_memfd(),
        "userfaultfd": _has_watches(),
        "huge pages": _has_huge_pages(),
    }


def _has_memfd() -> bool:
    from sharedtask.memory import segments

    return segments.uses_memfd()


def _has_watches() -> bool:
    """Whether the kernel reports writes, so that unchanged arrays need not be compared."""
    import numpy as np

    from sharedtask.memory import dirty_pages, mapping

    array = np.zeros(2 * dirty_pages.WATCH_FROM, np.uint8)
    watch = dirty_pages.watch(mapping.address_of(array), array.nbytes)
    if watch is not None:
        watch.release()
    return watch is not None


def _has_huge_pages() -> bool:
    """Whether new segments get them; tested with one."""
    from sharedtask.memory import mapping, segments

    fd = segments.scratch(mapping.HUGE)
    try:
        huge = segments.collapse(fd, mapping.HUGE)
        if huge is not None:
            huge.room.close()
        return huge is not None and huge.ready > 0
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------------- trace


def _trace(given: argparse.Namespace) -> None:
    """Run a program in this process, as ``python PROGRAM ARGUMENTS`` would."""
    from sharedtask.tracing import program

    if not os.path.isfile(given.program):
        msg = f"{given.program}: there is no such file."
        raise FileNotFoundError(msg)
    program.check_path(given.output)
    path = os.path.abspath(given.output)
    os.environ[program.VARIABLE] = path
    command = [sys.executable, given.program, *given.arguments]
    os.execv(sys.executable, command)  # noqa: S606  the user's own program


# ----------------------------------------------------------------------------------------- demo


def _demo(_given: argparse.Namespace) -> None:
    from sharedtask.cli import search

    _say_at_once(search.run())


def _bench(_given: argparse.Namespace) -> None:
    from sharedtask.cli import bench

    _say_at_once(bench.run())


def _say_at_once(lines: Iterable[str]) -> None:
    for line in lines:
        _say(line)
        sys.stdout.flush()
