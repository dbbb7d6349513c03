import asyncio
import functools
import os
import pickle
import signal
import subprocess
import sys
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import (
    ArgumentError,
    CopyOnWrite,
    DefinitionError,
    Locked,
    OptionsError,
    Partitioned,
    Reduced,
    Rng,
    Shared,
    parallel,
    per_item,
)
from sharedtask.testing import count_up

if typing.TYPE_CHECKING:
    import sharedtask as unloaded_package

pytestmark = pytest.mark.timeout(120)

COUNT = 23
BIG = 2**200 + 1


@parallel(seed=7)
def draw(x: int, rng: Rng = per_item) -> tuple[int, int]:
    return x, int(rng.integers(1 << 60))


def numbers_of(seed: Any, count: int = COUNT) -> list[int]:
    """What numpy's own rule says: one child of the seed's sequence for each item."""
    children = np.random.SeedSequence(seed).spawn(count)
    return [int(np.random.default_rng(child).integers(1 << 60)) for child in children]


def on(backend: str, function: Any, **options: Any) -> Any:
    """The task on a backend."""
    task = function if hasattr(function, "with_options") else parallel(function)
    chosen: Any = {"backend": backend, **options}
    return task.with_options(**chosen)


EXPECTED = list(enumerate(numbers_of(7)))


def test_numbers_are_those_of_spawned_sequences(backend: str) -> None:
    """Item k draws from child k of ``SeedSequence(seed)``, as numpy's documentation spawns them."""
    assert EXPECTED == on(backend, draw).map(range(COUNT))


@pytest.mark.parametrize("seed", [0, 7, BIG, np.int64(7), [1, 2, 3], (BIG, 0), [0]])
def test_seeds_of_every_kind(seed: Any) -> None:
    """A seed is a whole number of any size, or several."""
    drawn = draw.with_options(backend="process", seed=seed).map(range(5))
    assert list(enumerate(numbers_of(seed, 5))) == drawn


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("chunksize", ["auto", 1, 4, 100])
def test_workers_and_chunks_change_nothing(workers: int, chunksize: Any) -> None:
    """The same numbers with any number of workers, however the items are cut into chunks."""
    for backend in ("process", "thread"):
        task = on(backend, draw, workers=workers, chunksize=chunksize)
        assert EXPECTED == task.map(range(COUNT))


