"""Mistakes that type checkers find: every line marked below has to be refused by those it names.

An expected error that is not reported makes its comment superfluous, which is an error itself. What
only pyright finds are items of the wrong type and static and class methods taken from their class:
mypy does not compare first parameters.
"""

from typing import assert_type

import numpy as np
import numpy.typing as npt

import sharedtask
from sharedtask import CopyOnWrite, Shared, Task, parallel, share

Floats = npt.NDArray[np.float64]


@parallel
def score(image: int, model: Shared[Floats], threshold: float = 0.5) -> float:
    model.append(1)
    return model
    return float(model[image]) + threshold


@parallel(workers=2)
def fill(row: int, *, table: CopyOnWrite[Floats]) -> None:
    table[row] = 1


class Model:
    @parallel
    def predict(self, row: int, *, scale: float) -> float:
        return row * scale

    @parallel
    @staticmethod
    def power(base: int, exponent: int) -> int:
        return int(base**exponent)

    @parallel
    @classmethod
    def named(cls, number: int, suffix: str) -> str:
        return f"{cls.__name__} {number}{suffix}"


model = np.eye(3)
numbers = [1, 2, 3]
words = ["a", "b"]
one = Model()


async def arguments() -> None:
    score(1)
    score("1", model)
    score(1, model, treshold=1)

    score.map(numbers)
    score.map(numbers, model, 1, 2)
    score.map(numbers, model, treshold=1)
    score.map(numbers, "model")
    score.map(numbers, model=model, threshold="1")
    score.map(words, model)
    score.map(3, model)
    score.map(items=numbers, model=model)

    score.imap(numbers)
    score.imap(numbers, model, treshold=1)
    score.imap(numbers, model="model")
    score.imap(words, model)
    score.imap_unordered(numbers)
    score.imap_unordered(numbers, model, treshold=1)
    score.imap_unordered(numbers, model="model")
    score.imap_unordered(words, model)

    score.submit(1)
    score.submit(1, model, treshold=1)
    score.submit(1, model="model")
    score.submit("1", model)
    score.submit(numbers, model)

    await score.amap(numbers)
    await score.amap(numbers, model, treshold=1)
    await score.amap(numbers, model="model")
    await score.amap(words, model)
    score.aimap(numbers)
    score.aimap(numbers, model, treshold=1)
    score.aimap(numbers, model="model")
    score.aimap(words, model)

    fill.map(numbers)
    fill.map(numbers, model)
    fill.map(numbers, table=None)
    fill.map(words, table=model)


def methods() -> None:
    one.predict.map(numbers)
    one.predict.map(numbers, scale="1")
    one.predict.map(numbers, scale=1, bias=2)
    one.predict.map(words, scale=1)
    one.predict.with_options(workers=2).map(numbers)
    one.named.map(numbers)
    one.named.map(numbers, suffix=1)
    Model.power.map(numbers)
    Model.power.map(numbers, exponent="2")
    Model.power.map(words, 2)
    Model.named.map(numbers)
    Model.named.map(numbers, suffix=1)
    Model.named.map(words, "!")


def results() -> None:
    assert_type(score.map(numbers, model), list[int])
    first: str = score.submit(1, model).result()
    score.mapp(numbers, model)
    one.predict.mapp(numbers, scale=1)
    len(score)


def handles() -> None:
    handle = share(model)
    score.map(numbers, handle, treshold=1)
    score.map(numbers, model=handle, threshold="1")
    score.map(words, model=handle)
    text: str = handle.value


def options() -> None:
    parallel(workrs=2)
    parallel(workers="2")
    parallel(backend="processes")
    parallel(shared=[1])
    parallel(score.__wrapped__, workers=2)
    parallel(3)
    score.with_options(max_workers=2)
    score.with_options(workers=1.5)
    score.with_options(backend="gpu")
    score.with_options(chunksize="large")
    score.with_options(retry_on=KeyboardInterrupt)
    score.with_options(verify=True)
    score.with_options(shared=["model"])
    one.predict.with_options(worker=2)
    one.predict.with_options(timeout="3")
    sharedtask.defaults(desc=3)
    sharedtask.defaults(speed="fast")


def wants(task: Task[[str], int]) -> None:
    wants(score)
    wants(parallel(len))
    wants(parallel(lambda word: word.upper()))
