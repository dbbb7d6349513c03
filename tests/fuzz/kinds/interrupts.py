"""Ctrl-C at random moments: it is raised once and soon, and the next call is right at once."""

import re
from collections.abc import Iterator

from fuzz.drawing import Draw, Value

# Changed near the end, which a comparison comes to late, and in the last page, which has no watch.
BIG = (
    Value(
        "np.zeros(4_000_000)",
        ("{v}[-9_000 - {n}] = {n}", "{v}[-9_000 - {n}] = {n}", "{v}[-1] = {n}"),
    ),
    Value(
        "[np.zeros(600_000), 'x']",
        ("{v}[0][-9_000 - {n}] = {n}", "{v}[0][...] = {n}", "{v}[1] = 't{n}'"),
    ),
    Value("np.zeros(20_000)", ("{v}[-1] = {n}", "{v}[...] = {n}")),
)
SLOW = "check(lambda x: (time.sleep({s}), x)[1], {call})"


def steps(draw: Draw) -> Iterator[str]:
    value = draw.of(BIG) if draw.chance(0.7) else draw.value(1)
    name = draw.name("value")
    yield f"{name} = {value.text}\nlook({name})\nopen_before = descriptors()"
    while True:
        yield draw.change(name, value)
        call = draw.look(name) if draw.chance(0.5) else f"look({name})"
        if draw.chance(0.2):
            call = SLOW.format(s=draw.seconds(0.1), call=draw.call())
        # Tasks that run here may take the interrupt: it is theirs then.
        call = re.sub(", _backend='[a-z]*'", "", call)
        if draw.backend in ("serial", "thread"):
            call = f"look({name}, _backend='process')"
        for _ in range(draw.of((1, 1, 5))):
            yield f"interrupted(lambda: {call}, {draw.seconds(draw.of((0.005, 0.05, 0.3)))})"
            yield "take_numbers()"
        yield draw.look(name) if draw.chance(0.3) else f"look({name})"
        if draw.chance(0.5):
            yield from freed(draw)
        if draw.chance(0.4):
            yield from alarms(draw)
        if draw.chance(0.1):
            yield "check_numbers()\ncheck_descriptors(open_before)"


def freed(draw: Draw) -> Iterator[str]:
    """Ctrl-C in the middle of what is done for values that are freed."""
    for _ in range(4):
        seconds = round(draw.random.uniform(0.0001, 0.02), 4)
        closes = ", closes=True" if draw.chance(0.5) else ""
        yield f"free_until_interrupted({seconds}{closes})\ntake_numbers()"


def alarms(draw: Draw) -> Iterator[str]:
    """In the middle of a comparison, of a value that changes for the first time: it has a watch."""
    for _ in range(4):
        raising, seconds = draw.of(("alarmed", "thrown")), round(draw.random.uniform(0, 0.008), 4)
        yield f"unfinished({raising}, {seconds})"