WAYS: dict[str, Callable[[Any], Any]] = {
    "map": lambda task: task.map(range(COUNT)),
    "imap": lambda task: list(task.imap(iter(range(COUNT)))),
    "imap_unordered": lambda task: sorted(task.imap_unordered(range(COUNT))),
    "starmap": lambda task: task.starmap((x,) for x in range(COUNT)),
    "amap": lambda task: asyncio.run(task.amap(range(COUNT))),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_map_draws_the_same(way: str, backend: str) -> None:
    """Lists, streams in any order, unpacked items and coroutines: item k has its numbers."""
    assert EXPECTED == WAYS[way](on(backend, draw, chunksize=3))


def test_results_into_an_array(backend: str) -> None:
    """``map_into`` writes what ``map`` returns."""

    def one(_x: int, rng: Rng = per_item) -> float:
        return float(rng.random())

    task = on(backend, one, seed=3)
    for out in (np.zeros(9), sharedtask.zeros(9)):
        assert task.map(range(9)) == task.map_into(out, range(9)).tolist()


def test_submitted_item_is_the_first_of_a_map(backend: str) -> None:
    """``submit(x)`` draws what item 0 of a map draws, and so does the call itself."""
    task = on(backend, draw)
    assert EXPECTED[0] == task.submit(0).result(60)
    assert EXPECTED[0] == task(0)


def test_submitted_items_count_up(backend: str) -> None:
    """What one task object submits draws what items 0, 1, 2 ... of a map draw, in each run."""
    for _ in range(2):
        task = on(backend, draw, workers=2)
        futures = [task.submit(x) for x in range(5)]
        assert EXPECTED[:5] == [future.result(60) for future in futures]
        assert EXPECTED[:3] == task.map(range(3))
        assert EXPECTED[5] == task.submit(5).result(60)


def test_submits_of_threads_have_numbers_of_their_own(backend: str) -> None:
    """None is drawn twice, and none is left out."""
    task = on(backend, draw)
    with ThreadPoolExecutor(4) as threads:
        futures = list(threads.map(lambda _: task.submit(0), range(20)))
    drawn = [future.result(60)[1] for future in futures]
    assert sorted(numbers_of(7, 20)) == sorted(drawn)


def test_tried_again_item_has_the_same_numbers(backend: str, tmp_path: Path) -> None:
    """An item counts once, however often it is tried."""
    task = on(backend, draw_at_last, retries=2, seed=7)
    for k in range(3):
        assert EXPECTED[k][1] == task.submit(k, str(tmp_path)).result(60)[1]


def draw_at_last(x: int, folder: str, rng: Rng = per_item) -> tuple[int, int]:
    drawn = int(rng.integers(1 << 60))
    if count_up(folder, x) < 3:
        raise ValueError
    return x, drawn


def test_copies_with_options_begin_with_item_0() -> None:
    """Each is a task object of its own, also where its options are the same."""
    task = on("serial", draw)
    assert EXPECTED[0] == task.submit(0).result()
    assert [EXPECTED[0]] * 2 == [task.with_options(seed=7).submit(0).result() for _ in range(2)]
    assert EXPECTED[1] == task.submit(1).result()


def test_refused_submits_do_not_count() -> None:
    """Nor do maps, direct calls, and submits without a seed."""
    task: Any = parallel(backend="serial")(draw.__wrapped__)
    task.submit(0).result()
    with sharedtask.defaults(seed=7):
        with pytest.raises(ArgumentError):
            task.submit(0, 1, 2, 3)
        assert EXPECTED[:2] == task.map(range(2))
        assert EXPECTED[0] == task(0)
        assert EXPECTED[0] == task.submit(0).result()
        assert EXPECTED[1] == task.submit(1).result()


class Sampler:
    @parallel(seed=7, backend="serial")
    def draw(self, x: int, rng: Rng = per_item) -> tuple[int, int]:
        return x, int(rng.integers(1 << 60))


def test_methods_count_for_their_class() -> None:
    """A method is taken from its object for each call, and the task stays one."""
    assert EXPECTED[:2] == [Sampler().draw.submit(x).result() for x in range(2)]


def test_forked_child_goes_on_from_where_its_parent_was() -> None:
    """Parent and child have the same next numbers."""
    task = on("serial", draw)
    task.submit(0).result()
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, repr(task.submit(1).result()).encode())
        os._exit(0)
    assert 0 == os.waitpid(child, 0)[1]
    assert repr(EXPECTED[1]) == os.read(reader, 1000).decode() == repr(task.submit(1).result())


counting = draw.with_options(seed=7)


def test_submits_in_a_worker_do_not_count() -> None:
    """What such a submit draws does not depend on what its worker has run before."""

    @parallel(backend="process", workers=1)
    def inner(x: int) -> Any:
        return counting.submit(x).result()

    assert [(x, EXPECTED[0][1]) for x in range(4)] == inner.map(range(4))


def draw_or_fail(x: int, folder: str, how: str, rng: Rng = per_item) -> tuple[int, int]:
    drawn = int(rng.integers(1 << 60))
    if count_up(folder, x) == 1 and x % 5 == 2:
        if how == "raise":
            raise OSError(drawn)
        os.kill(os.getpid(), signal.SIGKILL)
    return x, drawn


def test_retried_items_draw_the_same(backend: str, tmp_path: Path) -> None:
    """An item that is tried again begins its numbers again, and no other item draws others."""
    task = on(backend, draw_or_fail, seed=7, retries=1)
    assert EXPECTED == task.map(range(COUNT), folder=str(tmp_path), how="raise")


@pytest.mark.parametrize("chunksize", [1, 6, COUNT])
def test_numbers_outlive_a_killed_worker(chunksize: int, tmp_path: Path) -> None:
    """When a worker is killed, the rest of its chunk draws elsewhere what it would have drawn."""
    task = parallel(draw_or_fail).with_options(
        backend="process", seed=7, retries=1, chunksize=chunksize
    )
    assert EXPECTED == task.map(range(COUNT), folder=str(tmp_path), how="kill")


