"""Ctrl-C at random moments: it is raised once and soon, and the next call is right at once."""

import re
from collections.abc import Iterator

from fuzz.drawing import Draw, Value

BIG = (
    Value("np.zeros(4_000_000)", ("{v}[-1] = {n}", "{v}[-1] = {n}", "{v}[-9:] = {n}")),
    Value("[np.zeros(600_000), 'x']", ("{v}[0][-1] = {n}", "{v}[0][...] = {n}", "{v}[1] = 't{n}'")),
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
        yield draw.look(name) if draw.chance(0.3) else f"look({name})"
        if draw.chance(0.1):
            yield "check_descriptors(open_before)"
