"""Calls that begin in the middle of another one: in handlers, finalizers, pickling, callbacks."""

from collections.abc import Callable

import pytest
from budget import with_long

Run = Callable[..., str]

HEAD = """\
import asyncio, concurrent.futures, gc, io, os, pathlib, random, signal, sys, threading, time
import numpy as np
import sharedtask
from sharedtask import Shared, Reduced, parallel

BACKEND = sys.argv[1]
if BACKEND == "ray":
    import logging, ray
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             object_store_memory=1 << 28, logging_level=logging.ERROR)

def double(x):
    return 2 * x

def use(x, table: Shared):
    return float(table[0]) + x

def nap(x, seconds=0.05):
    time.sleep(seconds)
    return x

def on(function, **options):
    return parallel(function).with_options(backend=BACKEND, workers=2, **options)

def inner():
    assert on(double).map(range(3)) == [0, 2, 4]
    return 1
"""

END = """
print("OK")
"""


@pytest.fixture(params=["serial", "thread", "process", "ray"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend, in a program of its own: on Ray it starts a Ray for itself."""
    name: str = request.param
    return name


def passes(run: Run, text: str, backend: str) -> None:
    assert "OK" == run(HEAD + text + END, backend).splitlines()[-1]


# -------------------------------------------------------------------------- signal handlers

RANDOM_SIGNALS = """
counts = [0]
def handle(number, frame):
    counts[0] += inner()

signal.signal(signal.SIGALRM, handle)
tables = [np.full(10, k) for k in range(3)]
rng = random.Random(1)
inner()
until = time.monotonic() + 4
while time.monotonic() < until:
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.02))
    table = rng.choice(tables)
    table[0] += 1
    assert on(use).map(range(8), table=table) == [table[0] + x for x in range(8)]
    assert list(on(double).imap(range(5))) == [0, 2, 4, 6, 8]
    assert on(double).submit(4).result() == 8
signal.setitimer(signal.ITIMER_REAL, 0)
assert counts[0] > 20
"""


def test_signal_handler_that_maps_at_random_moments(run: Run, backend: str) -> None:
    """A handler runs between any two instructions of the main thread, in the middle of its map."""
    passes(run, RANDOM_SIGNALS, backend)


LOCKS = {
    "registry": "from sharedtask.backends import registry; lock = registry._lock",
    "backend": "lock = backend._lock",
    "pool": "lock = backend.pool._lock",
    "loop": "lock = backend.pool._loop._processing",
    "turn": "lock = backend.pool._loop._turning",
    "cache": "lock = backend._cache._lock",
    "handles": "from sharedtask.store import handles; lock = handles.handle_cache._lock",
    "tracker": "from sharedtask.memory import dirty_pages; lock = dirty_pages._the_tracker()._lock",
    "trackers": "from sharedtask.memory import dirty_pages; lock = dirty_pages._trackers_lock",
    "guards": "from sharedtask.writing.locked import registry; lock = registry.making",
    "totals": "from sharedtask.writing.reduced import accumulators; lock = accumulators._finishing",
}


@pytest.mark.parametrize("lock", with_long(LOCKS, "backend", "turn", "handles", "trackers"))
def test_signal_handler_that_maps_inside_a_lock(run: Run, lock: str) -> None:
    """It gets its results, whichever lock of the library its thread holds."""
    text = f"""
from sharedtask.backends import registry
inner()
backend = registry.get(BACKEND)
{LOCKS[lock]}
counts = []
signal.signal(signal.SIGUSR1, lambda *_: counts.append(inner()))
table = np.ones(200_000)
task = on(use)
with lock:
    signal.raise_signal(signal.SIGUSR1)
    assert counts == [1]
assert task.map(range(4), table=table) == [1.0, 2.0, 3.0, 4.0]
"""
    passes(run, text, "process")


def test_signal_handler_that_maps_inside_the_threads_lock(run: Run) -> None:
    """The thread backend has a lock as well."""
    text = """
from sharedtask.backends import registry
inner()
counts = []
signal.signal(signal.SIGUSR1, lambda *_: counts.append(inner()))
with registry.get(BACKEND)._threads._changed:
    signal.raise_signal(signal.SIGUSR1)