def test_retries_without_a_seed_draw_the_same(backend: str, tmp_path: Path) -> None:
    """Without a seed the numbers differ between calls, and an item that is tried again has its."""

    def fail_once(x: int, folder: str, rng: Rng = per_item) -> float:
        drawn = float(rng.random())
        with Path(folder, f"drawn {x}").open("a") as file:
            file.write(f"{drawn}\n")
        if count_up(folder, x) == 1:
            raise OSError
        return drawn

    task = on(backend, fail_once, retries=1)
    drawn = task.map(range(4), folder=str(tmp_path))
    assert 4 == len(set(drawn))
    for x in range(4):
        assert [str(drawn[x])] * 2 == (tmp_path / f"drawn {x}").read_text().split()


def test_no_seed_is_fresh(backend: str) -> None:
    """Without a seed no two calls, and no two items, draw the same."""
    task = on(backend, draw, seed=None)
    drawn = [n for _, n in (*task.map(range(9)), *task.map(range(9)), task(0), task(0))]
    assert 20 == len(set(drawn))


@parallel(seed=7)
def draw_two(_x: int, one: Rng = per_item, *, other: Rng = per_item) -> list[float]:
    children = [child for rng in (one, other) for child in rng.spawn(3)]
    return [float(rng.random()) for rng in (one, other, *children)]


def test_several_generators_are_independent(backend: str) -> None:
    """Two parameters, all items and what they spawn draw from streams that are all different."""
    rows = on(backend, draw_two).map(range(6))
    assert 6 * 8 == len({number for row in rows for number in row})
    assert numbers_of(7, 6) == [n for _, n in draw.map(range(6))]
    first = np.random.SeedSequence(7).spawn(6)[2]
    other = np.random.default_rng(first.spawn(1)[0])
    assert [np.random.default_rng(first).random(), other.random()] == rows[2][:2]


def test_streams_look_independent() -> None:
    """Neighbouring items, and the same item of neighbouring seeds, are not correlated."""

    def many(_x: int, rng: Rng = per_item) -> Any:
        return rng.standard_normal(2000)

    task = parallel(many).with_options(backend="process")
    rows = np.concatenate([task.with_options(seed=seed).map(range(16)) for seed in (0, 1, [0, 1])])
    apart = np.corrcoef(rows)[~np.eye(len(rows), dtype=bool)]
    assert 0.12 > np.abs(apart).max()


class Dice:
    def __init__(self, sides: int) -> None:
        self.sides = sides

    @parallel(seed=7)
    def roll(self, _x: int, rng: Rng = per_item) -> int:
        return int(rng.integers(self.sides))

    @parallel(seed=7, shared=["self"])
    def roll_shared(self, _x: int, rng: Rng = per_item) -> int:
        return int(rng.integers(self.sides))

    @parallel(seed=7)
    @classmethod
    def roll_class(cls, _x: int, rng: Rng = per_item) -> int:
        return int(rng.integers(6))

    @parallel(seed=7)
    @staticmethod
    def roll_static(_x: int, rng: Rng = per_item) -> int:
        return int(rng.integers(6))


@pytest.mark.parametrize("name", ["roll", "roll_shared", "roll_class", "roll_static"])
def test_methods_of_every_kind(name: str, backend: str) -> None:
    """Methods draw as functions do, called and mapped."""
    children = np.random.SeedSequence(7).spawn(8)
    expected = [int(np.random.default_rng(child).integers(6)) for child in children]
    method = getattr(Dice(6), name)
    assert expected == on(backend, method).map(range(8))
    assert expected[0] == method(0)


def everything(
    k: int,
    rng: Rng,
    table: Shared[Any],
    scratch: CopyOnWrite[Any],
    out: Partitioned[Any],
    total: Reduced[Any],
    scale: float = 1.0,
) -> float:
    scratch += rng.random()
    out[...] = scratch[0] * scale
    total += 1
    return float(table[k] + scratch[0])


