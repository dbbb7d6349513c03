# The functions under test are written as users write them, mistakes included.
# ruff: noqa: D106, E741, RUF036, UP007, UP037, UP045
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="type-arg, valid-type, misc, name-defined, index, assignment"
"""Annotations that are text, some of them with names that exist for type checkers only."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

import sharedtask.annotations as st
from sharedtask.annotations import CopyOnWrite, Role, Shared
from sharedtask.annotations import Shared as ReadOnly
from sharedtask.errors import ArgumentError, DefinitionError
from sharedtask.task.signature.spec import build_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import nowhere  # type: ignore[import-not-found]
    from nowhere import Model

    import sharedtask
    import sharedtask as elsewhere

SHARED, COPY = Role.SHARED, Role.COPY_ON_WRITE
T = TypeVar("T")


class Known: ...


def known(x, model: Shared[dict], weights: CopyOnWrite[npt.NDArray[np.float32]]): ...


def missing(x: Model, model: Shared[Model], known: Shared[dict], other: nowhere.Thing) -> Model: ...


def many(
    x,
    a: Shared[Model] | None,
    b: None | Shared[Model],
    c: Optional[Shared[Model]],
    d: typing.Optional[CopyOnWrite[Model]],
    e: typing.Union[Shared[Model], None],
    f: Annotated[Shared[Model], "doc"],
    g: Shared[Annotated[Model, "doc"]],
    h: typing.Annotated[Shared[Model] | None, nowhere.Metadata(3)],
    i: st.Shared[Model],
    j: st.CopyOnWrite["Model"],
    k: "Shared[Model]",
    l: ReadOnly[nowhere.deep.Model[int, str]],
    m: Shared[Mapping[str, Model]],
    n: sharedtask.Shared[Model],
    o: elsewhere.CopyOnWrite[Model] | None,
    p: Shared[Model | Known],
    q: Shared[T],
    r: Shared[dict[str, Model]],
): ...


COPIES = {"d", "j", "o"}


def test_names_that_exist() -> None:
    """Annotations as text are read like annotations as objects."""
    spec = build_spec(known)
    assert {"model": SHARED, "weights": COPY} == dict(spec.roles)
    with pytest.raises(ArgumentError, match=r"'weights' must be ndarray of float32, got list"):
        spec.check_value("weights", [])


def test_missing_name_leaves_the_other_parameters_alone() -> None:
    """A name that exists for type checkers only costs the check of its own parameter, no more."""
    spec = build_spec(missing)
    assert {"model": SHARED, "known": SHARED} == dict(spec.roles)
    spec.check_value("model", object())
    with pytest.raises(ArgumentError, match="'known' must be dict, got list"):
        spec.check_value("known", [])


@pytest.mark.parametrize("name", "abcdefghijklmnopqr")
def test_role_around_a_missing_name(name: Any) -> None:
    """The role is found whatever stands around and inside it."""
    assert (COPY if name in COPIES else SHARED) is build_spec(many).roles[name]


def test_known_outside_of_a_missing_name_is_checked() -> None:
    """Where only the contents are unknown, the outside is still checked."""
    with pytest.raises(ArgumentError, match="'r' must be dict, got list"):
        build_spec(many).check_value("r", [])


def test_mark_imported_for_type_checkers_only() -> None:
    """The words Shared and CopyOnWrite count even where their import does not run."""
    names: dict[str, Any] = {}
    exec(
        "from __future__ import annotations\n"
        "def f(x, a: Shared[dict], b: CopyOnWrite[dict] | None, c: Annotated[Shared[X], 1],\n"
        "      d: Optional[Shared[X]], e: other[X]): ...\n",
        names,
    )
    spec = build_spec(names["f"])
    assert {"a": SHARED, "b": COPY, "c": SHARED, "d": SHARED} == dict(spec.roles)


def test_names_of_the_function_around() -> None:
    """A class that is local to the enclosing function is known while that function runs."""

    class Local: ...

    def f(x, model: Shared[Local]): ...

    with pytest.raises(ArgumentError, match="'model' must be Local, got list"):
        build_spec(f).check_value("model", [])


def test_names_of_the_closure_after_the_function_around_returned() -> None:
    """A variable that the function captures is known after the enclosing function returned."""

    def outer():
        class Local: ...

        def f(x, model: Shared[Local]):
            return Local

        return f

    with pytest.raises(ArgumentError, match="'model' must be Local, got list"):
        build_spec(outer()).check_value("model", [])


def test_names_gone_with_the_function_around() -> None:
    """A local name that no one keeps leaves the role, without a check."""

    def outer():
        class Local: ...

        def f(x, model: Shared[Local]): ...

        return f

    spec = build_spec(outer())
    assert {"model": SHARED} == dict(spec.roles)
    spec.check_value("model", object())


def spec_of(function):
    return build_spec(function)


class Body:
    class Inner: ...

    @spec_of
    def method(self, x, model: Shared[Inner], known: Shared[dict]): ...


def test_names_of_the_class_body() -> None:
    """Names of the class body are known while the body runs."""
    assert {"model": SHARED, "known": SHARED} == dict(Body.method.roles)
    with pytest.raises(ArgumentError, match=r"must be Body\.Inner, got list"):
        Body.method.check_value("model", [])


def test_names_of_a_class_body_inside_a_function() -> None:
    """Class body and enclosing function are both looked into, the nearer first."""

    class Outer: ...

    class Same: ...

    class Holder:
        class Same: ...

        @spec_of
        def method(self, x, a: Shared[Outer], b: Shared[Same]): ...

    with pytest.raises(ArgumentError, match="'a' must be Outer"):
        Holder.method.check_value("a", [])
    with pytest.raises(ArgumentError, match=r"'b' must be Holder\.Same"):
        Holder.method.check_value("b", Same())


def test_refusals_read_through_text() -> None:
    """What is refused in annotations as objects is refused in text."""

    def result(x) -> Shared[Model]: ...

    def item(x: Shared[Model]): ...

    def never(x, model: Shared[typing.Iterator[Model]]): ...

    def twice(x, model: Shared[CopyOnWrite[Model]]): ...

    def nested(x, model: list[Shared[Model]]): ...

    for function in (result, item, never, twice, nested):
        with pytest.raises(DefinitionError):
            build_spec(function)


def test_users_own_forward_references_stay_untouched() -> None:
    """Reading an annotation leaves no placeholder behind for typing.get_type_hints."""
    alias = Shared["Later"]

    def f(x, model): ...

    f.__annotations__["model"] = alias
    build_spec(f)
    globals()["Later"] = dict
    try:
        assert {"model": dict} == typing.get_type_hints(f)
    finally:
        del globals()["Later"]


def test_iterator_known_to_type_checkers_only() -> None:
    """A type that is unknown at run time is left to the value's own check."""

    def f(x, model: Shared[Iterator[int]]): ...

    assert {"model": SHARED} == dict(build_spec(f).roles)
