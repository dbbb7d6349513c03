"""Context variables: a task reads what its caller has set; what it sets itself is its own."""

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sharedtask import Shared, parallel
from sharedtask.backends.worker import context_variables
from sharedtask.serialization import codec, composition, variables

OF_MODULE: ContextVar[Any] = ContextVar("of_module", default="default")


class Flow:
    current: ClassVar[ContextVar[Any]] = ContextVar("current")


def on(backend: str, function: Callable[..., Any], **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, **options)  # type: ignore[arg-type]


@contextmanager
def holding(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@pytest.fixture(params=["process", "ray"])
def elsewhere(request: pytest.FixtureRequest) -> str:
    """The backends whose tasks run in other processes."""
    name: str = request.param
    if name == "ray":
        request.getfixturevalue("ray_runtime")
    return name


# ---------------------------------------------------------------------------- what is carried


def read_of_module(_: Any) -> Any:
    return OF_MODULE.get()


@pytest.mark.parametrize("value", ["text", 7, (1, "a"), {"ids": [1, 2]}, None])
def test_variable_of_a_module_is_carried(backend: str, value: Any) -> None:
    """What the caller has set is read in tasks; at the next call it is what it is then."""
    task = on(backend, read_of_module)
    with holding(OF_MODULE, value):
        assert [value, value] == task.map([0, 1])
        assert value == task.submit(0).result()
        assert [value] == list(task.imap([0]))
    assert ["default"] == task.map([0])


def test_variable_that_a_function_has_captured_is_carried(backend: str) -> None:
    """A variable without a name that leads to it is the same one for all functions of a program."""
    mine: ContextVar[Any] = ContextVar("mine")

    def read(_: Any) -> Any:
        return mine.get("unset")

    first, second = on(backend, read), on(backend, lambda _: (read(0), mine.get("unset")))
    assert ["unset"] == first.map([0])
    with holding(mine, {"a": 1}):
        assert [{"a": 1}] == first.map([0])
        assert [({"a": 1}, {"a": 1})] == second.map([0])
    assert ["unset"] == first.map([0])


def test_variable_of_a_class_is_carried(backend: str) -> None:
    """A variable may be an attribute of a class, of a module or of a function."""

    class Model:
        user: ClassVar[ContextVar[str]] = ContextVar("user", default="guest")

        def run(self) -> tuple[str, Any]:
            return self.user.get(), Flow.current.get(None)

    with holding(Model.user, "me"), holding(Flow.current, 5):
        assert [("me", 5)] == on(backend, lambda model: model.run()).map([Model()])


def test_variable_that_another_module_reads_is_carried(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task itself need not name the variable; the module may be imported in mid-task."""
    (tmp_path / "tenants.py").write_text(
        "from contextvars import ContextVar\ntenant = ContextVar('tenant', default='none')\n"
        "def told(): return tenant.get()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import tenants  # type: ignore[import-not-found]

    def told(_: int) -> Any:
        from tenants import told

        return told()

    task = on(backend, told, workers=1)
    with holding(tenants.tenant, "acme"):
        assert ["acme"] * 3 == task.map(range(3))
    assert ["none"] == task.map([0])


def test_value_that_was_changed_in_place_is_seen(backend: str) -> None:
    """The same dict with other contents is what it holds at the call."""
    task, known = on(backend, read_of_module), {"seen": [1]}
    with holding(OF_MODULE, known):
        assert [{"seen": [1]}] == task.map([0])
        known["seen"].append(2)
        assert [{"seen": [1, 2]}] == task.map([0])


def test_default_of_a_variable_comes_along(backend: str) -> None:
    """A variable without a value has its default in tasks, or none."""
    filled, bare = ContextVar("filled", default=(3,)), ContextVar[Any]("bare")
    assert [(3,)] == on(backend, lambda _: filled.get()).map([0])
    with pytest.raises(LookupError) as caught:
        on(backend, lambda _: bare.get()).map([0])
    assert caught.value.args == (bare,)


def test_variable_comes_back_as_itself(backend: str) -> None:
    """A variable in a result is the caller's own."""
    mine: ContextVar[Any] = ContextVar("mine")
    found = on(backend, lambda _: (mine, OF_MODULE)).map([0])[0]
    assert found[0] is mine
    assert found[1] is OF_MODULE


def test_coroutine_and_thread_have_their_own(backend: str) -> None:
    """Each call has the context of the coroutine, or the thread, that makes it."""
    task, found = on(backend, read_of_module), {}

    async def awaited(name: str) -> Any:
        OF_MODULE.set(name)
        return await task.amap([0]), [r async for r in task.aimap([0])]

    async def main() -> Any:
        return await asyncio.gather(awaited("a"), awaited("b"))

    def called() -> None:
        OF_MODULE.set("thread")
        found["thread"] = task.map([0])

    assert [(["a"], ["a"]), (["b"], ["b"])] == asyncio.run(main())
    thread = threading.Thread(target=called)
    thread.start()
    thread.join()
    assert {"thread": ["thread"]} == found
    assert ["default"] == task.map([0])


# ------------------------------------------------------------------------------ what an item sets


def test_items_do_not_see_what_others_set(backend: str) -> None:
    """What an item sets is there for it alone: not for the next one, nor at the next call."""

    def set_it(x: int) -> Any:
        before = OF_MODULE.get()
        OF_MODULE.set(x)
        return before

    task = on(backend, set_it, workers=1)
    assert ["default"] * 9 == task.map(range(9))
    with holding(OF_MODULE, "mine"):
        assert ["mine"] * 3000 == task.map(range(3000))
        assert "mine" == OF_MODULE.get()


def test_item_that_sets_something_in_the_midst_of_many(backend: str) -> None:
    """One of thousands of small items may set a variable, also through another function."""

    def helper(value: int) -> None:
        OF_MODULE.set(value)

    def task(x: int) -> Any:
        before = OF_MODULE.get()
        if x == 777:
            helper(x)
        return before

    assert {"default"} == set(on(backend, task, workers=1).map(range(3000)))


def test_item_that_sets_something_out_of_sight(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task whose code has no word of it is found out at the first item of its chunk."""
    (tmp_path / "setters.py").write_text(
        "from contextvars import ContextVar\nlast = ContextVar('last', default=None)\n"
        "def note(x):\n    before = last.get()\n    last.set(x)\n    return before\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import setters  # type: ignore[import-not-found]

    assert [None] * 500 == on(backend, lambda x: (setters.note(x),)[0], workers=1).map(range(500))


def test_what_an_item_changes_in_a_value_is_seen_by_its_chunk_alone(elsewhere: str) -> None:
    """In workers a value is the chunk's own, as arguments are."""

    def append(x: int) -> list[int]:
        OF_MODULE.get().append(x)
        return [*OF_MODULE.get()]

    given: list[int] = []
    task = on(elsewhere, append, workers=1, chunksize=1)
    with holding(OF_MODULE, given):
        assert [[0], [1]] == task.map([0, 1])
    assert [] == given


# ---------------------------------------------------------------------------- what cannot travel


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that was told nothing yet."""
    monkeypatch.setattr(context_variables, "_warned", set())


@pytest.mark.usefixtures("untold")
def test_value_that_cannot_travel_is_told_once(elsewhere: str) -> None:
    """The caller is warned of a value that a task reaches and workers cannot have."""
    lock: ContextVar[Any] = ContextVar("lock")
    task = on(elsewhere, lambda _: lock.get(None) is None)
    with holding(lock, [threading.Lock()]):
        with pytest.warns(
            RuntimeWarning, match="the value of the context variable 'lock', which"
        ) as told:
            assert [True] == task.map([0])
        assert [__file__] == [each.filename for each in told]
        assert [True] == task.map([0])


class Unsendable:
    def __reduce__(self) -> Any:
        raise TypeError("stays here")


@pytest.mark.usefixtures("untold")
def test_value_that_cannot_travel_is_told_at_the_task_that_reads_it(elsewhere: str) -> None:
    """Another call with it, of a task that does not read it, changes nothing about that."""
    lock: ContextVar[Any] = ContextVar("lock")
    task = on(elsewhere, lambda _: lock.get(None) is None)
    with holding(lock, Unsendable()):
        assert [1] == on(elsewhere, abs).map([-1])
        with pytest.warns(RuntimeWarning, match="'lock', which cannot be sent.* stays here"):
            assert [True] == task.map([0])


@pytest.mark.usefixtures("untold")
def test_value_that_cannot_travel_is_told_again_where_warnings_are_errors(elsewhere: str) -> None:
    """No call of the task goes on without the value in silence."""
    lock: ContextVar[Any] = ContextVar("lock")
    task = on(elsewhere, lambda _: lock.get(None) is None)
    with warnings.catch_warnings(), holding(lock, Unsendable()):
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(RuntimeWarning, match="'lock'"):
                task.map([0])


@pytest.mark.usefixtures("untold")
def test_value_that_cannot_travel_is_told_of_a_module(elsewhere: str) -> None:
    """So it is where the task travels by name."""
    with (
        holding(OF_MODULE, threading.Lock()),
        pytest.warns(RuntimeWarning, match="'of_module'"),
    ):
        assert ["default"] == on(elsewhere, read_of_module).map([0])


def test_value_that_no_task_reads_is_left_out_in_silence(elsewhere: str) -> None:
    """Libraries keep locks and connections in context variables."""
    other: ContextVar[Any] = ContextVar("other")
    with warnings.catch_warnings(), holding(other, threading.Lock()):
        warnings.simplefilter("error")
        assert [1] == on(elsewhere, abs).map([-1])


class Unloadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_value_that_cannot_be_rebuilt_is_told(elsewhere: str) -> None:
    """The worker warns, and goes on without it."""
    with holding(OF_MODULE, Unloadable()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ["default"] == on(elsewhere, read_of_module).map([0])


# ----------------------------------------------------------------------------------- what it costs


def test_nothing_is_sent_where_nothing_is_set() -> None:
    """numpy's, decimal's and our own context variables are no reason to send anything."""
    import decimal

    import numpy as np

    import sharedtask

    decimal.getcontext()
    with np.errstate(over="raise"), sharedtask.defaults(retries=1):
        assert () == context_variables.carried("task", abs)


def test_constant_is_encoded_once() -> None:
    """A number or text that is set is written down when it is first met."""
    with holding(OF_MODULE, "text"):
        (first,), (second,) = (
            context_variables.carried("task", abs),
            context_variables.carried("task", abs),
        )
    assert first is second
    assert (__name__, "OF_MODULE") == first[:2]


def test_function_with_a_variable_is_compared_by_its_parts() -> None:
    """A context variable does not have a function encoded at every call."""
    mine: ContextVar[Any] = ContextVar("mine")

    def read() -> Any:
        return mine.get()

    functions = codec.encode(read).functions
    assert functions is not None
    assert composition.same(functions.composition(read), composition.of_function(read))


def test_shared_value_with_a_variable(backend: str) -> None:
    """A variable inside a shared value is the one that the caller has set."""
    mine: ContextVar[Any] = ContextVar("mine")

    def read(_: int, table: Shared[dict[str, Any]]) -> Any:
        return table["variable"].get("unset")

    with holding(mine, 3):
        assert [3] == on(backend, read).map([0], table={"variable": mine})


def test_modules_of_tests_are_searched() -> None:
    """A variable is found by the first module that has it."""
    assert (__name__, "OF_MODULE") == variables.place_of(OF_MODULE)
    assert (__name__, "Flow.current") == variables.place_of(Flow.current)
