# ruff: noqa: E501, ISC004 - pieces of programs
"""Exceptions of many makes, raised in tasks: the caller gets what a loop would raise."""

from collections.abc import Iterator

from fuzz.drawing import Draw

# Classes {c}, and how one is made.
CLASSES = (
    ("class {c}(Exception): pass", "{c}((1, 2), 'two')"),
    ("class {c}(Exception):\n    def __init__(self, a, b=2): super().__init__(f'{a} {b}'); self.a = a",
     "{c}((1, [2]))"),
    ("class {c}(ValueError):\n    def __init__(self, *, a): self.a = a", "{c}(a={'k': (1,)})"),
    ("class {c}(OSError):\n    def __init__(self, code, path): super().__init__(code, 'text', path)",
     "{c}(2, '/nowhere')"),
    ("class {c}(Exception):\n    __slots__ = ('a', 'b')\n    def __init__(self, a): self.a = a; self.b = (a,)",
     "{c}((3, 4))"),
    ("class {c}(KeyError):\n    def __init__(self, key): super().__init__(key); self.more = {key: [key]}",
     "{c}((1, 'k'))"),
    ("class {c}(Exception):\n    def __reduce__(self): return {c}, (self.args[0],)", "{c}([1, (2,)])"),
    ("from collections import namedtuple\n{c}Point = namedtuple('{c}Point', 'x y')\n"
     "class {c}(Exception):\n    def __init__(self, p): super().__init__(p); self.p = p",
     "{c}({c}Point(1, (2,)))"),
    ("{c} = None", "OSError(2, 'No such file', '/a', None, '/b')"),
    ("{c} = None", "ImportError('text', name='module', path='/p')"),
    ("{c} = None", "AttributeError('text', name='a', obj=(1, 2))"),
    ("{c} = None", "NameError('text', name='a')"),
    ("{c} = None", "SyntaxError('text', ('file', 1, 2, 'line', 1, 3))"),
    ("{c} = None", "UnicodeDecodeError('utf-8', b'abc', 0, 1, 'bad')"),
    ("{c} = None", "KeyError((1, 2))"),
    ("{c} = None", "ExceptionGroup('several', [KeyError((1,)), OSError(2, 'text', 'f')])"),
    ("import urllib.error\n{c} = None", "urllib.error.HTTPError('http://a', 404, 'text', {}, None)"),
)  # fmt: skip
# Attributes that are set before it is raised.
EXTRA = ("", "error.extra = (1, [2])", "error.args = ((1, 2), 'other')", "error.deep = {'k': (1,)}")


def steps(draw: Draw) -> Iterator[str]:
    while True:
        (text, made), c, f = draw.of(CLASSES), draw.name("Odd"), draw.name("fails")
        extra = draw.of(EXTRA) or "pass"
        yield text.replace("{c}", c) + (
            f"\ndef {f}(x):\n    error = {made.replace('{c}', c)}\n    {extra}\n"
            "    if x == 1: raise error\n    return x"
        )
        yield f"check({f}, call={draw.of(('map', 'imap', 'submit', 'starmap', 'amap'))!r})"
        yield f"check(lambda x: {made.replace('{c}', c)})"  # as a result