assert counts == [1]
inner()
"""
    passes(run, text, "thread")


def test_signal_handler_that_waits_for_another_threads_map(run: Run, backend: str) -> None:
    """While the main thread waits for results it holds nothing that the other thread needs."""
    text = """
def handle(number, frame):
    other = threading.Thread(target=inner)
    other.start()
    other.join()
    done.append(1)

done = []
inner()
signal.signal(signal.SIGALRM, handle)
for _ in range(3):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    assert on(nap).map(range(4), seconds=0.1) == [0, 1, 2, 3]
    signal.setitimer(signal.ITIMER_REAL, 0)
assert done
"""
    passes(run, text, backend)


def test_sigint_handler_that_maps(run: Run, backend: str) -> None:
    """A program's own handler of Ctrl-C is a handler like any other."""
    text = """
done = []
signal.signal(signal.SIGINT, lambda *_: done.append(inner()))
inner()
for k in range(10):
    threading.Timer(0.01 * k, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert on(nap).map(range(4)) == [0, 1, 2, 3]
assert done
"""
    passes(run, text, backend)


def test_handler_that_asks_for_old_results_is_told(run: Run) -> None:
    """Results of an earlier call cannot come while their table is half changed: it is an error."""
    text = """
from sharedtask.backends import registry
inner()
stream = on(nap).imap(range(8))
next(stream)
loop = registry.get(BACKEND).pool._loop
told = []
def handle(*_):
    try:
        list(stream)
    except sharedtask.SharedTaskError as error:
        told.append(error)
signal.signal(signal.SIGUSR1, handle)
with loop._processing:
    signal.raise_signal(signal.SIGUSR1)
assert "signal handler" in str(told)
inner()
"""
    passes(run, text, "process")


# ------------------------------------------------------------- user code that waits or maps

UNPICKLED = """
class Opens:
    def __init__(self, work):
        self.work = work
    def __reduce__(self):
        return eval, (f"__import__('__main__').{self.work}()",)

def make(x, work):
    return Opens(work)

def waits():
    opened.set()
    assert may_end.wait(60)
    return "waited"

def maps():
    inner()
    return "mapped"

opened, may_end = threading.Event(), threading.Event()
inner()
"""


@pytest.mark.parametrize("way", ["map([0], work={!r})", "submit(0, work={!r}).result()"])
def test_result_that_waits_as_it_is_unpickled(run: Run, way: str) -> None:
    """Another thread's map goes on while the thread that has turned the loop unpickles."""
    text = f"""
mapper = threading.Thread(target=lambda: on(make).{way.format("waits")})
mapper.start()
assert opened.wait(60)
assert on(nap).map(range(4)) == [0, 1, 2, 3]
late = on(nap, timeout=0.2, return_exceptions=True)
assert isinstance(late.map([0], seconds=20)[0], sharedtask.TaskTimeoutError)
future = on(double).submit(4)
while not future.done():
    time.sleep(0.01)
may_end.set()
mapper.join()
"""
    passes(run, UNPICKLED + text, "process")


def test_limits_hold_while_a_result_is_unpickled(run: Run) -> None:
    """The thread that waits for a map is away with its first result: the I/O thread takes over."""
    text = """
def make_or_hang(x, path):
    if x == 1:
        pathlib.Path(path).write_text(str(os.getpid()))
        time.sleep(60)
    return Opens("waits")

def waits():
    while not os.path.exists(path):
        time.sleep(0.01)
    pid = int(pathlib.Path(path).read_text() or 0)
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < until
        time.sleep(0.01)
    return "seen"

path = os.path.join(os.getcwd(), "pid")
task = on(make_or_hang, timeout=0.5, chunksize=1, return_exceptions=True)
first, second = task.map(range(2), path=path)
assert first == "seen", first
assert isinstance(second, sharedtask.TaskTimeoutError)
"""
    passes(run, UNPICKLED + text, "process")


