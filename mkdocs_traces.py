"""The programs of the page about slow maps: each is traced as it is, and as it should be.

They are run when the site is built, so code, advice, pictures and figures are those of real runs.
The key of a program is the topic of the advice that its first part gets, and its second does not.
"""

import inspect
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl

import sharedtask
from sharedtask import Locked, Reduced, Shared, parallel, trace
from sharedtask.system.cpus import available_cpus
from sharedtask.text import duration
from sharedtask.tracing.advising import advise
from sharedtask.tracing.advising.text import lines
from sharedtask.tracing.records import Recorded
from sharedtask.tracing.showing.picture import timeline

SCHEMES = ("light", "dark")
_WIDTH = 84  # of a block of text on a page


class Program(NamedTuple):
    """A slow program and its cure, each with the tasks that are shown with it."""

    before: Callable[[], object]
    after: Callable[[], object]
    tasks_before: tuple[Any, ...] = ()
    tasks_after: tuple[Any, ...] = ()


@parallel(backend="process", workers=2, chunksize=1)
def look(row: int, names: dict[str, int]) -> int:
    return names[str(row)]


@parallel(backend="process", workers=2, chunksize=1)
def look_shared(row: int, names: Shared[dict[str, int]]) -> int:
    return names[str(row)]


def look_unmarked() -> None:
    names = {str(k): k for k in range(30_000)}
    look.map(range(40), names=names)


def look_marked() -> None:
    names = {str(k): k for k in range(30_000)}
    look_shared.map(range(40), names=names)


@parallel(backend="process", workers=2)
def total(row: int, table: Shared[Any]) -> float:
    return float(table[row:].sum())


def made_each_time() -> None:
    for _ in range(5):
        total.map(range(4), table=np.ones(8_000_000))


def made_once() -> None:
    table = np.ones(8_000_000)
    for _ in range(5):
        total.map(range(4), table=table)


def changed() -> None:
    table = np.ones(8_000_000)
    for _ in range(5):
        total.map(range(4), table=table)
        table += 1


def changed_in_shared_memory() -> None:
    table = sharedtask.array(np.ones(8_000_000))
    for _ in range(5):
        total.map(range(4), table=table)
        table += 1


@parallel(backend="process", workers=2)
def value_of(key: int, names: Shared[dict[str, int]]) -> int:
    return names[str(key)]


@parallel(backend="process", workers=2)
def value_at(key: int, values: Shared[Any]) -> int:
    return int(values[key])


def many_objects() -> None:
    value_of.map(range(4), names={str(k): k for k in range(300_000)})


def one_array() -> None:
    value_at.map(range(4), values=np.arange(300_000))


def defined_each_time() -> None:
    for offset in range(12):
        names = dict.fromkeys(map(str, range(20_000)), offset)
        shifted = parallel(lambda row, names=names: names[str(row)])
        shifted.with_options(backend="process", workers=2, chunksize=1).map(range(4))


@parallel(backend="process", workers=2, chunksize=1)
def shifted_by(row: int, names: Shared[dict[str, int]], offset: int) -> int:
    return names[str(row)] + offset


def defined_once() -> None:
    names = dict.fromkeys(map(str, range(20_000)), 0)
    for offset in range(12):
        shifted_by.map(range(4), names=names, offset=offset)


@parallel(backend="process", workers=2, chunksize=1)
def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def longest_last() -> None:
    sizes = [0.01] * 40 + [0.4]
    wait.map(sizes)


def longest_first() -> None:
    sizes = [0.01] * 40 + [0.4]
    wait.map(sorted(sizes, reverse=True))


def read() -> Iterator[float]:
    for _ in range(20):
        time.sleep(0.02)  # opens a file, asks a database
        yield 0.001


def read_by_the_caller() -> None:
    wait.map(read())


@parallel(backend="process", workers=2, chunksize=1)
def read_and_wait(_path: int) -> None:
    time.sleep(0.02)
    time.sleep(0.001)


def read_by_the_tasks() -> None:
    read_and_wait.map(range(20))


def handled_by_the_caller() -> None:
    for _ in wait.imap([0.001] * 20):
        time.sleep(0.02)  # writes a file


@parallel(backend="process", workers=2, chunksize=1)
def wait_and_write(seconds: float) -> None:
    time.sleep(seconds)
    time.sleep(0.02)


def handled_by_the_tasks() -> None:
    for _ in wait_and_write.imap([0.001] * 20):
        pass


absolute = parallel(abs).with_options(backend="process", workers=2)


def one_by_one() -> None:
    absolute.with_options(chunksize=1).map(range(1500))


def in_chunks() -> None:
    absolute.map(range(1500))


@parallel(backend="process", workers=2)
def row_of(number: int) -> Any:
    return np.full(1_000_000, float(number))


def returned() -> None:
    for _ in range(4):
        row_of.map(range(8))


def written_into() -> None:
    rows = sharedtask.empty((8, 1_000_000))
    for _ in range(4):
        row_of.map_into(rows, range(8))


def in_a_map() -> None:
    for _ in range(40):
        absolute.map(range(40))


absolute_here = absolute.with_options(backend="serial")


def in_a_loop() -> None:
    for _ in range(40):
        absolute_here.map(range(40))


