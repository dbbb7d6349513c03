"""One cell of the table: a driver is started, heard, ended if need be, and its remains are seen."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.deeds import SCRATCH
from benchmarks.faults.judge import Observed, Remains
from benchmarks.faults.limits import LIMIT
from benchmarks.faults.pools import CONTESTANTS
from benchmarks.measure import MEMORY, ROOT

MARK = "FAULTS_CELL"  # environment variable by which everything a driver starts is known
LATE = 3.0  # seconds beyond a limit that the driver itself keeps
SETTLE = 3.0  # seconds in which processes may come to their end


class DriverError(Exception):
    """Raised when a driver does not get as far as the fault: the cell has no marks."""


@dataclass(slots=True)
class Cell:
    """A driver's process and what it said so far."""

    name: str
    key: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    scratch: Path = field(init=False)
    said: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    heard: bytes = b""

    def run(self) -> Observed:
        """Start it, hear it to its end, look at what is left, remove that."""
        with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as scratch:
            self.scratch = Path(scratch)
            with (self.scratch / "stderr").open("wb") as stderr:
                process = self.start(stderr)
            try:
                self.hear(process)
                return Observed(self.said, self.remains(process))
            finally:
                self.end(process)

    def start(self, stderr: Any) -> subprocess.Popen[bytes]:
        own = {MARK: self.mark, SCRATCH: str(self.scratch), "RAY_TMPDIR": str(self.scratch)}
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.driver", self.name, self.key],
            cwd=ROOT,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for the conductor; what is left is ended by mark
        )

    def hear(self, process: subprocess.Popen[bytes]) -> None:
        """Note what it says, until it is silent for too long, has ended, or has said it all."""
        limits = dict.fromkeys(("answer", "again", "closed"), LIMIT + LATE)
        for stage, limit in {"ready": CONTESTANTS[self.name].starts, **limits}.items():
            line = self.line(process, limit)
            if not line:
                break
            said = json.loads(line)
            self.said[said.pop("stage")] = said
            assert stage in self.said
        if "ready" not in self.said:
            raise DriverError((self.scratch / "stderr").read_text(errors="replace")[-500:])

    def line(self, process: subprocess.Popen[bytes], limit: float) -> bytes:
        """One line, or nothing. Workers hold the pipe too, so its end alone proves nothing."""
        assert process.stdout is not None  # it was asked for
        deadline = time.monotonic() + limit
        while b"\n" not in self.heard and time.monotonic() < deadline:
            gone = process.poll() is not None
            ready = select.select([process.stdout], [], [], 0.0 if gone else 0.05)[0]
            said = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not said and (gone or ready):
                break
            self.heard += said
        line, ended, rest = self.heard.partition(b"\n")
        if not ended:
            return b""
        self.heard = rest
        return line

    def remains(self, process: subprocess.Popen[bytes]) -> Remains:
        """What is there once the driver has ended and its children have had time to."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT + LATE if "closed" in self.said else LATE)
        status = process.returncode
        deadline = time.monotonic() + SETTLE
        while status is not None and self.family() and time.monotonic() < deadline:
            time.sleep(0.05)
        return Remains(
            status,
            tuple(sorted(map(command_of, self.family()))) if status is not None else (),
            tuple(path.name for path in memory_of(process.pid)),
            (self.scratch / "stderr").read_text(errors="replace"),
        )

    def family(self) -> list[int]:
        """Every process that this driver has started, daemons too, itself included."""
        mark = f"{MARK}={self.mark}".encode()
        return [pid for pid, environment in environments() if mark in environment]

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End the driver and all that is left of it."""
        process.kill()
        process.wait()
        deadline = time.monotonic() + SETTLE
        while (family := self.family()) and time.monotonic() < deadline:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        if process.stdout is not None:
            process.stdout.close()
        for path in memory_of(process.pid):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def environments() -> Iterator[tuple[int, list[bytes]]]:
    """The environment of each process that may be looked at; that of a zombie is empty."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(entry.name), (entry / "environ").read_bytes().split(b"\0")


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()[:80]
    return ""


def memory_of(pid: int) -> list[Path]:
    """Entries of /dev/shm whose name holds the driver's pid, as those of joblib and loky do."""
    return sorted(MEMORY.glob(f"*[!0-9]{pid}[!0-9]*"))