@pytest.mark.parametrize(
    "way",
    [
        "map([0], work={!r}) == ['mapped']",
        "submit(0, work={!r}).result() == 'mapped'",
        "submit(0, work={!r}).result(60) == 'mapped'",
        "submit(0, work={!r}).exception() is None",
    ],
)
def test_result_that_maps_as_it_is_unpickled(run: Run, way: str) -> None:
    """Unpickling may call the library, whichever thread waits."""
    passes(run, f"{UNPICKLED}\nassert on(make).{way.format('maps')}\n", "process")


def test_future_that_nobody_waits_for(run: Run) -> None:
    """It is done all the same, and its result may map as it is unpickled."""
    text = """
future = on(make).submit(0, work="maps")
while not future.done():
    time.sleep(0.01)
assert future.result() == "mapped"
futures = [on(make).submit(0, work="maps") for _ in range(5)]
done, left = concurrent.futures.wait(futures, 60)
assert not left and {f.result() for f in done} == {"mapped"}
assert {f.result() for f in concurrent.futures.as_completed(futures)} == {"mapped"}
async def awaited():
    return await asyncio.wrap_future(on(make).submit(0, work="maps"))
assert asyncio.run(awaited()) == "mapped"
"""
    passes(run, UNPICKLED + text, "process")


PRINTING = """
class Stream(io.TextIOBase):
    def __init__(self):
        self.parts = []
    def write(self, text):
        if "item" in text:
            assert on(say).map([100]) == [100]
        self.parts.append(text)
        return len(text)

def say(x):
    print("item" if x < 100 else "other", x)
    return x

inner()
stream = Stream()
{0}
sys.stdout = stream
assert sorted(on(say).map(range(3))) == [0, 1, 2]
assert on(say).submit(4).result() == 4
future = on(say).submit(5)
while not future.done():
    time.sleep(0.01)
sys.stdout = sys.__stdout__
until = time.monotonic() + 20
while "".join(stream.parts).count("item") < 5:
    assert time.monotonic() < until, stream.parts
    time.sleep(0.01)
"""


@pytest.mark.parametrize("way", ["", "sys.stdout = io.TextIOWrapper(io.BytesIO())"])
def test_stream_that_maps_when_it_is_written_to(run: Run, backend: str, way: str) -> None:
    """What tasks print goes to the caller's stream, which may be a class of the user's."""
    if backend == "ray":
        pytest.skip("Ray brings what tasks print, by its own ways")
    passes(run, PRINTING.format(way), backend)


def test_finalizers_that_map(run: Run, backend: str) -> None:
    """A garbage collection runs them in any thread, in the middle of anything."""
    text = """
class Dying:
    def __init__(self):
        self.me = self
    def __del__(self):
        if not ended:
            counts.append(inner())

ended, counts = [], []
inner()
gc.set_threshold(20, 2, 2)
until = time.monotonic() + 4
k = 0
while time.monotonic() < until:
    for _ in range(3):
        Dying()
    k += 1
    table = np.full(10, k)
    assert on(use).map(range(4), table=table) == [k + x for x in range(4)]
    assert on(double).submit(3).result() == 6
assert len(counts) > 20
ended.append(1)
gc.set_threshold(700)
"""
    passes(run, text, backend)


def test_finalizer_of_an_item_that_maps(run: Run, backend: str) -> None:
    """Items die where their chunk is over."""
    text = """
class Item:
    def __init__(self, x):
        self.x = x
    def __reduce__(self):
        return int, (self.x,)
    def __int__(self):
        return self.x
    def __del__(self):
        inner()
def number(x):
    return int(x)

inner()
assert list(on(number).imap(Item(k) for k in range(5))) == [0, 1, 2, 3, 4]
assert on(number).submit(Item(3)).result() == 3
"""
    passes(run, text, backend)


def test_getstate_that_maps(run: Run, backend: str) -> None:
    """Pickling an item, an argument, a shared value, or the function runs user code."""
    text = """
class Value(list):
    def __getstate__(self):
        inner()
        return None
    def __reduce__(self):
        inner()
        return list, (list(self),)

def total(x, value, table: Shared):
    return sum(x) + sum(value) + table[0]
inner()
table = Value([5])
assert on(total).map([Value([1, 2])], value=Value([4]), table=table) == [12]
assert on(total).submit(Value([1, 2]), value=Value([4]), table=table).result() == 12
"""
    passes(run, text, backend)


