# ruff: noqa: F401 - programs use what is imported here
"""What each random program begins with: calls, a plain loop beside them, and the comparison.

This text is at the top of a program that is printed, so that it runs by itself.
"""

import asyncio
import copy
import ctypes
import fcntl
import functools
import gc
import hashlib
import os
import re
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import pandas as pd

import sharedtask
from sharedtask import (
    CopyOnWrite,
    Locked,
    Partitioned,
    Reduced,
    Shared,
    Task,
    WorkerDiedError,
    multi_process,
    parallel,
)

BACKEND = "process"


def slowness() -> float:
    """How much longer than on an idle machine things take: processes that want a core, per core."""
    return min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0), 8.0)


PATIENCE = 20.0 * slowness()  # for what takes milliseconds where nothing is wrong
JOURNAL = os.path.join(tempfile.gettempdir(), f"fuzz-{os.getpid()}-{time.monotonic_ns()}")


ADDRESS = re.compile("0x[0-9a-f]+")


class Mismatch(Exception):
    """A call gave something else than the plain loop."""


def form(value: Any) -> Any:
    """What a value is, in plain tuples: equal where the values are the same."""
    name = type(value).__qualname__
    if type(value) in (int, str, bytes, bool, type(None)):
        return value
    if isinstance(value, np.ndarray | np.generic):
        plain = value.dtype.hasobject or value.dtype.names is not None
        content = form(value.tolist()) if plain else zlib.crc32(value.tobytes())
        return name, str(value.dtype), value.shape, content
    if name in ("DataFrame", "Series"):  # without the import of pandas in each worker
        return name, form(dict(value.reset_index().items() if value.ndim > 1 else value.items()))
    if isinstance(value, dict):
        return name, [(form(key), form(each)) for key, each in value.items()], inside(value)
    if isinstance(value, list | tuple | deque):
        return name, [form(each) for each in value], inside(value)
    if isinstance(value, set | frozenset):
        return name, sorted(repr(form(each)) for each in value)
    if isinstance(value, BaseExceptionGroup):
        return name, value.message, [form(each) for each in value.exceptions]
    if isinstance(value, BaseException):
        odd = ("filename", "filename2", "errno", "name", "path", "obj", "value", "code", "msg")
        return name, form(value.args), inside(value), [repr(getattr(value, n, None)) for n in odd]
    if isinstance(value, int | str | float | bytes | bytearray):
        return name, repr(value), inside(value)
    if isinstance(value, type):
        names = sorted(key for key in vars(value) if not key.startswith("__"))
        held = [(key, vars(value)[key]) for key in names if type(vars(value)[key]) in (int, dict)]
        return name, value.__qualname__, form(held)
    if callable(value) and hasattr(value, "__qualname__"):
        return name, value.__qualname__
    return name, inside(value) or ADDRESS.sub("", repr(value))


def inside(value: Any) -> Any:
    """The attributes of an object, also those in slots; without the notes that are added."""
    found = dict(getattr(value, "__dict__", {}))
    found.pop("__notes__", None)
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, slot) and not slot.startswith("__"):
                found[slot] = getattr(value, slot)
    return [(key, form(found[key])) for key in sorted(found)]


def seen(value: Any) -> str:
    """The same as a text; its beginning and a digest, where it is long."""
    text = repr(form(value))
    return text if len(text) < 500 else f"{text[:300]} {hashlib.md5(text.encode()).hexdigest()}"


def same(wanted: Any, found: Any, what: str) -> None:
    """Fail unless both are the same; the message begins a little before they differ."""
    if wanted != found:
        texts = str(wanted), str(found)
        at = max(len(os.path.commonprefix(texts)) - 80, 0)  # noqa: RUF071  by characters
        one, two = (("..." if at else "") + text[at : at + 300] for text in texts)
        raise Mismatch(f"{what}:\n  wanted {one}\n  found  {two}")


