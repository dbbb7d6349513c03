"""What a function reaches decides whether it is encoded again; none is assumed constant."""

import functools
import gc
import importlib
import math
import operator
import sys
import textwrap
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from budget import with_long

from sharedtask import Shared, multi_process, parallel, share, shutdown
from sharedtask.serialization import codec, functions
from sharedtask.serialization.composition import composition_of, is_constant, of_function, same

pytestmark = pytest.mark.timeout(60)

Function = Callable[[int], Any]
Steps = Iterator[Function]


def in_main(source: str, **given: Any) -> dict[str, Any]:
    """The globals of a script that ran ``source``: no worker can import it."""
    values = {"__name__": "__main__", **given}
    exec(textwrap.dedent(source), values)
    return values


# A step gives the function as it is then. What a loop gives for it is what every backend has to
# give, whatever the function was before.

CASES: dict[str, Callable[[], Steps]] = {}


def case(steps: Callable[[], Steps]) -> Callable[[], Steps]:
    CASES[steps.__name__] = steps
    return steps


def changing(
    source: str, given: dict[str, Any], *changes: Callable[[dict[str, Any]], Any]
) -> Steps:
    """A function ``f`` before and after each change of its globals or what they hold."""
    values = in_main(source, **given)
    yield values["f"]
    for change in changes:
        change(values)
        yield values["f"]


@case
def method_of_a_dict_as_a_global() -> Steps:
    table = {0: 1}
    return changing(
        "def f(x): return get(x)", {"get": table.get}, lambda _: table.update({0: 2, 1: 3})
    )


@case
def method_of_a_dict_as_a_default() -> Steps:
    table = {0: 1}

    def f(x: int, get: Any = table.get) -> Any:
        return get(x)

    yield f
    table[0] = 2
    yield f


@case
def method_of_a_dict_in_a_closure() -> Steps:
    table = {0: 1}
    get = table.get
    f = lambda x: (get(x), x)
    yield f
    table[0] = 2
    yield f


@case
def method_of_a_set() -> Steps:
    seen = {0}
    return changing("def f(x): return has(x)", {"has": seen.__contains__}, lambda _: seen.add(1))


@case
def method_of_a_list() -> Steps:
    order = [1, 0]
    return changing("def f(x): return at(x)", {"at": order.index}, lambda _: order.reverse())


@case
def method_of_a_deque() -> Steps:
    queue = deque([0])
    return changing("def f(x): return n(x)", {"n": queue.count}, lambda _: queue.append(0))


@case
def method_of_an_array() -> Steps:
    array = np.arange(3)
    return changing(
        "def f(x): return int(take(x))", {"take": array.take}, lambda _: array.__iadd__(1)
    )


class Text(str):
    __slots__ = ("size",)


class Number(int):
    factor: int


@case
def attribute_of_a_number() -> Steps:
    number = Number(3)
    number.factor = 2
    return changing(
        "def f(x): return x * n.factor", {"n": number}, lambda _: setattr(number, "factor", 5)
    )


@case
def attribute_of_a_text() -> Steps:
    text: Any = Text("a")
    text.size = 2
    return changing("def f(x): return t.size", {"t": text}, lambda _: setattr(text, "size", 5))


@case
def keyword_defaults_with_names_exchanged() -> Steps:
    def f(x: int, *, a: int = 1, b: int = 2) -> int:
        return 10 * a + b

    yield f
    f.__kwdefaults__ = {"a": 2, "b": 1}
    yield f
    f.__kwdefaults__ = {"b": 2, "a": 1}
    yield f
    f.__kwdefaults__["a"] = 7
    yield f


@case
def defaults_replaced() -> Steps:
    def f(x: int, a: int = 1, b: int = 2) -> int:
        return 10 * a + b

    yield f
    f.__defaults__ = (2, 1)
    yield f


@case
def default_that_becomes_a_keyword() -> Steps:
    def f(x: int, *, a: int = 1, b: int = 2) -> str:
        return f"{a}{b}"

    yield f
    f.__kwdefaults__ = dict.fromkeys(("b", "a"), 2)
    yield f


@case
def code_replaced() -> Steps:
    def f(x: int) -> int:
        return x + 1

    yield f
    f.__code__ = (lambda x: x + 2).__code__
    yield f


@case
def constant_of_a_nested_function() -> Steps:
    made = in_main("def make(n):\n    exec(f'def f(x): return (lambda: {n})() + x', globals())\n")
    made["make"](1)
    f = made["f"]
    yield f
    made["make"](2)
    f.__code__ = made["f"].__code__
    yield f