def test_reduce_that_maps_the_same_value(run: Run, backend: str) -> None:
    """It may be published while it is being pickled."""
    text = """
class Value:
    depth = 0
    def __reduce__(self):
        Value.depth += 1
        if Value.depth == 1:
            assert on(first).map([1], value=self) == [6]
        Value.depth -= 1
        return list, ([5],)
def first(x, value: Shared):
    return value[0] + x
value = Value()
for _ in range(3):
    assert on(first).map([2], value=value) == [7]
"""
    passes(run, text, backend)


def test_two_threads_that_pickle_the_same_value(run: Run, backend: str) -> None:
    """One that waits in pickling does not keep the other from using the value."""
    text = """
class Value:
    def __reduce__(self):
        if threading.current_thread() is not threading.main_thread():
            here.set()
            assert may_end.wait(60)
        return list, ([5],)
def first(x, value: Shared):
    return value[0] + x
here, may_end = threading.Event(), threading.Event()
inner()
value = Value()
other = threading.Thread(target=lambda: on(first).map([2], value=value))
other.start()
assert here.wait(60)
assert on(first).map([2], value=value) == [7]
may_end.set()
other.join()
"""
    passes(run, text, backend)


def test_reduction_that_maps(run: Run, backend: str) -> None:
    """A function that combines may map, and wait for another thread that reduces the same way."""
    text = """
from typing import Annotated
from sharedtask import Reduction

def combine(a, b):
    inner()
    return a + b

def add(x, total: Annotated[np.ndarray, Reduction(combine, identity=0.0)]):
    total += x

def add_in_order(
    x, total: Annotated[np.ndarray, Reduction(combine, identity=0.0, deterministic=True)]
):
    total += x

inner()
for task in (add, add_in_order):
    total = np.zeros(2)
    on(task).map(range(6), total=total)
    assert total.tolist() == [15.0, 15.0], total
    on(task).submit(4, total=total).result()
    assert total.tolist() == [19.0, 19.0], total
"""
    passes(run, text, backend)


def test_items_that_map(run: Run, backend: str) -> None:
    """The input may be a stream of results."""
    text = """
def items():
    for y in on(double).imap(range(6)):
        inner()
        yield y
assert list(on(double).imap(items())) == [0, 4, 8, 12, 16, 20]
assert on(double).map(items()) == [0, 4, 8, 12, 16, 20]
"""
    passes(run, text, backend)


def test_progress_that_maps(run: Run, backend: str) -> None:
    """The progress bar writes to the caller's stderr."""
    text = """
class Stream(io.StringIO):
    inside = False
    def write(self, text):
        if not Stream.inside:
            Stream.inside = True
            inner()
            Stream.inside = False
        return super().write(text)
inner()
sys.stderr = Stream()
assert on(double, progress=True).map(range(5)) == [0, 2, 4, 6, 8]
assert "5" in sys.stderr.getvalue()
sys.stderr = sys.__stderr__
"""
    passes(run, text, backend)


def test_retry_whose_item_maps_as_it_is_pickled(run: Run, backend: str) -> None:
    """An item that is tried again is pickled again."""
    text = """
class Item:
    def __init__(self, path):
        self.path = path
    def __reduce__(self):
        inner()
        return Item, (self.path,)

def flaky(item):
    if not os.path.exists(item.path):
        pathlib.Path(item.path).touch()
        raise ValueError
    return 1
inner()
here = os.path.join(os.getcwd(), "tried")
task = on(flaky, retries=1)
assert task.map([Item(here)]) == [1]
os.unlink(here)
assert task.submit(Item(here)).result() == 1
os.unlink(here)
future = task.submit(Item(here))
while not future.done():
    time.sleep(0.01)
assert future.result() == 1
"""
    passes(run, text, backend)