def outcome(call: Any) -> Any:
    """What a call returns or raises."""
    try:
        return "returned", [seen(each) for each in call()]
    except Mismatch:
        raise
    except Exception as error:
        return "raised", form(error)


# ------------------------------------------------------------------------------------ calls


def call_imap_partly(task: Any, items: Any, given: Any) -> Any:
    stream = task.imap(iter(items), **given)
    found = [result for _, result in zip(items[:-1], stream, strict=False)]
    stream.close()
    return found


def call_together(task: Any, items: Any, given: Any) -> Any:
    """Two threads make the same call, right after what was changed before."""
    found: dict[int, Any] = {}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    both = threading.Barrier(2)

    def call(number: int) -> None:
        both.wait()
        found[number] = outcome(lambda: task.map(items, **given))

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    if len(found) < 2:
        raise TimeoutError("threads that call together hang")
    same(found[0], found[1], "threads that call together")
    return task.map(items, **given)


def call_submit_then_cancel(task: Any, items: Any, given: Any) -> Any:
    futures = [task.submit(item, **given) for item in (*items, *items)]
    for future in futures[len(items) :]:
        future.cancel()
    return [future.result(PATIENCE) for future in futures[: len(items)]]


CALLS: dict[str, Any] = {
    "map": lambda task, items, given: task.map(items, **given),
    "starmap": lambda task, items, given: task.starmap([(item,) for item in items], **given),
    "imap": lambda task, items, given: list(task.imap(iter(items), **given)),
    "imap partly": call_imap_partly,
    "imap_unordered": lambda task, items, given: list(task.imap_unordered(items, **given)),
    "submit": lambda task, items, given: [
        future.result(PATIENCE) for future in [task.submit(item, **given) for item in items]
    ],
    "submit, cancel": call_submit_then_cancel,
    "amap": lambda task, items, given: asyncio.run(task.amap(items, **given)),
    "together": call_together,
}


AT_CALL: list[Any] = []  # what is to happen right before the next call, when the loop is over


def begin_call() -> None:
    """What is to happen right before this call happens now."""
    while AT_CALL:
        AT_CALL.pop()()


def check(function: Any, call: str = "map", items: Any = (0, 1, 2), **given: Any) -> None:
    """Make a call, and compare it with a plain loop over deep copies.

    Names with a leading underscore are options. The caller's own objects must be left as they were.
    """
    items = list(items)
    options = {name[1:]: given.pop(name) for name in list(given) if name.startswith("_")}
    options = {"backend": BACKEND, "workers": 2, **options}
    task = function if hasattr(type(function), "_sharedtask_") else parallel(function)
    plain = task.__wrapped__
    kept = options.get("return_exceptions") and "submit" not in call
    number = len(items) - 1 if call == "imap partly" else len(items)

    def one(item: Any) -> Any:
        try:
            return plain(copy.deepcopy(item), **copy.deepcopy(given))
        except Exception as error:
            if kept:
                return error
            raise

    before = seen((items, given))
    wanted = outcome(lambda: [one(item) for item in items[:number]])
    begin_call()
    found = outcome(lambda: CALLS[call](task.with_options(**options), items, given))
    if call == "imap_unordered" and wanted[0] == found[0] == "returned":
        wanted, found = sorted(wanted[1]), sorted(found[1])
    same(wanted, found, f"{call} {options}")
    same(before, seen((items, given)), f"the caller's own objects after {call} {options}")


# ------------------------------------------------------------------- ways to use one value


def use_shared(x: int, value: Shared[Any]) -> Any:
    return x, seen(value)


def use_nested(x: int, value: Shared[Any]) -> Any:
    return x, seen(value["in"])


def use_copy(x: int, value: CopyOnWrite[Any]) -> Any:
    found = x, seen(value)
    spoil(value)
    return found


def use_plain(x: int, value: Any) -> Any:
    return x, seen(value)


def use_plain_and_spoil(x: int, value: Any) -> Any:
    found = x, seen(value)
    spoil(value)
    return found


