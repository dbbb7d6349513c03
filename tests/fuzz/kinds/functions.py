# ruff: noqa: E501, ISC004 - pieces of programs
"""Functions that reach something which changes: by globals, closures, defaults, methods, tables."""

from collections.abc import Iterator

from fuzz.drawing import Draw

# What is reached: the text that makes {t}, what is called with x, and changes. Some raise: so does
# the loop.
REACHED = (
    ("{0: 1, 1: 5, 2: 7}", "{t}.get", ("{t}[1] = {n}", "{t}.clear()", "{t}.update({{0: {n}}})")),
    ("{0, 2}", "{t}.__contains__", ("{t}.add(1)", "{t}.discard(0)", "{t}.clear()")),
    ("{0, 2}", "{t}.isdisjoint", ("{t}.add(1)", "{t}.discard(0)")),
    ("[2, 1, 0]", "{t}.index", ("{t}.reverse()", "{t}.insert(0, 9)", "{t}.pop()")),
    ("[2, 1, 0]", "{t}.count", ("{t}.append(1)", "{t}.clear()", "{t} += [0, 0]")),
    ("[2, 1, 0]", "{t}.__getitem__", ("{t}[1] = {n}", "{t}.reverse()")),
    ("deque([2, 1, 0])", "{t}.count", ("{t}.append(1)", "{t}.clear()")),
    ("np.arange(5)", "{t}.take", ("{t}[1] = {n}", "{t}[...] = {n}", "{t} *= 2")),
    ("np.arange(90_000)", "{t}.item", ("{t}[1] = {n}", "{t} += 1")),
    ("bytearray(5)", "{t}.__getitem__", ("{t}[1] = {n} % 255", "{t}.append({n} % 255)")),
    ("OrderedDict({0: 1, 1: 2, 2: 3})", "{t}.get", ("{t}[1] = {n}", "{t}.clear()")),
    ("Counter([1, 1])", "{t}.get", ("{t}[1] += 1", "{t}.update([2])")),
    ("Level(5)", "{t}.extra.__add__", ("{t}.extra = {n}",)),
    ("Level(5)", "(lambda x, t={t}: t.extra + x)", ("{t}.extra = {n}",)),
    ("Named('text')", "(lambda x, t={t}: (t.extra, x))", ("{t}.extra = {n}",)),
    ("Listed([1])", "(lambda x, t={t}: (t, t.extra, x))", ("{t}.extra = {n}", "{t}.append({n})")),
    ("Record(1, 2)", "{t}.__getattribute__('with_b')", ("{t}.b = {n}", "{t}.a = {n}")),
    ("Record(1, 2)", "functools.partial(Record.with_b, {t})", ("{t}.b = {n}",)),
    ("{0: 1, 1: 5}", "functools.partial(dict.get, {t})", ("{t}[1] = {n}",)),
    ("{0: [1], 1: [5], 2: [7]}", "{t}.__getitem__", ("{t}[1].append({n})", "{t}[0][0] = {n}")),
)

# How a function {f} comes by the method {m}, under the name {g}.
WAYS = (
    "{g} = {m}\ndef {f}(x): return {g}(x)",
    "{g} = {m}\n{f} = lambda x: [{g}(y) for y in (x,)]",
    "def make_{f}({g}): return lambda x: {g}(x)\n{f} = make_{f}({m})",
    "def {f}(x, {g}={m}): return {g}(x)",
    "def {f}(x, *, {g}={m}): return {g}(x)",
    "{g} = [{m}]\ndef {f}(x): return {g}[0](x)",
    "{g} = {{'m': {m}}}\ndef {f}(x): return {g}['m'](x)",
    "def inner_{f}(x, *, {g}={m}): return {g}(x)\ndef {f}(x): return inner_{f}(x)",
    "{g} = functools.partial({m})\ndef {f}(x): return {g}(x)",
    "def {f}(x): return {f}.__wrapped__.{g}(x)\n{f}.{g} = {m}",
    "class {g}: m = staticmethod({m})\ndef {f}(x): return {g}.m(x)",
    "class {g}:\n    def __init__(self): self.m = {m}\n    def __call__(self, x): return self.m(x)\n"
    "{g} = {g}()\ndef {f}(x): return {g}(x)",
)


