"""Forks of a process whose pool is live: parent and child map at the same time."""

from collections.abc import Iterator

from fuzz.drawing import Draw

CALLBACK = """
def called_back(value):
    done = threading.Event()
    future = parallel(use_plain).with_options(backend=BACKEND, workers=2).submit(1, value=value)
    future.add_done_callback(lambda _: done.set())
    if not done.wait(PATIENCE):
        raise TimeoutError("a callback is never called")
    same((1, seen(value)), future.result(PATIENCE), "submit with a callback")
"""


def steps(draw: Draw) -> Iterator[str]:
    if draw.backend == "ray":  # a driver of Ray cannot be forked
        yield from harmless(draw)
    yield CALLBACK
    value, name = draw.value(1), draw.name("value")
    yield f"{name} = {value.text}"
    while True:
        if draw.chance(0.6):
            yield draw.look(name)
        if draw.chance(0.3):
            yield f"called_back({name})"
        change = draw.change(name, value)
        inside = [draw.look(name), f"called_back({name})"]
        made = draw.name("in_both")
        yield f"def {made}():\n    {draw.of(inside)}\n    {draw.of(inside)}"
        if draw.chance(0.6):
            yield change
        yield f"forked({made})"


def harmless(draw: Draw) -> Iterator[str]:
    while True:
        yield "check(lambda x: x)"