@case
def attributes_of_a_function() -> Steps:
    values = in_main("def f(x): return getattr(f, 'rate', 1) * x")
    yield values["f"]
    values["f"].rate = 3
    yield values["f"]
    values["f"].rate = 4
    yield values["f"]
    del values["f"].rate
    yield values["f"]


@case
def attribute_that_holds_a_list() -> Steps:
    values = in_main("def f(x): return len(f.seen)")
    values["f"].seen = []
    yield values["f"]
    values["f"].seen.append(1)
    yield values["f"]


@case
def builtin_that_becomes_a_global() -> Steps:
    return changing(
        "def f(x): return abs(-x - 1)",
        {},
        lambda v: v.update(abs=lambda x: 7),
        lambda v: v.update(abs=lambda x: 8),
        lambda v: v.pop("abs"),
    )


@case
def global_that_comes_and_goes() -> Steps:
    return changing(
        "def f(x):\n    try:\n        return RATE\n    except NameError:\n        return None",
        {},
        lambda v: v.update(RATE=1),
        lambda v: v.update(RATE=2),
        lambda v: v.pop("RATE"),
    )


@case
def global_of_a_nested_function() -> Steps:
    return changing(
        "def f(x): return [(lambda: RATE)() for _ in range(2)]",
        {"RATE": 1},
        lambda v: v.update(RATE=2),
    )


@case
def global_of_a_function_far_below() -> Steps:
    source = "def f(x): return a(x)\ndef a(x): return b(x)\ndef b(x): return c(x)\n"
    source += "def c(x): return d(x)\ndef d(x): return RATE + x\n"
    return changing(source, {"RATE": 1}, lambda v: v.update(RATE=2), lambda v: v.update(RATE=1))


@case
def functions_that_call_each_other() -> Steps:
    source = "def f(x): return x if x < 1 else g(x - 1)\ndef g(x): return f(x) + RATE"
    return changing(source, {"RATE": 1}, lambda v: v.update(RATE=2))


@case
def default_of_a_function_that_is_called() -> Steps:
    source = "def f(x): return g(x)\ndef g(x, by=2): return x * by + 1"
    return changing(source, {}, lambda v: setattr(v["g"], "__defaults__", (3,)))


@case
def cell_that_is_set() -> Steps:
    rate = 1

    def f(x: int) -> int:
        return x + rate

    yield f
    rate = 2
    yield f
    rate = 3
    yield f


@case
def cell_that_is_emptied_and_filled() -> Steps:
    rate = 1

    def f(x: int) -> Any:
        try:
            return rate
        except NameError:
            return "empty"

    yield f
    del rate
    yield f
    rate = 2
    yield f
    rate = None  # type: ignore[assignment]
    yield f


@case
def cells_that_exchange_their_contents() -> Steps:
    a, b = 1, 2
    f = lambda x: (a, b)
    yield f
    a, b = b, a
    yield f


