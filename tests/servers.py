"""What programs.py has, run within a server or beside another library's loop.

    python tests/servers.py gunicorn | celery | gevent | uvloop | uwsgi

Prints OK if all of it was right, and the server ended when it was asked to.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from programs import EVERYTHING  # noqa: E402

_SECONDS = 120

_APPLICATION = f"""
{EVERYTHING}
def application(environ, start_response):
    everything()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"right"]
"""

# The server's own process uses the library before it forks.
_USED_BEFORE = """
task = parallel(use).with_options(backend="process", workers=2)
assert task.map([1], table=np.ones(600_000)) == [(600_001.0, False)]
"""

_TASKS = f"""
import celery
{EVERYTHING}
queue = celery.Celery("tasks", broker="filesystem://", backend="file://results")
folders = ["data_folder_in", "data_folder_out", "control_folder"]
queue.conf.broker_transport_options = dict.fromkeys(folders, "messages")

@queue.task
def right():
    everything()
    return "right"
"""

_GREENLETS = f"""
from gevent import monkey
monkey.patch_all()
import gevent
{EVERYTHING}
gevent.spawn(everything).get()
"""

_LOOP = f"""
import asyncio, uvloop
{EVERYTHING}
task = parallel(use).with_options(backend="process", workers=2)

async def main():
    table = np.ones(600_000)
    maps = [task.amap([k], table=table) for k in range(2)]
    assert await asyncio.gather(*maps) == [[(600_000.0 + k, False)] for k in range(2)]
    assert await asyncio.wrap_future(task.submit(1, table=table)) == (600_001.0, False)
    await asyncio.to_thread(everything)

uvloop.run(main())
"""


@contextlib.contextmanager
def _running(*command: str) -> Iterator[None]:
    """A server, ended as its supervisor does it."""
    with Path("said").open("w") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        yield
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(_SECONDS)


def _get() -> str:
    """The answer of the server that listens at the file "socket"."""
    connection = http.client.HTTPConnection("localhost", timeout=_SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX)
    until = time.monotonic() + _SECONDS
    while connection.sock.connect_ex("socket"):
        assert time.monotonic() < until, "it does not listen"
        time.sleep(0.1)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def gunicorn() -> None:
    """Two workers, forked from a process that has used the library."""
    Path("app.py").write_text(_APPLICATION + _USED_BEFORE)
    options = ("--preload", "--workers=2", f"--timeout={_SECONDS}", "--bind=unix:socket")
    with _running(sys.executable, "-m", "gunicorn", *options, "app:application"):
        assert [_get() for _ in range(3)] == ["right"] * 3


def uwsgi() -> None:
    """Two workers of uWSGI, which is sys.executable there."""
    Path("app.py").write_text(_APPLICATION)
    options = ("--master", "--processes=2", "--http-socket=socket", "--wsgi-file=app.py")
    home = f"--virtualenv={sys.prefix}"
    with _running(str(Path(sys.prefix, "bin", "uwsgi")), *options, home):
        assert [_get() for _ in range(3)] == ["right"] * 3


def celery() -> None:
    """Two workers of Celery, which forks them by billiard."""
    Path("jobs.py").write_text(_TASKS)
    os.mkdir("messages")
    os.mkdir("results")
    sys.path.insert(0, os.getcwd())
    with _running(sys.executable, "-m", "celery", "-A", "jobs", "worker", "-c", "2"):
        import jobs  # type: ignore[import-not-found]

        asked = [jobs.right.delay() for _ in range(3)]
        assert [each.get(timeout=_SECONDS) for each in asked] == ["right"] * 3


def gevent() -> None:
    """A program that gevent has patched before anything else was imported."""
    subprocess.run([sys.executable, "-c", _GREENLETS], check=True, stdout=subprocess.DEVNULL)


def uvloop() -> None:
    """Awaited calls in the loop of uvloop."""
    subprocess.run([sys.executable, "-c", _LOOP], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Run the one that is named in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="servers-") as home, contextlib.chdir(home):
        {each.__name__: each for each in (gunicorn, uwsgi, celery, gevent, uvloop)}[sys.argv[1]]()
    print("OK")


if __name__ == "__main__":
    main()
