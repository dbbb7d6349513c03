"""Mistakes that type checkers find: every line marked below is refused by those it names.

An expected error that is not reported makes its comment superfluous, which is an error itself.
mypy does not compare first parameters, so only pyright finds an item of the wrong type, and the
arguments of a static or class method that is taken from its class.
"""

from typing import assert_type

import numpy as np
import numpy.typing as npt

import sharedtask
from sharedtask import (
    CopyOnWrite,
    Partition,
    Partitioned,
    Shared,
    Task,
    multi_process,
    parallel,
    partition,
    per_worker,
    share,
)

Floats = npt.NDArray[np.float64]


@parallel
def score(image: int, model: Shared[Floats], threshold: float = 0.5) -> float:
    return float(model[image].sum()) + threshold


@parallel
def mistaken(image: int, model: Shared[Floats]) -> float:
    model.append(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    return f"{image}"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@parallel(workers=2)
def fill(row: int, *, table: CopyOnWrite[Floats]) -> None:
    table[row] = 1


@parallel
def square(rows: slice, out: Partitioned[Floats]) -> None:
    out[rows].append(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


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
    score(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score("1", model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score(1, model, treshold=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    score.map(numbers)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.map(numbers, model, 1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.map(numbers, model, treshold=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.map(numbers, "model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.map(numbers, model=model, threshold="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.map(words, model)  # pyright: ignore[reportArgumentType]
    score.map(3, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.map(items=numbers, model=model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    score.imap(numbers)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.imap(numbers, model, treshold=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.imap(numbers, model="model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.imap(words, model)  # pyright: ignore[reportArgumentType]
    score.imap_unordered(numbers)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.imap_unordered(numbers, model, treshold=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.imap_unordered(numbers, model="model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.imap_unordered(words, model)  # pyright: ignore[reportArgumentType]

    score.submit(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.submit(1, model, treshold=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.submit(1, model="model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.submit("1", model)  # pyright: ignore[reportArgumentType]
    score.submit(numbers, model)  # pyright: ignore[reportArgumentType]

    await score.amap(numbers)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await score.amap(numbers, model, treshold=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await score.amap(numbers, model="model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await score.amap(words, model)  # pyright: ignore[reportArgumentType]
    score.aimap(numbers)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.aimap(numbers, model, treshold=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.aimap(numbers, model="model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.aimap(words, model)  # pyright: ignore[reportArgumentType]

    fill.map(numbers)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fill.map(numbers, model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fill.map(numbers, table=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fill.map(words, table=model)  # pyright: ignore[reportArgumentType]


def blocks() -> None:
    square.map(partition(3, 2))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    square.map(partition(3, 2), out=[1.0])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    square.map(numbers, out=model)  # pyright: ignore[reportArgumentType]
    partition(3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    partition(model, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Partition(by=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    parallel(partitioned=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    sharedtask.zeros(3, order="K")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def methods() -> None:
    one.predict.map(numbers)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.predict.map(numbers, scale="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    one.predict.map(numbers, scale=1, bias=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.predict.map(words, scale=1)  # pyright: ignore[reportArgumentType]
    one.predict.with_options(workers=2).map(numbers)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.named.map(numbers)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.named.map(numbers, suffix=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Model.power.map(numbers)  # pyright: ignore[reportCallIssue]
    Model.power.map(numbers, exponent="2")  # pyright: ignore[reportArgumentType]
    Model.power.map(words, exponent=2)  # pyright: ignore[reportArgumentType]
    Model.named.map(numbers)  # pyright: ignore[reportCallIssue]
    Model.named.map(numbers, suffix=1)  # pyright: ignore[reportArgumentType]
    Model.named.map(words, suffix="!")  # pyright: ignore[reportArgumentType]


def results() -> str:
    assert_type(score.map(numbers, model), list[int])  # type: ignore[assert-type]  # pyright: ignore[reportAssertTypeFailure]
    score.mapp(numbers, model)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    one.predict.mapp(numbers, scale=1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    len(score)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return score.submit(1, model).result()  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def handles() -> str:
    handle = share(model)
    score.map(numbers, handle, treshold=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.map(numbers, model=handle, threshold="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.map(words, model=handle)  # pyright: ignore[reportArgumentType]
    return handle.value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def options() -> None:
    parallel(workrs=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    parallel(workers="2")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    parallel(backend="processes")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    parallel(shared=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    parallel(score.__wrapped__, workers=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    parallel(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    score.with_options(max_workers=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    score.with_options(workers=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.with_options(backend="gpu")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.with_options(chunksize="large")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.with_options(retry_on=KeyboardInterrupt)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.with_options(seed="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.with_options(initializer=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.map(numbers, model=per_worker(list))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    per_worker(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    score.with_options(verify=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    score.with_options(shared=["model"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.predict.with_options(worker=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.predict.with_options(timeout="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sharedtask.defaults(desc=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sharedtask.defaults(speed="fast")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def wants(task: Task[[str], int]) -> None:
    wants(score)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    task.map(numbers)  # pyright: ignore[reportArgumentType]


def in_one_call() -> None:
    multi_process(score, numbers, backend="process")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    multi_process(score, numbers, workers="2")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    multi_process(score, numbers, shared_kwargs=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    multi_process(score, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    multi_process(score, words)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    multi_process(3, numbers)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