def test_beside_every_other_annotation(backend: str) -> None:
    """A generator stands beside shared, private, partitioned and reduced arrays."""
    task = on(backend, everything, seed=7)
    out, total = np.zeros(6), np.zeros(1)
    results = task.map(
        range(6), table=np.arange(6.0), scratch=np.zeros(3), out=out, total=total, scale=2.0
    )
    drawn = [np.random.default_rng(c).random() for c in np.random.SeedSequence(7).spawn(6)]
    assert [k + number for k, number in enumerate(drawn)] == results
    assert [2 * number for number in drawn] == out.tolist()
    assert 6 == total[0]


@pytest.mark.parametrize("name", ["serial", "thread", "process"])
def test_beside_a_locked_array(name: Any) -> None:
    """A generator stands beside an array under locks, in a map and in a call."""

    def add(k: int, grid: Locked[Any], rng: Rng = per_item) -> float:
        drawn = float(rng.random())
        with grid.write(k) as cell:
            cell[...] += drawn
        return drawn

    task: Any = parallel(add).with_options(backend=name, seed=7)
    grid = np.zeros(6)
    assert task.map(range(6), grid=grid) == grid.tolist()
    called = np.zeros(6)
    assert grid[0] == task(0, grid=called) == called[0]


def after(k: int, rng: Rng, scale: float, *, shift: float = 0.0) -> float:
    return float(rng.random()) * scale + shift


def test_arguments_behind_it_are_given_by_name(backend: str) -> None:
    """What stands behind the generator is given by name, in a map and in a call."""
    task = on(backend, after, seed=7)
    drawn = np.random.default_rng(np.random.SeedSequence(7).spawn(1)[0]).random()
    assert [2 * drawn + 1] == task.map([0], scale=2.0, shift=1.0)
    assert 2 * drawn == task(0, scale=2.0)


def test_call_takes_a_generator_of_the_callers_own() -> None:
    """A call of the function itself takes a generator, by place or by name."""
    own = [np.random.default_rng(5) for _ in range(3)]
    expected = int(own[2].integers(1 << 60))
    assert (4, expected) == draw(4, own[0]) == draw(4, rng=own[1])
    assert 3.0 == parallel(after)(0, _Ones(), 3.0)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


class _Ones:
    def random(self) -> float:
        return 1.0


@pytest.mark.parametrize("how", ["by name", "by place", "submit"])
def test_generator_is_no_argument_of_a_map(how: str) -> None:
    """A generator given for all items is refused, before anything runs."""
    own = np.random.default_rng(1)
    with pytest.raises(ArgumentError, match="rng") as caught:
        if how == "by name":
            draw.map(range(3), rng=own)
        elif how == "by place":
            draw.map(range(3), own)
        else:
            draw.submit(3, rng=own)
    assert "draw()" in str(caught.value)


def test_seed_from_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """``defaults`` and the environment give seeds; tasks without a generator do not mind."""
    task = parallel(backend="serial")(draw.__wrapped__)
    plain = parallel(abs_of).with_options(backend="serial")
    with sharedtask.defaults(seed=7):
        assert EXPECTED == task.map(range(COUNT))
        assert [1] == plain.map([-1])
    monkeypatch.setenv("SHAREDTASK_SEED", "7")
    assert EXPECTED == task.map(range(COUNT))
    assert [1] == plain.map([-1])
    monkeypatch.setenv("SHAREDTASK_SEED", "none")
    assert EXPECTED != task.map(range(COUNT))


def abs_of(x: int) -> int:
    return abs(x)


@pytest.mark.parametrize("how", ["decorator", "with_options"])
def test_seed_without_a_generator_is_refused(how: str) -> None:
    """A seed on a task that takes no random numbers says what to annotate."""
    with pytest.raises(DefinitionError, match="rng: Rng") as caught:
        if how == "decorator":
            parallel(seed=3)(abs_of)
        else:
            parallel(abs_of).with_options(seed=3)
    assert "abs_of(x: int)" in str(caught.value)
    parallel(seed=None)(abs_of)


