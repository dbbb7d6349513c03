# ruff: noqa: S101 - tests assert; their rule is their docstring
"""The kinds of functions that can be tasks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .tasks import INNER, Model, on_backend, power, under_backend


class FunctionsContract:
    """Any callable can be a task."""

    def test_lambda(self, backend: str) -> None:
        """A lambda is a task."""
        assert [1, 2, 3] == on_backend(backend, lambda x: x + 1).map(range(3))

    def test_closure(self, backend: str) -> None:
        """A function is sent with its captured values, as they are at the time of the call."""
        offset = 10

        def shifted(x: int) -> int:
            return x + offset

        task = on_backend(backend, shifted)
        assert [10, 11] == task.map(range(2))
        offset = 20
        assert [20, 21] == task.map(range(2))

    def test_captured_array_changes(self, backend: str) -> None:
        """A captured array that changed in place between two maps is seen changed."""
        table = np.zeros(200_000)
        task = on_backend(backend, lambda x: float(table[x]))
        assert [0.0, 0.0] == task.map([0, -1])
        table[-1] = 1
        assert [0.0, 1.0] == task.map([0, -1])

    def test_local_recursion(self, backend: str) -> None:
        """A nested function may call itself."""

        def factorial(x: int) -> int:
            return 1 if x < 2 else x * factorial(x - 1)

        assert [1, 1, 2, 6, 24] == on_backend(backend, factorial).map(range(5))

    def test_method(self, backend: str) -> None:
        """A method that is a task is sent with its object."""
        model = Model(np.ones(3), 0.5)
        task = under_backend(backend, model.scaled)
        assert [0.5, 3.5, 6.5] == task.map(range(3))
        assert [0.5, 6.5] == task.map(range(2), by=2.0)

    def test_method_sees_the_changed_object(self, backend: str) -> None:
        """The object of a method is sent as it is at the time of the call."""
        model = Model(np.ones(3), 0.5)
        task = under_backend(backend, model.scaled)
        assert [0.5, 3.5] == task.map(range(2))
        model.bias = 1.0
        assert [1.0, 4.0] == task.map(range(2))

    def test_method_with_a_shared_object(self, backend: str) -> None:
        """``shared=["self"]`` shares the object: its arrays are read-only in the task."""
        model = Model(np.ones(300_000), 0.5)
        task = under_backend(backend, model.shared_scaled)
        assert [(0.5, False), (300_000.5, False)] == task.map(range(2))

    def test_bound_method_of_a_plain_class(self, backend: str) -> None:
        """A bound method can be made a task."""
        model = Model(np.ones(3), 0.5)
        assert [0.5, 3.5] == on_backend(backend, model.predict).map(range(2))

    def test_static_and_class_methods(self, backend: str) -> None:
        """Static and class methods are tasks, from the class and from an object."""
        model = Model(np.ones(1), 0.0)
        assert [0, 2] == under_backend(backend, Model.doubled).map(range(2))
        assert [0, 2] == under_backend(backend, model.doubled).map(range(2))
        for named in (Model.named, model.named):
            assert ["Model 0", "Model 1"] == under_backend(backend, named).map(range(2))

    def test_partial(self, backend: str) -> None:
        """A partial is a task with the rest of its signature."""
        assert [1, 8, 27] == on_backend(backend, functools.partial(power, exponent=3)).map(
            [1, 2, 3]
        )

    def test_callable_object(self, backend: str) -> None:
        """An object with ``__call__`` is a task."""
        assert [5, 6] == on_backend(backend, _Adder(5)).map(range(2))

    def test_task_as_an_argument(self, backend: str) -> None:
        """A task can be given to a task."""
        assert [0, 1, 4] == on_backend(backend, _apply).map(range(3), function=INNER)


def _apply(x: int, function: Any) -> Any:
    return function(x)


class _Adder:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: int) -> int:
        return x + self.by