def steps(draw: Draw) -> Iterator[str]:
    made, method, changes = draw.of(REACHED)
    t, f, g = draw.name("table"), draw.name("function"), draw.name("reached")
    method = method.replace("{t}", t)
    way = draw.of(WAYS).replace("{{", "{").replace("}}", "}")
    way = way.replace("{m}", method).replace("{f}", f).replace("{g}", g)
    yield f"{t} = {made}\n{way}\n{f} = parallel({f})"
    yield from constants(draw) if draw.chance(0.3) else changing(draw, f, t, changes)


def changing(draw: Draw, f: str, t: str, changes: tuple[str, ...]) -> Iterator[str]:
    while True:
        yield f"check({f}, {draw.call()})"
        change = draw.of(changes).replace("{{", "{").replace("}}", "}")
        yield change.replace("{t}", t).replace("{n}", str(draw.number()))


# Functions and how they change, with {f} for the function and {n} for a number.
CHANGING = (
    ("def {f}(x, *, a=1, b=2): return x, a, b", ("{f}.__kwdefaults__ = dict(a=2, b=1)",
      "{f}.__kwdefaults__ = dict(b={n}, a=1)", "{f}.__kwdefaults__['a'] = {n}",
      "{f}.__kwdefaults__ = {'a': {n}, 'b': 2}")),
    ("def {f}(x, a=1): return x, a", ("{f}.__defaults__ = ({n},)", "{f}.__defaults__ = ([{n}],)")),
    ("g_{f} = 1\ndef {f}(x): return x, g_{f}", ("g_{f} = {n}", "g_{f} = [{n}]", "g_{f} = True")),
    ("def g_{f}(x): return x\ndef {f}(x): return g_{f}(x)",
     ("def g_{f}(x): return x + {n}", "g_{f}.__code__ = (lambda x: x + {n}).__code__")),
    ("def g_{f}(x, *, k=1): return x, k\ndef {f}(x): return g_{f}(x)",
     ("g_{f}.__kwdefaults__ = dict(k={n})", "g_{f}.__kwdefaults__['k'] = {n}")),
    ("def {f}(x): return x", ("{f}.__code__ = (lambda x: x + {n}).__code__",)),
    ("def {f}(x): return x, {f}.__wrapped__.k\n{f}.k = 1", ("{f}.k = {n}", "{f}.k = [{n}]")),
    ("def make_{f}():\n    k = 1\n    def set_{f}(n):\n        nonlocal k\n        k = n\n"
     "    return (lambda x: (x, k)), set_{f}\n{f}, set_{f} = make_{f}()", ("set_{f}({n})",)),
    ("g_{f} = (1, [2])\ndef {f}(x): return x, g_{f}", ("g_{f}[1].append({n})", "g_{f} = (1, [{n}])")),
    ("g_{f} = np.ones(90_000)\ndef {f}(x): return x, float(g_{f}.sum())",
     ("g_{f}[5] = {n}", "g_{f} = np.full(90_000, {n})")),
    ("def {f}(x): return form(x), h_{f}(x)\nh_{f} = [1, 2, 3].__getitem__",
     ("h_{f} = [{n}, 2, 3].__getitem__", "h_{f} = str", "h_{f} = lambda x: {n}")),
)  # fmt: skip


def constants(draw: Draw) -> Iterator[str]:
    """Defaults, globals and code that are replaced, between calls of the same task."""
    text, changes = draw.of(CHANGING)
    f, plain = draw.name("function"), draw.name("plain")
    yield text.replace("{f}", f) + f"\n{plain} = {f}\n{f} = parallel({f})"
    while True:
        yield f"check({f}, {draw.call()})"
        change = draw.of(changes).replace("{n}", str(draw.number()))
        # Attributes are set on the function itself, below the task.
        yield change.replace("{f}.", f"{plain}.").replace(f"g_{plain}", "g_{f}").replace("{f}", f)
