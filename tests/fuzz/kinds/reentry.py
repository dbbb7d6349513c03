"""Code of the user that maps while a map runs: handlers, callbacks, pickling, printing."""

from collections.abc import Iterator

from fuzz.drawing import Draw

TEXTS = """
def inner(n=0):
    check(lambda x: x + n, _chunksize=1)

class MapsWhenPickled:
    def __init__(self, n): self.n = n
    def __getstate__(self):
        inner(self.n)
        return {"n": self.n}

class MapsWhenRebuilt:
    def __init__(self, n): self.n = n
    def __reduce__(self): return rebuild, (self.n, os.getpid())

def rebuild(n, pid):
    if os.getpid() == pid:
        return MapsWhenRebuilt(n)
    return MapsWhenRebuilt(n)

class SlowWhenRebuilt:
    def __init__(self, n): self.n = n
    def __setstate__(self, state):
        time.sleep(0.05)
        vars(self).update(state)

class MapsBackHere:
    "Maps where it is unpickled, which is in the caller for a result."
    def __init__(self, n): self.n = n
    def __setstate__(self, state):
        vars(self).update(state)
        if threading.current_thread().name != "in a task":
            parallel(lambda x: x + 1).with_options(backend=BACKEND, workers=2).map(range(2))

class MapsWhenDropped:
    def __del__(self):
        parallel(lambda x: x + 1).with_options(backend=BACKEND, workers=2).map(range(2))

class Printer:
    def write(self, text):
        parallel(lambda x: x + 1).with_options(backend=BACKEND, workers=2).map(range(2))
        return len(text)
    def flush(self): pass

def under_alarms(call, seconds):
    rung = []
    def ring(*_):
        rung.append(1)
        if len(rung) < 20:
            inner(len(rung))
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.01)
    try:
        call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)

def with_callback(n):
    told = []
    task = parallel(lambda x: x + n).with_options(backend=BACKEND, workers=2)
    done = threading.Event()
    def call_back(future):
        told.append(task.map([future.result()]))
        done.set()
    task.submit(1).add_done_callback(call_back)
    check(lambda x: x - n)
    if not done.wait(PATIENCE):
        raise TimeoutError("a callback that maps hangs")
    same([[1 + 2 * n]], told, "a callback that maps")

PRINTERS = []  # kept: CPython's print crashes where its stdout is freed by another thread

def printing(call):
    before, sys.stdout = sys.stdout, Printer()
    PRINTERS.append(sys.stdout)
    try:
        call()
    finally:
        sys.stdout = before
"""
STEPS = (
    "look(MapsWhenPickled({n}), {use!r})",
    "look([MapsWhenPickled({n}), np.ones(50_000)], {use!r}, {call})",
    "check(lambda x: MapsWhenRebuilt(x), {call})",
    "check(lambda x: MapsBackHere(x), {call})",
    "check(lambda x: SlowWhenRebuilt(x), {call})",
    "check(lambda x: SlowWhenRebuilt(x), 'together')",
    "under_alarms(lambda: check(lambda x: (time.sleep(0.01), x)[1], {call}), {s})",
    "under_alarms(lambda: look(np.ones({n} * 1000), {use!r}, {call}), {s})",
    "under_alarms(lambda: check(lambda x: MapsBackHere(x), {call}), {s})",
    "with_callback({n})",
    "dropped = MapsWhenDropped()\ndropped.itself = dropped\ndel dropped",
    "dropped = MapsWhenDropped()\ncheck(lambda x: [[] for _ in range(2_000)])\ndel dropped",
    "printing(lambda: check(lambda x: (print('text', x), x)[1], {call}))",
)


def steps(draw: Draw) -> Iterator[str]:
    yield TEXTS
    while True:
        use = draw.of(("shared", "plain", "captured", "item", "copy"))
        yield draw.of(STEPS).format(
            n=draw.number(), use=use, call=draw.call(), s=draw.seconds(0.03) or 0.001
        )
