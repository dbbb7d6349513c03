"""What pickle finds by its name travels by its parts where only the script has the name."""

import pickle
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from sharedtask.serialization import codec
from sharedtask.serialization.kinds import compiled, named

Run = Callable[..., str]

SCRIPT = """
import contextvars, ctypes, functools, typing
import numpy as np
from sharedtask import Shared, parallel

LIMIT = 3

@functools.lru_cache(maxsize=7, typed=True)
def cached(x):
    return cached(x - 1) + 1 if x else LIMIT
cached.unit = "m"

class Model:
    @functools.cache
    def method(self, x):
        return x + 1
    @staticmethod
    @functools.cache
    def static(x):
        return x + 2
    @functools.cached_property
    def prop(self):
        "Doc."
        return 9
    @functools.singledispatchmethod
    def told(self, x):
        return "any"
    @told.register
    def _(self, x: int):
        return "int"

@functools.singledispatch
def dispatch(x):
    return "any"
@dispatch.register
def _(x: int):
    return "int"
@dispatch.register
def _(x: list):
    return [dispatch(each) for each in x]
@dispatch.register
def _(x: Model):
    return "Model"

UserId = typing.NewType("UserId", int)

class Missing:
    def __reduce__(self):
        return "MISSING"
MISSING = Missing()

class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_int)]
class Line(ctypes.Structure):
    _fields_ = [("ends", Point * 2)]

upper = np.frompyfunc(lambda x: x + 1, 1, 1)
variable = contextvars.ContextVar("variable", default=4)

def everything(x, shared: Shared[Model], default=MISSING):
    assert shared.prop == 9 and Model.prop.__doc__ == "Doc."
    assert default is MISSING
    line = Line((Point(1, 2), Point(3, x)))
    return (
        cached(x), cached.cache_parameters(), cached.unit, shared.method(x), Model.static(x),
        shared.told(x), shared.told("a"), dispatch([1, "a", [2], shared]), UserId(x),
        UserId.__supertype__, line.ends[1].y, len(line.ends),
    )

def told(function):
    try:
        return parallel(function).with_options(backend=BACKEND).map([1])
    except Exception as error:
        return type(error).__name__, *getattr(error, "__notes__", []), str(error)

def main():
    run = lambda function, items, **more: parallel(function).with_options(backend=BACKEND).map(
        items, **more)
    print(run(everything, [2, 5], shared=Model()) == [everything(x, Model()) for x in (2, 5)])
    print(run(cached, [0, 4]), run(functools.partial(pow, 2), [3]))
    back = run(lambda x, sent: (sent, MISSING), [1], sent=MISSING)
    print(back == [(MISSING, MISSING)], run(lambda x: x, [MISSING])[0] is MISSING)
    line = run(lambda x: x, [Line((Point(1, 2), Point(3, 4)))])[0]
    print(type(line) is Line, line.ends[1].y)

def evaluated(x):
    return eval("LIMIT * x")

def queried(x):
    import pandas
    return len(pandas.DataFrame({"a": [1, 5]}).query("a > @LIMIT"))

def unknown(x):
    return eval("".join(("LIM", "IT")))
"""


@pytest.mark.parametrize("backend", ["serial", "process"])
def test_function_dispatcher_type_and_sentinel_of_a_script(run: Run, backend: str) -> None:
    """They are in a task what they are here; one that names itself is the same object again."""
    out = run(f"{SCRIPT}\nBACKEND = {backend!r}\nif __name__ == '__main__':\n    main()\n")
    assert ["True", "[3, 7] [8]", "True True", "True 4"] == out.splitlines()


def test_global_that_stands_in_a_text(run: Run) -> None:
    """A global in the text of an ``eval`` or ``query`` comes along, as it is at each call."""
    out = run(
        f"""{SCRIPT}
BACKEND = "process"
if __name__ == "__main__":
    print(told(evaluated), told(queried))
    LIMIT = 7
    print(told(evaluated), told(queried))
    kind, note, _, text = told(unknown)
    print(kind, note)
"""
    )
    first, second, third = out.splitlines()
    assert ("[3] [1]", "[7] [0]") == (first, second)
    assert third.startswith("NameError A worker knows of a script those globals")