def test_item_that_maps_as_its_chunk_is_sent_again(run: Run) -> None:
    """A chunk that a worker cannot unpickle is pickled again item by item."""
    text = """
class Item:
    def __init__(self, x):
        self.x = x
    def __reduce__(self):
        inner()
        return (refuse if self.x == 2 else int), (self.x,)

def refuse(x):
    raise ValueError("no")

def same(x):
    return x
inner()
task = on(same, return_exceptions=True, chunksize=4)
results = task.map([Item(x) for x in range(4)])
assert isinstance(results.pop(2), sharedtask.SerializationError), results
assert results == [0, 1, 3], results
future = task.submit(Item(2))
assert isinstance(future.result(), sharedtask.SerializationError)
"""
    passes(run, text, "process")


# ------------------------------------------------------------------------------- callbacks


def test_callbacks_that_map_submit_and_wait(run: Run, backend: str) -> None:
    """They may do what the program does, also where all of them do it at once."""
    text = """
seen = []
def call(future):
    inner()
    seen.append(on(double).submit(future.result()).result())
    seen.append(on(double).submit(1).result(60) + concurrent.futures.wait(
        [on(double).submit(2)]).done.pop().result())
futures = [on(double).submit(x) for x in range(8)]
for f in futures:
    f.add_done_callback(call)
until = time.monotonic() + 30
while len(seen) < 16:
    assert time.monotonic() < until, seen
    time.sleep(0.01)
assert sorted(seen) == sorted([4 * x for x in range(8)] + [6] * 8)
"""
    passes(run, text, backend)


def test_no_callback_runs_on_the_io_thread(run: Run, backend: str) -> None:
    """Whenever it is added: before, while, or after the future becomes done."""
    text = """
names, called = set(), []
def call(future):
    names.add(threading.current_thread().name)
    called.append(future)
rng = random.Random(2)
for _ in range(400):
    future = on(double).submit(3)
    until = time.perf_counter() + rng.uniform(0, 0.002)
    while time.perf_counter() < until:
        pass
    future.add_done_callback(call)
    future.result()
until = time.monotonic() + 20
while len(called) < 400:
    assert time.monotonic() < until
    time.sleep(0.01)
assert names <= {"MainThread", "sharedtask-callbacks"}, names
"""
    passes(run, text, backend)


def test_callbacks_are_those_of_the_standard_library(run: Run, backend: str) -> None:
    """In the order in which they were added, once, whatever one of them raises."""
    text = """
import logging
logging.getLogger("concurrent.futures").setLevel(logging.CRITICAL)
seen, ended = [], threading.Event()
future = on(nap).submit(3, seconds=0.2)
for k in range(5):
    future.add_done_callback(lambda f, k=k: seen.append(k))
    future.add_done_callback(lambda f: 1 / 0)
future.add_done_callback(lambda f: ended.set())
assert ended.wait(60) and seen == [0, 1, 2, 3, 4], seen
future.add_done_callback(lambda f: seen.append(threading.current_thread()))
assert seen[-1] is threading.main_thread()
assert future.result() == 3
"""
    passes(run, text, backend)


def test_cancelling_calls_back_at_once() -> None:
    """As the standard library does: in the thread that cancels."""
    from sharedtask.task.futures import TaskFuture

    future, seen = TaskFuture[int](), list[bool]()
    future.add_done_callback(lambda f: seen.append(f.cancelled()))
    assert future.cancel()
    assert [True] == seen


def test_two_threads_that_wait_for_one_future(run: Run, backend: str) -> None:
    """Both get the result, one of them after a first look with a limit."""
    text = """
def look(future, found):
    try:
        future.result(0.01)
    except TimeoutError:
        pass
    found.append(future.result())
for _ in range(20):
    future, found = on(nap).submit(3), []
    threads = [threading.Thread(target=look, args=(future, found)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3, 3, 3]
"""
    passes(run, text, backend)


def test_cancel_wakes_the_thread_that_waits(run: Run) -> None:
    """A future that waits in the queue may be cancelled by another thread."""
    text = """
busy = [on(nap).submit(0, seconds=0.5) for _ in range(4)]
future = on(nap).submit(1)
threading.Timer(0.1, future.cancel).start()
try:
    future.result()
except concurrent.futures.CancelledError:
    pass
else:
    assert future.result() == 1  # it had begun
"""
    passes(run, text, "process")
