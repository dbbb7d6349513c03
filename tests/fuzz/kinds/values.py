"""Values of many types that change between calls, seen by tasks in many ways."""

from collections.abc import Iterator

from fuzz.drawing import Draw

USES = ("shared", "copy", "copy", "plain", "captured", "self", "nested", "default")


def steps(draw: Draw) -> Iterator[str]:
    yield from moving(draw) if draw.chance(0.3) else changing(draw)


def changing(draw: Draw) -> Iterator[str]:
    """A value that changes, mostly before each use."""
    value, name = draw.value(), draw.name("value")
    yield f"{name} = {value.text}"
    while True:
        yield draw.look(name)
        if draw.chance(0.8):
            yield draw.change(name, value)
        if draw.chance(0.1):
            yield f"{name} = {value.text}"
        if draw.chance(0.05):
            yield draw.of(("sharedtask.shutdown()", "gc.collect()", f"repr({name})"))


def moving(draw: Draw) -> Iterator[str]:
    """An array in one use after the other: workers have decoded it, for another one."""
    name = draw.name("array")
    yield f"{name} = np.arange({draw.of((9_000, 140_000))}) % 100"
    while True:
        for _ in range(3):
            yield f"look({name}, {draw.of(USES)!r})"
        if draw.chance(0.2):
            yield f"{name}[-1] = {draw.number()}"