@pytest.mark.parametrize("backend", ["serial", "process"])
def test_ufunc_that_is_made_of_a_function(run: Run, backend: str) -> None:
    """What ``np.frompyfunc`` made goes with its function, as a global, an argument and an item."""
    out = run(
        f"""{SCRIPT}
BACKEND = {backend!r}
total = np.frompyfunc(lambda a, b: a + b + LIMIT, 2, 1, identity=100)
either = np.frompyfunc(lambda a, b: a or b, 2, 1, identity=None)
first = np.frompyfunc(lambda a, b: a, 2, 1)

def used(x, given):
    square = np.full((2, 2), x, object)
    try:
        first.reduce(square, axis=(0, 1))
    except ValueError:
        both = either.reduce(square, axis=(0, 1))
        return upper(x), total.reduce(square[:0, 0]), both, given(x, 1)

if __name__ == "__main__":
    task = parallel(used).with_options(backend=BACKEND)
    print(task.map([5], given=total), upper.__name__)
    print(parallel(lambda u: u(1)).with_options(backend=BACKEND).map([upper]))
"""
    )
    assert ["[(6, 100, 5, 9)] <lambda> (vectorized)", "[2]"] == out.splitlines()


@pytest.mark.parametrize(
    "said",
    [
        "Can't get attribute 'NAMED' on <module '__main__' (built-in)>",
        "module '__main__' has no attribute 'NAMED'",  # from Python 3.14 on
    ],
)
def test_texts_of_python_for_a_missing_name(said: str) -> None:
    """Each gets the advice."""
    with pytest.raises(AttributeError, match="move it to a module"):
        codec.decode(pickle.dumps(Missing(said)))


class Missing:
    def __init__(self, said: str) -> None:
        self.said = said

    def __reduce__(self) -> Any:
        return _refuse, (self.said,)


def _refuse(said: str) -> None:
    raise AttributeError(said)


def test_what_only_a_name_leads_to_is_refused(run: Run) -> None:
    """What pickles as a name that only the script has is refused with what to do."""
    out = run(
        f"""{SCRIPT}
import copyreg
BACKEND = "process"
class Named: pass
copyreg.pickle(Named, lambda named: "NAMED")
NAMED = Named()
if __name__ == "__main__":
    print(told(lambda x: NAMED))
    other = NAMED
    del NAMED
    print(told(lambda x: other))
"""
    )
    for line in out.splitlines():
        assert "It is found by its name only: move it to a module" in line
    assert 2 == len(out.splitlines())


def test_module_functions_still_go_by_name() -> None:
    """What a module has is found there, as pickle finds it."""
    import fnmatch
    import functools

    cached: Any = vars(fnmatch)["_compile_pattern"]
    assert codec.decode(codec.encode_inband(cached)) is cached
    assert not named.is_of_script(cached)
    local = functools.cache(lambda x: x)
    assert named.is_of_script(local)


class Compiled:
    """Memoized by number when it is unpickled, as functions that numba compiles are."""

    _memo: ClassVar[dict[str, Any]] = {}

    def __init__(self, uuid: str, content: Any) -> None:
        self.uuid, self.py_func = uuid, content
        self._memo[uuid] = self

    def _reduce_states(self) -> dict[str, Any]:
        return {"uuid": self.uuid, "py_func": self.py_func}

    def _reduce_class(self) -> type:
        return Compiled

    @classmethod
    def _rebuild(cls, uuid: str, py_func: Any) -> Any:
        return cls._memo.get(uuid) or cls(uuid, py_func)


def test_compiled_function_is_of_the_version_that_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number names a version, so that a warm worker compiles again what was compiled again."""
    monkeypatch.setitem(sys.modules, "numba.core.serialize", codec_like())
    one = Compiled("1-2", "old")
    old = compiled.reduce_mixin(one, None)
    one.py_func = "new"
    new = compiled.reduce_mixin(one, None)
    assert one is new[0](*new[1])  # its own process
    Compiled._memo.clear()
    there = [build(*parts) for build, parts in (old, new, old, new)]
    assert ["old", "new", "old", "new"] == [each.py_func for each in there]
    assert there[0] is there[2]
    Compiled._memo["1-2"] = one
    build, parts = compiled.reduce_mixin(there[1], None)
    assert one is build(*parts)  # on the way back
    Compiled._memo.clear()


def codec_like() -> Any:
    return type("Serialize", (), {"dumps": staticmethod(lambda content: content.encode())})
