# ruff: noqa: E501 - pieces of programs
"""Classes that change between calls: attributes, methods, tables of methods, bases."""

from collections.abc import Iterator

from fuzz.drawing import Draw

CLASS = """
class {c}Base:
    base = 1
    def below(self): return "below"

class {c}({c}Base):
    factor = 2
    table = {{}}
    def __init__(self, n): self.n = n
    def method(self, x): return self.factor * x + self.n, self.below(), self.base
    @property
    def size(self): return self.n
    @classmethod
    def of_class(cls, x): return cls.factor, x
    @staticmethod
    def of_none(x): return x
    def __call__(self, x): return self.method(x)

{o} = {c}(5)
def use_{c}(x): return {c}({n}).method(x), {o}.method(x), {o}.size, {o}.of_class(x), sorted({c}.table)
def use_given_{c}(x, it: Shared): return it.method(x), it.size, it.of_class(x), it.of_none(x)
"""
CHANGES = (
    "{c}.factor = {n}",
    "{c}Base.base = {n}",
    "{c}.base = {n}",
    "if 'base' in vars({c}): del {c}.base",
    "{c}.method = lambda self, x: ({n}, self.n)",
    "{c}.method.__defaults__ = None",
    "{c}Base.below = lambda self: {n}",
    "{c}.below = lambda self: {n}",
    "if 'below' in vars({c}): del {c}.below",
    "{c}.size = property(lambda self: {n})",
    "{c}.of_class = classmethod(lambda cls, x: (x, {n}))",
    "{c}.of_none = staticmethod(lambda x: {n})",
    "{c}.table[{n}] = {n}",
    "{c}.table = {{{n}: 1}}",
    "{o}.n = {n}",
    "{o}.factor = {n}",
    "{o} = {c}({n})",
    "setattr({o}, 'more{n}', [{n}])",
)
CALLS = (
    "check(use_{c}, {call})",
    "check(use_given_{c}, {call}, it={o})",
    "check({o}.method, {call})",
    "check({o}, {call})",
    "check(lambda x: {o}.method(x), {call})",
    "look({o}, {call})",
    "look({{'c': {c}, 'o': {o}}}, {call})",
)


def steps(draw: Draw) -> Iterator[str]:
    c, o = draw.name("Class"), draw.name("object")
    yield CLASS.format(c=c, o=o, n=draw.number())
    while True:
        for texts in (CALLS, CHANGES):
            yield draw.of(texts).format(c=c, o=o, n=draw.number(), call=draw.call())
