"""Values of many types that change between calls, seen by tasks in many ways."""

from collections.abc import Iterator

from fuzz.drawing import Draw


def steps(draw: Draw) -> Iterator[str]:
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
