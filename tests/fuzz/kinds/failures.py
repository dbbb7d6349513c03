"""Things that fail on the way: pickling that raises once, tasks that die, hang or raise."""

from collections.abc import Iterator

from fuzz.drawing import Draw

TEXTS = """
class Once:
    "Its pickling raises once, when that is asked for, in the caller."
    def __init__(self, n): self.n = n; self.held = [n]
    def __getstate__(self):
        if RAISING and os.getpid() == CALLER:
            RAISING.clear()
            raise RuntimeError("once")
        return vars(self)

RAISING = []

def failing(call):
    "A call that fails where the value is pickled; the next must be right."
    AT_CALL.append(lambda: RAISING.append(1))
    try:
        call()
    except Mismatch as error:
        if "once" not in str(error):
            raise
    finally:
        RAISING.clear()

def die_once(x, marker):
    if x == 1 and not os.path.exists(marker) and os.getpid() != CALLER:
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return x

def die(x, value: Shared):
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x, seen(value)

CALLER = os.getpid()

def deaths(value):
    "A worker that dies is an error of its item; the others have their results."
    task = parallel(die).with_options(backend=BACKEND, workers=2, return_exceptions=True)
    found = task.map(range(4), value=value)
    if not isinstance(found.pop(1), WorkerDiedError):
        raise Mismatch("no WorkerDiedError")
    same([(x, seen(value)) for x in (0, 2, 3)], found, "the items beside a death")

def late(value):
    task = parallel(lambda x, value: (time.sleep(30 * (x == 1)), seen(value))[1])
    task = task.with_options(backend=BACKEND, workers=2, return_exceptions=True, timeout=slowness())
    found = task.map(range(3), value=value)
    if not isinstance(found.pop(1), sharedtask.TaskTimeoutError):
        raise Mismatch("no TaskTimeoutError")
    same([seen(value)] * 2, found, "the items beside one that is late")
"""
PARTS = ("np.zeros(80_000)", "np.zeros(500_000)", "list(range(500))", "[np.zeros(20_000), 'x']")
CHANGES = (
    "{v}['once'].n = {n}", "{v}['once'].held.append({n})", "{v}['more'] = 't{n}'",
    "{v}['part'][-1] = {n}", "{v}['part'][-1] = {n}", "{v}['part'][0] = {n}",
)  # fmt: skip


def steps(draw: Draw) -> Iterator[str]:
    yield TEXTS
    v = draw.name("value")
    parts = [f"'once': Once({draw.number()})", f"'part': {draw.of(PARTS)}", "'more': 0"]
    draw.random.shuffle(parts)
    yield f"{v} = {{{', '.join(parts)}}}"
    processes = draw.backend == "process" or (draw.backend == "ray" and draw.chance(0.1))
    while True:
        use = draw.of(("shared", "shared", "nested", "copy", "captured", "global", "self"))
        yield f"look({v}, {use!r}, {draw.call()})"
        for _ in range(draw.of((1, 2))):
            yield draw.of(CHANGES).replace("{v}", v).replace("{n}", str(draw.number()))
        if draw.chance(0.6):
            yield f"failing(lambda: look({v}, {use!r}, {draw.call()}))"
            yield f"look({v}, {use!r}, {draw.call()})"
        elif draw.backend == "process" and draw.chance(0.3):
            yield f"without_room(lambda: look({v}, {use!r}, {draw.call()}))"
            yield f"look({v}, {use!r}, {draw.call()})"
        elif processes and draw.chance(0.2):
            yield draw.of((f"deaths({v})", f"late({v})"))
        elif processes:
            call, marker = draw.of(("map", "imap")), f"JOURNAL + {draw.name('died')!r}"
            yield f"check(die_once, {call!r}, range(5), marker={marker}, _retries=2)"
        if draw.chance(0.1):
            yield f"locks_behind_links(JOURNAL + {draw.name('journal')!r})"
        if draw.chance(0.3):
            yield draw.look(v)