def use_item(value: Any) -> Any:
    return seen(value)


def give_back(x: int, value: Shared[Any]) -> Any:
    return copy.copy(value)


def use_global(x: int) -> Any:
    return x, seen(THING)


@dataclass
class Holder:
    held: Any

    def use(self, x: int) -> Any:
        return x, seen(self.held)


THING: Any = None
TASKS = {
    use.__name__: parallel(use)
    for use in (use_shared, use_nested, use_copy, use_plain, use_plain_and_spoil, use_item)
}


def spoil(value: Any) -> None:
    """Change what can be changed."""
    if isinstance(value, np.ndarray):
        if value.flags.writeable:
            value[...] = np.zeros((), value.dtype)
    elif isinstance(value, dict | set | list | deque | bytearray):
        for each in value.values() if isinstance(value, dict) else value:
            spoil(each)
        value.clear()
    elif type(value).__name__ == "DataFrame":
        value["spoilt"] = 0
    elif hasattr(value, "__dict__"):
        vars(value).update(dict.fromkeys(vars(value), 0))


def look(value: Any, use: str = "shared", call: str = "map", **options: Any) -> None:
    """Show a value to tasks in one of many ways; what they see is what the caller has."""
    global THING
    THING = value
    if use == "item":
        return check(TASKS["use_item"], call, [value, value], **options)
    if use == "nested":
        return check(TASKS["use_nested"], call, value={"in": value, "n": 1}, **options)
    if use == "plain_and_spoil":
        options["_chunksize"] = 1
    if f"use_{use}" in TASKS:
        return check(TASKS[f"use_{use}"], call, value=value, **options)
    if use == "result":
        return check(give_back, call, value=value, **options)
    if use == "global":
        return check(use_global, call, **options)
    if use == "default":
        return check(lambda x, value=value: (x, seen(value)), call, **options)
    if use == "captured":
        return check(lambda x: (x, seen(value)), call, **options)
    if use == "self":
        return check(Holder(value).use, call, **options)
    raise ValueError(use)


# ------------------------------------------------------------------------ odd circumstances


class Event(ctypes.Structure):
    """The sigevent of C: which signal a timer sends."""

    _fields_ = (("value", ctypes.c_void_p), ("signal", ctypes.c_int), ("rest", ctypes.c_int * 13))


def send_interrupt(seconds: float) -> None:
    """Have the kernel send SIGINT after this time, whatever Python does by then."""
    libc, timer = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
    if libc.timer_create(1, ctypes.byref(Event(signal=signal.SIGINT)), ctypes.byref(timer)):
        raise OSError(ctypes.get_errno(), "timer_create")
    times = (ctypes.c_long * 4)(0, 0, 0, int(seconds * 1e9) + 1)
    libc.timer_settime(timer, 0, times, None)
    TIMERS.append(lambda: libc.timer_delete(timer))


TIMERS: list[Any] = []


def interrupted(call: Any, seconds: float) -> None:
    """Ctrl-C in the middle of a call, or soon after: it is raised once, and soon."""
    began = time.monotonic()

    def begin() -> None:
        nonlocal began
        began = time.monotonic()
        send_interrupt(seconds)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        AT_CALL.append(begin)
        call()
        time.sleep(seconds + 1.0)
    except KeyboardInterrupt:
        late = time.monotonic() - began - seconds
        if late > 5.0 * slowness():
            raise Mismatch(f"Ctrl-C was raised after {late:.1f} seconds") from None
        return
    finally:
        AT_CALL.clear()
        while TIMERS:
            TIMERS.pop()()
    raise Mismatch("a Ctrl-C is lost")


def alarmed(call: Any, seconds: float) -> None:
    """The handler of another signal raises in the middle of a call: the next call is right."""

    def ring(*_: Any) -> None:
        raise Alarm("by a handler")

    signal.signal(signal.SIGALRM, ring)
    try:
        AT_CALL.append(lambda: signal.setitimer(signal.ITIMER_REAL, seconds))
        call()
    except (Alarm, Mismatch):
        pass
    finally:
        AT_CALL.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)


