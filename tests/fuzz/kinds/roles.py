# ruff: noqa: E501 - pieces of programs
"""Arrays that tasks write together, beside a loop that writes them one after the other."""

from collections.abc import Iterator

from fuzz.drawing import Draw

TEXTS = """
def fill(x, out: Partitioned): out[...] = x * FACTOR
def add(x, total: Reduced): total += x * FACTOR
def count(x, grid: Locked):
    with grid.write(x % 4) as row:
        row += FACTOR
def see(x, grid: Locked):
    with grid.read() as whole:
        return seen(np.array(whole))
def mixed(x, table: Shared, out: Partitioned, total: Reduced):
    out[...] = table[x]
    total += table[x]
    return x

FACTOR = 1

def together(kind, array, **options):
    "Tasks that write an array; what is in it afterwards."
    wanted = array.copy()
    for x in range(len(array)):
        if kind is fill: wanted[x] = x * FACTOR
        if kind is add: wanted += x * FACTOR
        if kind is count: wanted[x % 4] += FACTOR
    name = {fill: "out", add: "total", count: "grid"}[kind]
    options = {"backend": BACKEND, "workers": 2, **options}
    parallel(kind).with_options(**options).map(range(len(array)), **{name: array})
    same(seen(wanted), seen(array), f"{kind.__name__} {options}")

def into(array, **options):
    options = {"backend": BACKEND, "workers": 2, **options}
    parallel(lambda x: x * FACTOR).with_options(**options).map_into(array, range(len(array)))
    same([x * FACTOR for x in range(len(array))], array.reshape(len(array), -1)[:, 0].tolist(), "map_into")

def given_up(array):
    "A submitted task that is cancelled before it runs, or not; the array is the caller's again."
    nap = parallel(lambda x: time.sleep(x)).with_options(backend=BACKEND, workers=1)
    task = parallel(see).with_options(backend=BACKEND, workers=1)
    busy = nap.submit(0.05)
    future = task.submit(0, grid=array)
    given_up = future.cancel()
    busy.result(PATIENCE)
    if not given_up:
        future.result(PATIENCE)

def view(array):
    task = parallel(see).with_options(backend=BACKEND, workers=2)
    before = seen(array)
    same([before] * 3, task.map(range(3), grid=array), "what Locked tasks see")
    same(before, seen(array), "the array after Locked tasks that only read")
"""
ARRAYS = (
    "np.zeros(4)", "np.zeros((4, 5))", "np.zeros((8, 3), 'i8')", "np.zeros((30, 4))[::5]",
    "np.zeros((5, 4)).T", "sharedtask.zeros(4)", "sharedtask.zeros((6, 50_000))",
    "np.zeros((4, 40_000))",
)  # fmt: skip
STEPS = (
    "together(fill, {v}{options})", "together(add, {v}{options})", "together(count, {v}{options})",
    "together(fill, {v}{options})", "together(add, {v}{options})", "together(count, {v}{options})",
    "into({v}{options})", "view({v})", "given_up({v})\n{v}[...] = {n}\nview({v})",
    "{v}[...] = {n}", "{v}[-1] = {n}", "FACTOR = {n} % 7", "look({v}, {use!r}, {call})",
)  # fmt: skip

# Ray refuses Locked.
LOCKED = ("together(count", "view(", "given_up(")


def steps(draw: Draw) -> Iterator[str]:
    yield TEXTS
    known = [step for step in STEPS if draw.backend != "ray" or not step.startswith(LOCKED)]
    v = draw.name("array")
    yield f"{v} = {draw.of(ARRAYS)}"
    while True:
        workers = f", workers={draw.of((1, 2))}" if draw.chance(0.2) else ""
        size = f", chunksize={draw.of((1, 3))}" if draw.chance(0.2) else ""
        use = draw.of(("shared", "copy", "plain", "captured"))
        yield draw.of(known).format(
            v=v, n=draw.number(), options=workers + size, use=use, call=draw.call()
        )