@parallel(backend="process", chunksize=1)
def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def crowded() -> None:
    cores = available_cpus()
    compute.with_options(workers=3 * cores).map([0.02] * 6 * cores)


def one_for_each_core() -> None:
    compute.map([0.02] * 6 * available_cpus())


@parallel(backend="process", workers=2, chunksize=1)
def multiply(threads: int) -> None:
    threadpoolctl.threadpool_limits(threads)
    square, end = np.ones((300, 300)), time.thread_time() + 0.05
    while time.thread_time() < end:
        square @ square


def with_threads_of_blas() -> None:
    multiply.map([2 * available_cpus()] * 6)


def without_threads_of_blas() -> None:
    multiply.map([1] * 6)


@parallel(backend="process", workers=2, chunksize=1)
def add_locked(number: int, sums: Locked[Any]) -> None:
    with sums.write(0) as row:
        time.sleep(0.01)  # computes
        row[:] += number


@parallel(backend="process", workers=2, chunksize=1)
def add_reduced(number: int, sums: Reduced[Any]) -> None:
    time.sleep(0.01)
    sums[0] += number


def one_row_for_all() -> None:
    add_locked.map(range(20), sums=Locked(sharedtask.zeros((4, 2))))


def sums_of_their_own() -> None:
    add_reduced.map(range(20), sums=sharedtask.zeros((4, 2)))


_kept: list[Any] = []


@parallel(backend="process", workers=1, chunksize=1, memory_limit="100MB", return_exceptions=True)
def keep(number: int) -> int:
    _kept.append(np.ones(500_000))
    return number


@parallel(backend="process", workers=1, chunksize=1, memory_limit="100MB", return_exceptions=True)
def let_go(number: int) -> int:
    return number + int(np.ones(500_000)[0])


def kept() -> None:
    keep.map(range(60))


def not_kept() -> None:
    let_go.map(range(60))


PROGRAMS: dict[str, Program] = {
    "unmarked": Program(look_unmarked, look_marked, (look,), (look_shared,)),
    "new value": Program(made_each_time, made_once, (total,)),
    "changed value": Program(changed, changed_in_shared_memory),
    "decoded slowly": Program(many_objects, one_array, (value_of,), (value_at,)),
    "function decoded": Program(defined_each_time, defined_once, (), (shifted_by,)),
    "straggler": Program(longest_last, longest_first, (wait,)),
    "slow iterator": Program(read_by_the_caller, read_by_the_tasks, (read,), (read_and_wait,)),
    "slow loop": Program(handled_by_the_caller, handled_by_the_tasks, (), (wait_and_write,)),
    "small items": Program(one_by_one, in_chunks),
    "slower than a loop": Program(in_a_map, in_a_loop),
    "large results": Program(returned, written_into, (row_of,)),
    "too many workers": Program(crowded, one_for_each_core, (compute,)),
    "inner threads": Program(with_threads_of_blas, without_threads_of_blas, (multiply,)),
    "lock waits": Program(one_row_for_all, sums_of_their_own, (add_locked,), (add_reduced,)),
    "recycled workers": Program(kept, not_kept, (keep,), (let_go,)),
}


def warm() -> None:
    """Start the workers, and load what a first call loads."""
    wait.map([0.01] * 4)
    absolute_here.map([1])


def traced(program: Callable[[], object]) -> Recorded:
    """What a program does, whose workers are there."""
    with trace() as run:
        program()
    return run.recorded()


def pictures() -> tuple[dict[str, str], dict[str, str]]:
    """The pictures by their file, and by program what the page says of them."""
    warm()
    files: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name, program in PROGRAMS.items():
        runs = {"before": traced(program.before), "after": traced(program.after)}
        seconds = max(run.seconds for run in runs.values())
        for when, run in runs.items():
            for scheme in SCHEMES:
                files[file_of(name, when, scheme)] = timeline(run, scheme, seconds)
        texts[name] = told(name, program, runs)
    return files, texts


def file_of(name: str, when: str, scheme: str) -> str:
    """A picture's file, from the page."""
    return f"traces/{name.replace(' ', '-')}-{when}-{scheme}.svg"


def told(name: str, program: Program, runs: dict[str, Recorded]) -> str:
    """The program, what the trace advises, its cure, both pictures and both times."""
    advice = [each for each in advise(runs["before"]) if each.topic == name]
    before, after = (duration(run.in_calls) for run in runs.values())
    return "\n\n".join(
        [
            code_of(*program.tasks_before, program.before),
            *("```text\n" + "\n".join(lines(advice[:1], _WIDTH)) + "\n```" for _ in advice[:1]),
            "Instead:",
            code_of(*program.tasks_after, program.after),
            f"Before, the calls take {before}, afterwards {after}:",
            "\n".join(
                f"![Timeline of the program {when}]({file_of(name, when, scheme)}#only-{scheme})"
                for when in runs
                for scheme in SCHEMES
            ),
        ]
    )


def code_of(*parts: Any) -> str:
    """Tasks as they are written, and the body of the program."""
    *tasks, program = parts
    sources = [inspect.getsource(inspect.unwrap(task)).rstrip() for task in tasks]
    _, _, body = inspect.getsource(program).partition(":\n")
    return "```python\n" + "\n\n".join([*sources, textwrap.dedent(body).rstrip()]) + "\n```"