@case
def numbers_that_are_equal_and_not_the_same() -> Steps:
    def show(v: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda values: values.update(V=v)

    return changing(
        "def f(x): return repr(V)",
        {"V": 0.0},
        show(-0.0),
        show(0),
        show(False),
        show(1),
        show(True),
    )


@case
def tuple_that_holds_a_list() -> Steps:
    inner = [1]
    return changing("def f(x): return sum(T[0])", {"T": (inner,)}, lambda _: inner.append(5))


@case
def partial_of_a_function() -> Steps:
    add = in_main("def add(a, x): return a + x + RATE", RATE=1)
    given = functools.partial(add["add"], 1)
    yield given
    add["RATE"] = 5
    yield given
    given.__setstate__((given.func, (10,), {}, None))  # type: ignore[attr-defined]
    yield given


@case
def partial_as_a_global() -> Steps:
    values = in_main("def add(a, x): return a + x\ndef f(x): return g(x)\n")
    values["g"] = functools.partial(values["add"], 1)
    yield values["f"]
    values["g"].__setstate__((values["add"], (10,), {}, None))
    yield values["f"]


@case
def wrapped_function() -> Steps:
    values = in_main(
        """
        import functools
        RATE = 1
        def twice(g):
            @functools.wraps(g)
            def wrapper(x):
                return g(g(x))
            return wrapper
        @twice
        @twice
        def f(x):
            return x + RATE
        """
    )
    yield values["f"]
    values["RATE"] = 2
    yield values["f"]
    values["f"].__wrapped__.__wrapped__.__defaults__ = (7,)
    yield values["f"]


class Adder:
    by = 1

    def __init__(self, by: int) -> None:
        self.by = by

    def add(self, x: int) -> int:
        return x + self.by

    def __call__(self, x: int) -> int:
        return x + self.by


@case
def bound_method_as_a_global() -> Steps:
    adder = Adder(1)
    return changing(
        "def f(x): return add(x)", {"add": adder.add}, lambda _: setattr(adder, "by", 5)
    )


@case
def bound_method_itself() -> Steps:
    adder = Adder(1)
    add = adder.add
    yield add
    adder.by = 5
    yield add


@case
def object_that_is_called() -> Steps:
    adder = Adder(1)
    yield adder
    adder.by = 5
    yield adder


@case
def item_getter() -> Steps:
    index = [0, 1]
    return changing(
        "def f(x): return get(T)",
        {"get": operator.itemgetter(0), "T": index},
        lambda v: v.update(get=operator.itemgetter(1)),
        lambda _: index.reverse(),
    )


@case
def static_method_as_a_global() -> Steps:
    values = in_main("def g(x): return x + RATE\ndef f(x): return s(x)", RATE=1)
    values["s"] = staticmethod(values["g"])
    yield values["f"]
    values["RATE"] = 2
    yield values["f"]


@case
def class_of_the_script() -> Steps:
    source = "class C:\n    rate = 1\ndef f(x): return C.rate + x"
    return changing(source, {}, lambda v: setattr(v["C"], "rate", 2))


@case
def ufunc_and_builtins() -> Steps:
    return changing(
        "def f(x): return float(op(4.0))",
        {"op": np.sqrt},
        lambda v: v.update(op=math.sqrt),
        lambda v: v.update(op=np.square),
        lambda v: v.update(op=float.__neg__),
        lambda v: v.update(op=operator.neg),
    )


@case
def name_inside_a_text() -> Steps:
    return changing("def f(x): return eval('LIMIT + 1')", {"LIMIT": 1}, lambda v: v.update(LIMIT=2))


@case
def task_as_a_global() -> Steps:
    source = "@parallel\ndef g(x): return x + RATE\ndef f(x): return g(x)"
    return changing(source, {"parallel": parallel, "RATE": 1}, lambda v: v.update(RATE=2))


@pytest.mark.filterwarnings("ignore::sharedtask.JournalWarning")
@pytest.mark.parametrize("how", with_long(["share", "copy", "journal"], "copy"))
@pytest.mark.parametrize("steps", CASES)
def test_change_of_what_a_function_reaches_is_seen(
    backend: Any, steps: str, how: str, tmp_path: Path
) -> None:
    """A map gives what a loop gives, whatever was changed since the last map."""
    options: Any = {"journal": tmp_path / "j"} if how == "journal" else {"captured": how}
    for function in CASES[steps]():
        task = parallel(backend=backend, workers=1, **options)(function)
        for _ in range(2):
            assert list(map(function, range(2))) == task.map(range(2))


# ------------------------------------------------------------------------- since published here


def test_other_backend_in_between() -> None:
    """A value that one backend has seen is still new to another, and a call of neither counts."""
    values = in_main("def f(x): return X", X=1)
    f = values["f"]
    assert [1] == parallel(backend="process")(f).map([0])
    values["X"] = 2
    functions.portable(f)
    codec.encode(f)
    assert [2] == parallel(backend="serial")(f).map([0])
    paths = multi_process(f, [0], lazy_output=True, progress=False, workers=1)
    assert 1 == len(paths)
    parallel(backend="process")(f).explain()
    assert [2] == parallel(backend="process")(f).map([0])


def test_ray_in_between(ray_runtime: None) -> None:
    """What was published in shared memory is compared with what was published there."""
    values = in_main("def f(x): return X", X=1)
    tasks = {name: parallel(backend=name)(values["f"]) for name in ("process", "ray")}
    for x, names in ((1, ["process"]), (2, ["ray"]), (2, ["process"]), (1, ["ray", "process"])):
        values["X"] = x
        assert [[x]] * len(names) == [tasks[name].map([0]) for name in names]


@pytest.mark.usefixtures("busy_switching")
def test_threads_that_call_right_after_a_change() -> None:
    """Of threads that call after a change, each gets the new value."""
    values = in_main("def f(x): return X", X=0)
    task = parallel(backend="process", workers=2)(values["f"])
    found: list[list[int]] = []
    for number in range(40):
        values["X"] = number
        threads = [threading.Thread(target=lambda: found.append(task.map([0]))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [[number]] * 3 == found
        found.clear()


@pytest.mark.usefixtures("busy_switching")
def test_changes_while_it_is_encoded() -> None:
    """What changes while a function is encoded, and back again, leaves nothing stale."""
    values = in_main("def f(x): return X", X=0)
    f = values["f"]
    ends = threading.Event()

    def toggle() -> None:
        while not ends.is_set():
            values.update(X=1)  # calls, for at these threads take turns
            values.update(X=0)

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        payloads = [codec.encode(f) for _ in range(2000)]
    finally:
        ends.set()
        thread.join()
    for x in (0, 1):
        values["X"] = x
        now = of_function(f)
        wrong = [
            payload
            for payload in payloads
            if same(composition_of(payload.functions, f), now)
            and codec.decode(payload.head)(0) != x
        ]
        assert [] == wrong


# ------------------------------------------------------------------------------ encoded, or not


def composed(source: str, **given: Any) -> bool:
    """Whether the function ``f`` need not be encoded to see that it is unchanged."""
    f = in_main(source, **given)["f"]
    return same(composition_of(codec.encode(f).functions, f), of_function(f))


CONSTANT: dict[str, tuple[str, dict[str, Any]]] = {
    "numbers": ("def f(x): return A", {"A": 1.5}),
    "texts in tuples": ("def f(x): return A", {"A": ("a", (b"b", None), frozenset({1}))}),
    "itself": ("def f(x): return f(x - 1) if x else 0", {}),
    "others": ("def f(x): return g(x)\ndef g(x): return f(x)", {}),
    "a module": ("def f(x): return m.sqrt(x)", {"m": math}),
    "a package": ("def f(x): return m.sum(x)", {"m": np}),
    "classes": ("def f(x): return A(x), B", {"A": float, "B": np.ndarray}),
    "builtins": ("def f(x): return A(x), B", {"A": math.sqrt, "B": len}),
    "methods of classes": ("def f(x): return A, B, C", {
        "A": str.upper, "B": int.__add__, "C": dict.fromkeys}),
    "function of a module": ("def f(x): return A(x)", {"A": textwrap.dedent}),
    "defaults": ("def f(x, a=1, *, b='b'): return a, b", {}),
    "attributes": ("def f(x): return f.rate\nf.rate = 2", {}),
    "a closure": ("def make(a):\n    return lambda x: a\nf = make(3)", {}),
    "an empty cell": ("def make():\n    if 0: a = 1\n    return lambda x: a\nf = make()", {}),
    "a global that is not there": ("def f(x): return nothing", {}),
}  # fmt: skip


@pytest.mark.parametrize("what", CONSTANT)
def test_function_of_constants_is_not_encoded_again(what: str) -> None:
    """What cannot change is not encoded to see that."""
    source, given = CONSTANT[what]
    assert composed(source, **given)


CHANGEABLE: dict[str, Any] = {
    "list": [],
    "dict": {},
    "array": np.zeros(1),
    "method of an object": {}.get,
    "slot of an object": (5).__add__,
    "bound method": Adder(1).add,
    "number with attributes": Number(1),
    "text with attributes": Text("a"),
    "numpy's number": np.float64(1.0),
    "tuple of a list": ([],),
    "object": Adder(1),
    "class of a function": type("Made", (), {}),
    "module made by hand": types.ModuleType("made_by_hand"),
    "method of a class of a function": type("Made", (), {"__module__": "made"}).mro,
}


@pytest.mark.parametrize("what", CHANGEABLE)
def test_what_may_change_is_no_constant(what: str) -> None:
    """What may change while it stays the same object is encoded and compared."""
    assert not is_constant(CHANGEABLE[what])
    assert not composed("def f(x): return A", A=CHANGEABLE[what])


def test_module_that_travels_by_value_is_no_constant() -> None:
    """What cloudpickle was told to send by value is encoded and compared."""
    cloudpickle.register_pickle_by_value(textwrap)
    try:
        assert not is_constant(textwrap)
        assert not is_constant(textwrap.TextWrapper)
    finally:
        cloudpickle.unregister_pickle_by_value(textwrap)


def test_warm_call_encodes_no_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second map of a function that is unchanged does not pickle it."""
    values = in_main("def f(x): return g(x) + RATE\ndef g(x): return x", RATE=1)
    task = parallel(backend="process", workers=1)(values["f"])
    assert [1] == task.map([0])
    monkeypatch.setattr(codec.ValuePickler, "_reduce_function", None)
    assert [1] == task.map([0])


def test_functions_are_let_go() -> None:
    """A function that was published dies with its last user, also one that calls itself."""
    values = in_main("def f(x): return f(x - 1) if x else 0")
    assert [0] == parallel(backend="process", workers=1)(values["f"]).map([1])
    gone = weakref.ref(values["f"])
    values.clear()
    gc.collect()
    assert gone() is None


# --------------------------------------------------------------------------- shared functions


def test_function_as_a_shared_value(backend: Any) -> None:
    """A function, or one inside a value, is what it is when the call begins."""
    values = in_main("def f(x): return RATE", RATE=1)

    @parallel(backend=backend, workers=1)
    def call(x: int, g: Shared[Any]) -> Any:
        return (g if callable(g) else g["f"])(x)

    whole = {"f": values["f"]}
    for rate in (1, 2, 1):
        values["RATE"] = rate
        assert [rate] == call.map([0], g=values["f"])
        assert [rate] == call.map([0], g=whole)
    with share(values["f"]) as handle:
        values["RATE"] = 5
        assert [1] == call.map([0], g=handle)


# --------------------------------------------------------------------------- importable modules

MODULE = """
import functools
LIMIT = 2
TEXT = "a"
_calls = 0

def helper(x):
    return x + LIMIT

def task(x, by=3, *, more=1):
    return helper(x) * by + more + LIMIT

def counts(x):
    global _calls
    _calls += 1
    return x

def twice(by):
    def wrap(f):
        @functools.wraps(f)
        def wrapper(x):
            return f(x) * by
        return wrapper
    return wrap

@twice(2)
def wrapped(x):
    return x + LIMIT
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module on disk, which workers import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "memory_module.py").write_text(MODULE)
    yield importlib.import_module("memory_module")
    sys.modules.pop("memory_module", None)
    shutdown()


def limit(module: Any, value: Any) -> None:
    module.LIMIT = value


CHANGES: dict[str, Callable[[Any], Any]] = {
    "global": lambda m: limit(m, 5),
    "global to another kind": lambda m: limit(m, 2.5),
    "defaults": lambda m: setattr(m.task, "__defaults__", (7,)),
    "keyword defaults": lambda m: setattr(m.task, "__kwdefaults__", {"more": 9}),
    "keyword default in place": lambda m: m.task.__kwdefaults__.update(more=8),
    "helper": lambda m: setattr(m, "helper", lambda x: -x),
    "default that is no constant": lambda m: setattr(m.task, "__defaults__", (np.int64(3),)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_module_changed_in_memory(module: Any, backend: Any, change: str) -> None:
    """A global or default of the module that was replaced since the first call is followed."""
    task = parallel(backend=backend, workers=1)(module.task)
    assert list(map(module.task, range(2))) == task.map(range(2))
    CHANGES[change](module)
    assert list(map(module.task, range(2))) == task.map(range(2))
    limit(module, 11)
    assert list(map(module.task, range(2))) == task.map(range(2))


@pytest.mark.parametrize("change", ["global", "defaults", "keyword defaults"])
def test_module_changed_before_the_first_call(module: Any, backend: Any, change: str) -> None:
    """A constant of the file, or a default, that was replaced before the first call is followed."""
    CHANGES[change](module)
    task = parallel(backend=backend, workers=1)(module.task)
    assert list(map(module.task, range(2))) == task.map(range(2))


def test_code_of_a_module_changed_in_memory(module: Any) -> None:
    """A function whose code was replaced since the first call travels as it is."""
    task = parallel(backend="process", workers=1)(module.task)
    assert list(map(module.task, range(2))) == task.map(range(2))
    module.task.__code__ = (lambda x, by, *, more: (x, by, more)).__code__
    assert [(0, 3, 1)] == task.map([0])


def test_global_that_a_function_sets_itself(module: Any) -> None:
    """A counter of the module is each process' own, and makes the function no other one."""
    for _ in range(2):
        assert [0, 1] == parallel(backend="process", workers=1)(module.counts).map(range(2))
        module.counts(0)
        assert isinstance(functions.portable(module.counts).value, functions.NamedFunction)


def test_wrapped_function_of_a_module(module: Any) -> None:
    """A function under a wrapper travels by its name, and follows a reload."""
    task = parallel(backend="process", workers=1)
    assert isinstance(functions.portable(module.wrapped).value, functions.NamedFunction)
    assert [4, 6] == task(module.wrapped).map(range(2))
    Path(module.__file__).write_text(MODULE.replace("twice(2)", "twice(5)"))
    importlib.reload(module)
    assert [10, 15] == task(module.wrapped).map(range(2))


def test_plain_function_put_into_a_module(module: Any, backend: Any) -> None:
    """A function that was put under the name of another one is the one that runs."""
    other = in_main("def task(x): return -x - 1")["task"]
    other.__module__, other.__qualname__ = "memory_module", "task"
    module.task = other
    assert [-1, -2] == parallel(backend=backend, workers=1)(module.task).map(range(2))