@pytest.mark.parametrize("seed", [-1, 1.5, "3", True, [], [1, -1], [1.5], b"seed", np.arange(3)])
def test_bad_seed_is_refused(seed: Any) -> None:
    """What is no whole number from 0 up is no seed."""
    with pytest.raises(OptionsError, match="seed must be a whole number from 0 up"):
        draw.with_options(seed=seed)


def test_other_word_for_seed_is_known() -> None:
    """scikit-learn's word leads to ours."""
    with pytest.raises(OptionsError, match="Did you mean seed="):
        draw.with_options(random_state=3)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def item_itself(rng: Rng) -> None: ...
def positional(x: int, rng: Rng, /) -> None: ...
def before_more(x: int, rng: Rng, *rest: int) -> None: ...
def many_of_them(x: int, *rngs: Rng) -> None: ...
def by_any_name(x: int, **rngs: Rng) -> None: ...
def two_marks(x: int, rng: Shared[Rng]) -> None: ...
def inside(x: int, rngs: list[Rng]) -> None: ...
def returned(x: int) -> Rng: ...  # type: ignore[empty-body]
def plain(x: int, rng: Rng) -> None: ...


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "item": (item_itself, "'rng' takes the item"),
    "positional": (positional, "'rng' is Rng and must be a single parameter with a name"),
    "before *rest": (before_more, r"'rng' is Rng and comes before \*rest; put it after that"),
    "*rngs": (many_of_them, "'rngs' is Rng and must be"),
    "**rngs": (by_any_name, "'rngs' is Rng and must be"),
    "two marks": (two_marks, "'rng' is both Rng and Shared; choose one"),
    "inside": (inside, "'rngs' has Rng inside other brackets"),
    "returned": (returned, "marks the result"),
    "fixed": (functools.partial(plain, rng=np.random.default_rng(1)), "fixed by functools.partial"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_no_generator_can_stand(case: str) -> None:
    """A parameter that cannot get a generator is refused at the decorator."""
    function, text = REFUSED[case]
    with pytest.raises(DefinitionError, match=text):
        parallel(function)


def test_listed_role_and_generator_are_refused() -> None:
    """A parameter is not named in the decorator's lists and annotated Rng."""
    with pytest.raises(DefinitionError, match="'rng' is both Rng and CopyOnWrite"):
        parallel(copy_on_write=["rng"])(plain)


def behind_rest(_x: int, *rest: int, rng: Rng = per_item) -> tuple[int, ...]:
    return (*rest, int(rng.integers(1 << 60)))


def optional(x: int, rng: "Rng | None" = None) -> tuple[int, int]:
    assert rng is not None
    return x, int(rng.integers(1 << 60))


def unloaded(x: int, rng: "unloaded_package.Rng" = per_item) -> tuple[int, int]:
    return x, int(rng.integers(1 << 60))


def test_where_a_generator_may_stand(backend: str) -> None:
    """Behind ``*rest``, in a union, in a text, under a name that only type checkers know."""
    rest = on(backend, behind_rest, seed=7)
    assert [(1, 2, number) for number in numbers_of(7, 3)] == rest.map(range(3), 1, 2)
    for function in (optional, unloaded):
        task = on(backend, function, seed=7)
        assert EXPECTED[:3] == task.map(range(3))
        assert EXPECTED[0] == task(0)


def test_task_is_shown_with_its_word() -> None:
    """Messages show the word of the annotation, not what it refers to."""
    assert "plain(x: int, rng: Rng) -> None" == parallel(plain).spec.shown


def test_task_with_a_generator_is_pickled() -> None:
    """A task keeps its generators and its seed through pickle."""
    task = pickle.loads(pickle.dumps(draw.with_options(seed=8)))
    assert list(enumerate(numbers_of(8, 4))) == task.map(range(4))


def test_default_says_what_it_stands_for() -> None:
    """A function that is no task gets a default that has a name."""
    assert "per_item" == repr(per_item)


def test_library_does_not_load_random_numbers() -> None:
    """Defining and running tasks that draw nothing does not load ``numpy.random``."""
    code = (
        "import sys, sharedtask; task = sharedtask.parallel(lambda x: x);"
        "task.with_options(backend='serial').map([1]); print('numpy.random' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "False" == ran.stdout.strip()