class Alarm(BaseException):
    """What a handler raises, or another thread."""


def thrown(call: Any, seconds: float) -> None:
    """Another thread has this one raise an exception in the middle of a call, as time limits do.

    The handler of a signal waits where the library is not ready for it. This exception does not.
    """
    throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
    this = ctypes.c_ulong(threading.get_ident())

    def run() -> None:
        time.sleep(seconds)
        throw(this, ctypes.py_object(Alarm))

    thread = threading.Thread(target=run, daemon=True)
    try:
        try:
            AT_CALL.append(thread.start)
            call()
        finally:
            AT_CALL.clear()
            thread.join()
            throw(this, None)  # unless it was raised
    except (Alarm, Mismatch):
        pass


def last_number(x: int, table: Shared[Any]) -> float:
    return float(table[-9_000])


def unfinished(raising: Any, seconds: float) -> None:
    """An exception ends the comparison of a value: the next call compares it again."""
    backend: Any = BACKEND if BACKEND == "ray" else "process"
    task = parallel(last_number).with_options(backend=backend, workers=1)
    value = np.zeros(2_000_000)
    task.map([0], table=value)
    value[-9_000] = 1

    def call() -> None:
        begin_call()
        task.map([0], table=value)

    raising(call, seconds)
    same([1.0], task.map([0], table=value), "a change whose comparison was not finished")


def free_until_interrupted(seconds: float, *, closes: bool = False) -> None:
    """Ctrl-C while values are shared and freed, or closed, one after the other."""

    def call() -> None:
        begin_call()
        limit = time.monotonic() + seconds + 5.0
        while time.monotonic() < limit:
            handle = sharedtask.share(np.zeros(20_000))
            if closes:
                handle.close()

    interrupted(call, seconds)


def locks_behind_links(journal: str) -> None:
    """A link in the place of a journal's lock is refused, and what it leads to is left alone."""
    behind = f"{journal}-behind"
    with open(behind, "w") as file:
        file.write("text")
    os.chmod(behind, 0o600)
    os.symlink(behind, f"{journal}-lock")
    options: dict[str, Any] = {"backend": BACKEND, "journal": journal}
    task = parallel(lambda x: x).with_options(**options)
    try:
        task.map(range(2))
    except sharedtask.JournalError:
        pass
    else:
        raise Mismatch("the lock of a journal followed a link")
    with open(behind) as file:
        same("text", file.read(), "the file behind the link")


def without_room(call: Any) -> None:
    """A call that finds no room for a new value; the next call is right."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = max(map(int, os.listdir("/proc/self/fd")))

    def begin() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))

    try:
        AT_CALL.append(begin)
        call()
    except Mismatch as error:
        if "raised" not in str(error).partition("found")[2]:
            raise
    finally:
        AT_CALL.clear()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def forked(call: Any) -> None:
    """Make a call in a forked child, while the parent makes it as well."""
    global JOURNAL
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        JOURNAL += "-of-the-child"  # one process writes a journal
        try:
            call()
        except BaseException as error:
            os.write(tell, repr(error).encode()[:4000] or b"?")
        finally:
            os._exit(0)
    os.close(tell)
    try:
        call()
        limit = time.monotonic() + PATIENCE
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > limit:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise TimeoutError("a forked child hangs")
            time.sleep(0.001)
        wrong = os.read(told, 4000).decode()
    finally:
        os.close(told)
    if wrong:
        raise Mismatch(f"in a forked child: {wrong}")


OWN = os.memfd_create("own")  # a file of the program, which it opens again and again
OWN_STATUS = os.fstat(OWN)
TAKEN: deque[int] = deque()  # the numbers under which it is open
TAKING = threading.RLock()
os.register_at_fork(
    before=TAKING.acquire, after_in_parent=TAKING.release, after_in_child=TAKING.release
)
CLOSED_TWICE: list[str] = []
CLOSE = getattr(os.close, "plain", os.close)


def is_own(number: int) -> bool:
    try:
        return os.path.samestat(os.fstat(number), OWN_STATUS)
    except OSError:
        return False


def take(number: int) -> None:
    """Open the program's file under this number, if it is free; only the last ones stay open."""
    with TAKING:
        try:
            TAKEN.append(fcntl.fcntl(OWN, fcntl.F_DUPFD_CLOEXEC, number))
        except OSError:  # no more descriptors are allowed
            return
        while len(TAKEN) > 32:
            give_back_number(TAKEN.popleft())


