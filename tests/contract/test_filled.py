"""What a direct call has left in a global, a captured variable or ``self`` cannot always travel."""

from __future__ import annotations

import functools
import gc
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest

from sharedtask import SerializationError, Shared, UnshareableError, defaults, parallel

if TYPE_CHECKING:
    from collections.abc import Iterator

# Files and connections that a script leaves open are what this is about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SCRIPT = """
import functools, socket, sqlite3, tempfile, threading
from sharedtask import parallel

_con = _lock = _session = _file = _socket = _rows = None
cache = {}
guard = threading.Lock()

class Session:
    def __init__(self):
        self.lock = threading.Lock()

def session():
    global _session
    _session = _session or Session()
    return _session

@parallel
def connects(i):
    global _con
    _con = _con or sqlite3.connect(":memory:", check_same_thread=False)
    return i

@parallel
def locks(i):
    global _lock
    _lock = _lock or threading.Lock()
    return i

@parallel
def opens(i):
    global _file
    _file = _file or tempfile.TemporaryFile()
    return i

@parallel
def asks(i):
    return i if session() else None

@parallel
def keeps(i):
    if "con" not in cache:
        cache["con"] = sqlite3.connect(":memory:")
    return i

@parallel
def defaults_to(i, known={}):
    if "con" not in known:
        known["con"] = sqlite3.connect(":memory:")
    return i

def closing():
    con = None

    @parallel
    def closes(i):
        nonlocal con
        con = con or sqlite3.connect(":memory:")
        return i

    return closes

closes = closing()

@parallel
def guards(i):
    with guard:
        return i

@parallel
def streams(i):
    global _rows
    _rows = _rows or iter(i for i in range(9))
    return i

@functools.cache
def connection():
    return sqlite3.connect(":memory:", check_same_thread=False)

@parallel
def cures(i):
    return connection().execute("select ?", (i,)).fetchone()[0]
"""

FILLED = {
    "connects": ("connects: global _con is a sqlite3.Connection", "connects() sets _con itself"),
    "locks": ("locks: global _lock is a _thread.lock", "locks() sets _lock itself"),
    "opens": ("opens: global _file is a ", "opens() sets _file itself"),
    "asks": ("asks: global session: global _session.lock is a ", "session() sets _session itself"),
    "keeps": ("keeps: global cache['con'] is a ", "A direct call may have filled cache"),
    "defaults_to": ("default known['con'] is a ", "A direct call may have filled known"),
    "closes": ("captured con is a sqlite3.Connection", "closes() sets con itself"),
}


@pytest.fixture
def script() -> Iterator[dict[str, Any]]:
    """A script's functions, which travel by value, and its globals."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT, variables)
    yield variables
    if variables["_file"] is not None:
        variables["_file"].close()
    variables.clear()
    gc.collect()


@pytest.mark.parametrize("name", FILLED)
def test_what_a_direct_call_has_filled_is_named(script: Any, backend: Any, name: str) -> None:
    """The error names the variable, says who has filled it, and what to do; here it just runs."""
    task = script[name].with_options(backend=backend, workers=1)
    assert 1 == task(1)
    if backend in {"serial", "thread"}:
        assert [0, 1, 2] == task.map(range(3))
        return
    with pytest.raises(SerializationError) as caught:
        task.map(range(3))
    text = str(caught.value)
    for part in (*FILLED[name], "in a function with @functools.cache that returns it"):
        assert part in text


def test_cure_works(script: Any, backend: Any) -> None:
    """A cached function is called once in each worker, also after a direct call."""
    task = script["cures"].with_options(backend=backend)
    assert 1 == task(1)
    assert [0, 1, 2] == task.map(range(3))
    assert [0, 1, 2] == task.map(range(3))


@pytest.mark.parametrize("name", FILLED)
def test_without_a_direct_call_each_worker_fills_its_own(script: Any, name: str) -> None:
    """Nothing has to travel then."""
    task = script[name].with_options(backend="process", workers=2)
    assert [0, 1, 2] == task.map(range(3))


def test_what_no_call_has_filled_is_not_blamed_on_one(script: Any) -> None:
    """A lock that the script itself makes has the cure alone."""
    with pytest.raises(SerializationError) as caught:
        script["guards"].with_options(backend="process").map(range(3))
    assert "direct call" not in str(caught.value)
    assert "functools.cache" in str(caught.value)


def test_iterators_have_no_such_cure(script: Any) -> None:
    """One that each worker makes for itself would give all of them the same."""
    task = script["streams"].with_options(backend="process")
    task(1)
    with pytest.raises(SerializationError) as caught:
        task.map(range(3))
    assert "functools.cache" not in str(caught.value)


class Client:
    def __init__(self) -> None:
        self.con: Any = None

    @parallel
    def ask(self, i: int) -> int:
        self.con = self.con or sqlite3.connect(":memory:", check_same_thread=False)
        return i

    @parallel
    def ask_shared(self: Shared[Any], i: int) -> int:
        self.con = self.con or threading.Lock()
        return i


@pytest.mark.parametrize("how", ["ask", "ask_shared"])
def test_what_a_direct_call_has_left_in_self(how: str) -> None:
    """The same of an attribute, with the way to leave it out."""
    client = Client()
    task = getattr(client, how)
    assert 1 == task(1)
    with (
        defaults(backend="process"),
        pytest.raises((SerializationError, UnshareableError), match=r"self\.con is a") as caught,
    ):
        task.map(range(3))
    for part in ("A direct call may have filled it", "functools.cache", "__getstate__"):
        assert part in str(caught.value)


def test_wrapped_functions_are_looked_through() -> None:
    """What is in a partial has its path and no word of calls."""

    def use(con: Any, i: int) -> int:
        return i

    bad = functools.partial(use, sqlite3.connect(":memory:"))

    @parallel(backend="process")
    def call(i: int) -> Any:
        return bad(i)

    with pytest.raises(SerializationError, match=r"captured bad\.args"):
        call.map([1])