def give_back_number(number: int) -> None:
    if is_own(number):
        CLOSE(number)
    else:
        CLOSED_TWICE.append(f"{number}, not by os.close")


def close_and_take(number: int) -> None:
    """``os.close``: the program opens a file under the number at once: a second close is seen."""
    if is_own(number):
        CLOSED_TWICE.append("".join(traceback.format_stack(limit=8)))
        return
    try:
        CLOSE(number)
    finally:  # also where an interrupt comes when it is closed already
        take(number)


close_and_take.plain = CLOSE  # type: ignore[attr-defined]
os.close = close_and_take  # type: ignore[assignment]


def take_numbers() -> None:
    """Open the program's file under free numbers too: C code closes some as well."""
    check_numbers()
    for _ in range(8):
        take(0)


def check_numbers() -> None:
    """Fail if a file of the program was closed by the library."""
    gc.collect()
    with TAKING:
        lost = [number for number in TAKEN if not is_own(number)]
    CLOSED_TWICE.extend(f"{number}, not by os.close" for number in lost)
    if CLOSED_TWICE:
        raise Mismatch(f"a file of the program is closed: {CLOSED_TWICE.pop()}")


def release_numbers() -> None:
    """Close the program's file under all numbers, also where an interrupt came before the note."""
    with TAKING:
        TAKEN.clear()
        for name in os.listdir("/proc/self/fd"):
            if is_own(int(name)) and int(name) != OWN:
                CLOSE(int(name))


def descriptors() -> int:
    """How many descriptors are open when nothing is held.

    An array that was Locked keeps the table of its locks open for as long as it lives. Programs on
    serial and thread have calls that use processes: these end here, and begin again later.
    """
    from sharedtask.testing import forget_publications
    from sharedtask.writing.locked import registry as locks

    if BACKEND in ("serial", "thread"):
        sharedtask.shutdown()
    forget_publications()
    gc.collect()
    release_numbers()
    tables = sum(guarded._table is not None for guarded in locks._kept.all())
    return sum(map(_counts, os.listdir("/proc/self/fd"))) - tables


def _counts(number: str) -> bool:
    """Whether a descriptor may have leaked.

    Ray opens and closes sockets when it likes. What watches pages, and what leads to the resource
    tracker, is opened once and kept.
    """
    if int(number) == getattr(resource_tracker._resource_tracker, "_fd", None):
        return False
    try:
        path = os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
        return False
    if path.endswith(("[userfaultfd]", "/pagemap")):
        return False
    return "ray" not in sys.modules or not path.startswith("socket:")


def check_descriptors(before: int) -> None:
    """No descriptor is left open, when all that ends by itself has ended."""
    limit = time.monotonic() + PATIENCE
    while descriptors() > before:
        if time.monotonic() > limit:
            raise Mismatch(f"{descriptors() - before} descriptors are left open")
        time.sleep(0.05)


IGNORED: list[str] = []
sys.unraisablehook = lambda told: IGNORED.append(f"{told.err_msg}: {told.exc_value!r}")
threading.excepthook = lambda told: IGNORED.append(f"in {told.thread}: {told.exc_value!r}")


def finish() -> None:
    """The end of a program: no exception was lost on the way."""
    check_numbers()
    release_numbers()
    os.close = CLOSE
    os.close(OWN)
    same([], IGNORED, "exceptions that were ignored")
