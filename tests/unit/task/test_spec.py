# The functions under test are written as users write them, mistakes included.
# ruff: noqa: UP006, UP007, UP045
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="type-arg, valid-type, misc, name-defined, index, assignment"
import asyncio
import collections.abc
import dataclasses
import enum
import functools
import io
import math
import mmap
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import threading
import types
import typing
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from typing import (
    IO,
    Annotated,
    Any,
    BinaryIO,
    Literal,
    NewType,
    Optional,
    Protocol,
    TextIO,
    TypedDict,
    TypeVar,
    Union,
    runtime_checkable,
)

import numpy as np
import numpy.typing as npt
import pydantic
import pytest

import sharedtask.annotations as st
from sharedtask.annotations import CopyOnWrite, Role, Shared
from sharedtask.errors import ArgumentError, DefinitionError, UnshareableError
from sharedtask.task.signature.spec import build_spec, refuse_unshareable

SHARED, COPY = Role.SHARED, Role.COPY_ON_WRITE


def score(x, model, *, scale=1.0):
    return x, model, scale


def refusal(function, **lists):
    """Return the one-line text with which a function is refused."""
    with pytest.raises(DefinitionError) as caught:
        build_spec(function, **lists)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- what a spec says --------------------------------------------------------------------------


def test_spec_of_a_function() -> None:
    """Name, item, roles and signature of a plain function."""
    spec = build_spec(score, shared=["model"], copy_on_write=["scale"])
    assert ("score", "x", None, False) == (spec.name, spec.item, spec.bound, spec.accepts_kwargs)
    assert {"model": SHARED, "scale": COPY} == dict(spec.roles)
    assert ["x", "model", "scale"] == list(spec.signature.parameters)


def test_spec_is_frozen() -> None:
    """Nothing in a spec changes after decoration."""
    spec = build_spec(score, shared=["model"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.item = "model"
    with pytest.raises(TypeError):
        spec.roles["scale"] = SHARED


def test_roles_stand_in_the_order_of_the_signature() -> None:
    """Roles from lists and annotations come in one order, extra keywords last."""

    def f(x, a: Shared[int], b, c: CopyOnWrite[int], **kwargs):
        pass

    spec = build_spec(f, shared=["z", "c2", "b", "a"])
    assert ["a", "b", "c", "z", "c2"] == list(spec.roles)


@pytest.mark.parametrize("names", [["model"], ("model",), {"model"}, {"model": 1}])
def test_lists_may_be_any_collection(names: Any) -> None:
    """The names may come in a list, tuple, set or the keys of a dict."""
    assert {"model": SHARED} == dict(build_spec(score, shared=names).roles)


def test_extra_keywords_may_be_shared() -> None:
    """A function with **kwargs takes any shared name."""

    def f(x, **kwargs):
        pass

    spec = build_spec(f, shared=["anything"])
    assert spec.accepts_kwargs
    assert {"anything": SHARED} == dict(spec.roles)
    spec.check_value("anything", object())


def test_star_args_serve_as_item() -> None:
    """A function of *args takes the item there."""

    def f(*args, model: Shared[dict]):
        pass

    assert "args" == build_spec(f).item


def test_item_may_be_positional_only() -> None:
    """The item is passed by position, so a slash after it is fine."""

    def f(x, /, model: Shared[dict]):
        pass

    assert "x" == build_spec(f).item


def test_lambda() -> None:
    """A lambda has a spec like any function."""
    spec = build_spec(lambda x, model: x, shared=["model"])
    assert ("<lambda>", "x") == (spec.name, spec.item)


class Methods:
    def method(self, x, model: Shared[dict]): ...

    def own(self: "Shared[Methods]", x): ...

    def of_class(cls, x, model: Shared[dict]): ...

    def static(x, model: Shared[dict]): ...

    def slashed(self, x, /, model: Shared[dict]): ...

    short = lambda self, x: x


@pytest.mark.parametrize(
    ("function", "kind", "bound", "item"),
    [
        (Methods.method, "function", "self", "x"),
        (Methods.own, "function", "self", "x"),
        (Methods.of_class, "function", "cls", "x"),
        (Methods.of_class, "class", "cls", "x"),
        (Methods.static, "function", None, "x"),
        (Methods.static, "static", None, "x"),
        (Methods.slashed, "function", "self", "x"),
        (Methods.short, "function", "self", "x"),
        (Methods().method, "function", None, "x"),
    ],
)
def test_methods(function: Any, kind: Any, bound: Any, item: Any) -> None:
    """A method's first parameter takes its object, the next one the item."""
    spec = build_spec(function, kind=kind)
    assert (bound, item) == (spec.bound, spec.item)


def test_method_name_names_its_class() -> None:
    """Messages about a method name its class, not the function around it."""
    assert "Methods.method" == build_spec(Methods.method).name

    class Local:
        def method(self, x): ...

    assert "Local.method" == build_spec(Local.method).name


def test_self_named_parameter_of_a_function_takes_the_item() -> None:
    """Only a function defined in a class body is a method."""

    def f(self, model):
        pass

    spec = build_spec(f)
    assert (None, "self") == (spec.bound, spec.item)


def test_self_may_be_shared() -> None:
    """The object of a method may be shared, by list or by annotation."""
    assert SHARED is build_spec(Methods.method, shared=["self"]).roles["self"]
    assert SHARED is build_spec(Methods.own).roles["self"]


# --- annotations -------------------------------------------------------------------------------

Alias = Shared[dict]
Named = NewType("Named", dict)
Bound = TypeVar("Bound", bound=dict)
Free = TypeVar("Free")
Limited = TypeVar("Limited", int, str)


@pytest.mark.parametrize(
    ("annotation", "role"),
    [
        (Shared[dict], SHARED),
        (st.Shared[dict], SHARED),
        (CopyOnWrite[dict], COPY),
        (Shared["dict"], SHARED),
        ("Shared[dict]", SHARED),
        ("st.Shared['dict']", SHARED),
        (Shared[dict] | None, SHARED),
        ("Shared[dict] | None", SHARED),
        (Optional[Shared[dict]], SHARED),
        (Union[None, CopyOnWrite[dict]], COPY),
        (Shared[dict | None], SHARED),
        (Annotated[Shared[dict], "doc"], SHARED),
        (Shared[Annotated[dict, "doc"]], SHARED),
        (Annotated[Shared[dict] | None, "doc"], SHARED),
        (Shared[Shared[dict]], SHARED),
        (Alias, SHARED),
        (Shared, SHARED),
        (Shared[Any], SHARED),
        (dict, None),
        ("dict", None),
        ("this is no annotation", None),
        ("Unknown[1/0]", None),
    ],
)
def test_role_of_an_annotation(annotation: Any, role: Any) -> None:
    """The role is found through text, unions and other metadata."""

    def f(x, model): ...

    f.__annotations__["model"] = annotation
    assert role == build_spec(f).roles.get("model")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type statements are new in 3.12")
def test_type_statement_is_looked_through() -> None:
    """A type statement hides the marker from get_type_hints, not from us."""
    names: dict[str, Any] = {"Shared": Shared}
    exec("type A = Shared[dict]\ntype B[S, T] = Shared[T]\n", names)

    def f(x, a, b): ...

    f.__annotations__ |= {"a": names["A"], "b": names["B"][int, dict]}

    spec = build_spec(f)
    assert {"a": SHARED, "b": SHARED} == dict(spec.roles)
    with pytest.raises(ArgumentError, match="'b' must be dict, got list"):
        spec.check_value("b", [])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are new in 3.12")
def test_type_parameters_are_known() -> None:
    """A function's own type parameters may be named in text."""
    names: dict[str, Any] = {"Shared": Shared}
    exec("def f[T: dict](x, a: 'Shared[T]'): ...\n", names)
    with pytest.raises(ArgumentError, match="'a' must be dict, got list"):
        build_spec(names["f"]).check_value("a", [])


def test_list_and_annotation_may_agree() -> None:
    """A parameter may be named in the list and annotated alike."""

    def f(x, model: Shared[dict]): ...

    assert {"model": SHARED} == dict(build_spec(f, shared=["model"]).roles)


def test_partial_of_other_arguments() -> None:
    """A functools.partial keeps the annotations of its function."""

    def f(x, model: "Shared[dict]", scale): ...

    spec = build_spec(functools.partial(f, scale=2))
    assert ("f", {"model": SHARED}) == (spec.name, dict(spec.roles))
    with pytest.raises(ArgumentError, match="got list"):
        spec.check_value("model", [])


class Callable_:
    def __call__(self, x, model: "Shared[dict]"): ...


def test_callable_object() -> None:
    """An object with __call__ is a task by that method."""
    spec = build_spec(Callable_())
    assert ("Callable_", "x", {"model": SHARED}) == (spec.name, spec.item, dict(spec.roles))


def test_wrapped_function_keeps_its_signature() -> None:
    """A function behind functools.wraps is read through the wrapper."""

    def f(x, model: Shared[dict]): ...

    @functools.wraps(f)
    def wrapper(*args, **kwargs): ...

    assert {"model": SHARED} == dict(build_spec(wrapper).roles)


@pytest.mark.parametrize(
    ("function", "item"), [(math.sqrt, "x"), (np.linalg.norm, "x"), (len, "obj")]
)
def test_library_functions_with_a_signature(function: Any, item: Any) -> None:
    """A builtin or library function works where it has a signature."""
    assert item == build_spec(function).item


# --- refusals ----------------------------------------------------------------------------------


def with_annotation(annotation):
    def f(x, model): ...

    f.__annotations__["model"] = annotation
    return f


def keywords(x, **options): ...


NO_CHECK = pydantic.Field(discriminator="x")


def stars(x, *rest, model): ...


def slash(x, model, /, y): ...


@pytest.mark.parametrize(
    ("text", "function", "lists"),
    [
        (
            ("score(x, model, *, scale): shared=['modle'] names no parameter."
            " Did you mean 'model'?"),
            score,
            {"shared": ["modle"]},
        ),
        (
            ("score(x, model, *, scale): 'modle' in shared=['scale', 'modle'] names no parameter."
            " Did you mean 'model'?"),
            score,
            {"shared": ["scale", "modle"]},
        ),
        (
            "score(x, model, *, scale): copy_on_write=['zzz'] names no parameter.",
            score,
            {"copy_on_write": ["zzz"]},
        ),
        ("score(x, model, *, scale): shared= names 'model' twice; name it once.", score,
         {"shared": ["model", "model"]}),
        (
            "score(x, model, *, scale): 'model' is both CopyOnWrite and Shared; choose one.",
            score,
            {"shared": ["model"], "copy_on_write": ["model"]},
        ),
        (
            ("score(x, model, *, scale): 'x' takes the item, which differs in each call;"
            " share another."),
            score,
            {"shared": ["x"]},
        ),
        (
            ("score(x, model, *, scale): shared='model' is one text, and a list of names is needed:"
            " shared=['model']."),
            score,
            {"shared": "model"},
        ),
        ("score(x, model, *, scale): shared=[1] must be a list of parameter names.", score,
         {"shared": [1]}),
        ("score(x, model, *, scale): shared=3 must be a list of parameter names.", score,
         {"shared": 3}),
        ("score(x, model, *, scale): shared=b'ab' must be a list of parameter names.", score,
         {"shared": b"ab"}),
        (
            ("keywords(x, **options): '**options' is many values;"
            " mark each by name in shared=[...]."),
            keywords,
            {"shared": ["options"]},
        ),
        ("keywords(x, **options): shared=['not a name'] names no parameter.", keywords,
         {"shared": ["not a name"]}),
        (
            "stars(x, *rest, model): '*rest' is many values; mark each by name in shared=[...].",
            stars,
            {"shared": ["rest"]},
        ),
        (
            ("slash(x, model, /, y): 'model' is positional-only,"
            " and shared values are given by name."),
            slash,
            {"shared": ["model"]},
        ),
        (
            "score(x, *, model, scale): 'model' is fixed by functools.partial; leave it out there.",
            functools.partial(score, model={}),
            {"shared": ["model"]},
        ),
        (
            ("Methods.of_class(cls, x, model): 'cls' is the class,"
            " and a class is found by name; share a value."),
            Methods.of_class,
            {"shared": ["cls"], "kind": "class"},
        ),
    ],
)  # fmt: skip
def test_sharing_that_is_refused(text: Any, function: Any, lists: Any) -> None:
    """Each mistake in a list is one sentence with the signature in front."""
    assert text == refusal(function, **lists)


@pytest.mark.parametrize(
    ("text", "annotation", "lists"),
    [
        ("both CopyOnWrite and Shared", Shared[CopyOnWrite[dict]], {}),
        ("both CopyOnWrite and Shared", Shared[dict] | CopyOnWrite[list], {}),
        ("both CopyOnWrite and Shared", CopyOnWrite[dict], {"shared": ["model"]}),
        ("both CopyOnWrite and Shared", Shared[dict], {"copy_on_write": ["model"]}),
        ("inside other brackets; it goes outside", list[Shared[int]], {}),
        ("inside other brackets; it goes outside", dict[str, list[Shared[int]]] | None, {}),
        ("cannot be read (SyntaxError", "Shared[dict", {}),
        ("cannot be read (ZeroDivisionError", "Shared[1/0]", {}),
        ("metadata of 'model' makes no check", Annotated[Shared[int], NO_CHECK], {}),
    ],
)  # fmt: skip
def test_annotation_that_is_refused(text: Any, annotation: Any, lists: Any) -> None:
    """An annotation that contradicts itself is refused by name."""
    said = refusal(with_annotation(annotation), **lists)
    assert said.startswith("f(x, model): ")
    assert text in said
    assert "'model'" in said


def test_item_annotated_as_shared_is_refused() -> None:
    """The item travels with each call and is never shared."""

    def f(x: Shared[int], model): ...

    assert refusal(f).startswith("f(x, model): 'x' takes the item")


@pytest.mark.parametrize("mark", [Shared, CopyOnWrite])
def test_marked_stars_are_refused(mark: Any) -> None:
    """*args and **kwargs are many values and cannot be marked as one."""

    def f(x, *args: mark[int]): ...

    def g(x, **kwargs: mark[int]): ...

    assert "'*args' is many values" in refusal(f)
    assert "'**kwargs' is many values" in refusal(g)


@pytest.mark.parametrize("annotation", [Shared[dict], "Shared[dict] | None"])
def test_marked_result_is_refused(annotation: Any) -> None:
    """A role on the return annotation means nothing."""

    def f(x): ...

    f.__annotations__["return"] = annotation
    assert "marks the result, and only parameters are shared" in refusal(f)


def no_item(*, model): ...


def nothing(): ...


class NoItem:
    def method(self): ...


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (no_item, "no_item(*, model)"),
        (nothing, "nothing()"),
        (NoItem.method, "NoItem.method(self)"),
    ],
)
def test_function_without_item_is_refused(function: Any, shown: Any) -> None:
    """A task needs a positional parameter for the item."""
    assert (
        f"{shown}: has no positional parameter to take the item; add one, as in (item)."
        == refusal(function)
    )


async def coroutine_function(x): ...


def generator_function(x):
    yield x


async def async_generator_function(x):
    yield x


class AsyncCall:
    async def __call__(self, x): ...


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("coroutine_function() is an async def", coroutine_function),
        ("coroutine_function() is an async def", functools.partial(coroutine_function)),
        ("AsyncCall() is an async def", AsyncCall()),
        ("generator_function() is a generator function", generator_function),
        ("async_generator_function() is an async generator", async_generator_function),
        ("AsyncCall is a class", AsyncCall),
        ("max() has no signature to read", max),
        ("only a function can be a task, got 3.", 3),
        ("only a function can be a task, got 'score'.", "score"),
        ("only a function can be a task, got None.", None),
    ],
)
def test_target_that_is_refused(text: Any, target: Any) -> None:
    """What cannot be a task is refused with the reason."""
    assert refusal(target).startswith(text)


def test_refusal_has_no_foreign_error_behind_it() -> None:
    """The error of inspect or eval does not show as context."""
    for target in (max, with_annotation("Shared[1/0]")):
        with pytest.raises(DefinitionError) as caught:
            build_spec(target)
        assert caught.value.__context__ is None


# --- types and values that can never be shared -------------------------------------------------

NEVER = [
    Iterator[int],
    typing.Iterator[int],
    Iterator,
    Generator[int, None, None],
    AsyncIterator[int],
    collections.abc.AsyncGenerator[int, None],
    Coroutine[None, None, int],
    IO[bytes],
    IO,
    TextIO,
    BinaryIO,
    io.IOBase,
    io.TextIOWrapper,
    io.FileIO,
    io.BufferedReader,
    socket.socket,
    threading.Lock,
    threading.RLock,
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.BoundedSemaphore,
    threading.Thread,
    threading.local,
    multiprocessing.Lock,
    multiprocessing.Queue,
    multiprocessing.Process,
    subprocess.Popen,
    subprocess.Popen[bytes],
    types.FrameType,
    types.TracebackType,
    types.GeneratorType,
    types.CoroutineType,
    asyncio.Lock,
    asyncio.Task,
    ThreadPoolExecutor,
    mmap.mmap,
]


@pytest.mark.parametrize("type_", NEVER, ids=str)
@pytest.mark.parametrize("mark", [Shared, CopyOnWrite])
def test_type_that_is_never_shared(mark: Any, type_: Any) -> None:
    """A type that belongs to one process is refused at decoration, in unions too."""
    for annotation in (mark[type_], mark[type_] | None, Annotated[mark[type_], "doc"]):
        said = refusal(with_annotation(annotation))
        assert said.startswith("f(x, model): 'model' is ")
        assert "which belongs to one process: " in said


def test_listed_type_that_is_never_shared() -> None:
    """The annotation of a parameter named in the list counts as well."""
    assert "is Iterator[int], which" in refusal(with_annotation(Iterator[int]), shared=["model"])


@pytest.mark.parametrize(
    "type_",
    [
        io.BytesIO,
        io.StringIO,
        list,
        Sequence[int],
        collections.abc.Iterable[int],
        np.memmap,
        object,
    ],
)
def test_type_that_looks_like_it_and_is_shared(type_: Any) -> None:
    """Collections, and files in memory, can be shared."""
    assert "model" in build_spec(with_annotation(Shared[type_])).roles


def unshareable_values():
    def generator():
        yield 1

    async def coroutine(): ...

    never_awaited = coroutine()
    with (
        socket.socket() as sock,
        tempfile.TemporaryFile() as file,
        tempfile.NamedTemporaryFile() as named,
        ThreadPoolExecutor() as pool,
        mmap.mmap(-1, 10) as mapped,
    ):
        yield from (
            generator(),
            (n for n in range(3)),
            never_awaited,
            sys._getframe(),
            sock,
            file,
            named,
            sys.stdout,
            pool,
            mapped,
            threading.Lock(),
            threading.RLock(),
            threading.Condition(),
            threading.Event(),
            threading.current_thread(),
            multiprocessing.Lock(),
        )
    never_awaited.close()


def test_value_that_is_never_shared() -> None:
    """A value that belongs to one process is refused with parameter, type and cure."""
    for value in unshareable_values():
        with pytest.raises(UnshareableError) as caught:
            refuse_unshareable("score", "model", value)
        text = str(caught.value)
        assert text.startswith(
            f"score(): 'model' is a {type(value).__qualname__}, which is no value: "
        )


class OwnIterator:
    def __iter__(self):
        return self

    def __next__(self):
        return 1


@pytest.mark.parametrize(
    "value",
    [None, 3, {}, [1], np.zeros(3), io.BytesIO(b"ab"), OwnIterator(), len, iter([1]), range(3)],
    ids=lambda value: type(value).__name__,
)
def test_value_that_may_be_shared(value: Any) -> None:
    """Everything else is left to the codec."""
    refuse_unshareable("score", "model", value)


# --- checks of values --------------------------------------------------------------------------


class Movie(TypedDict):
    name: str


class Sized_(Protocol):
    def size(self) -> int: ...


@runtime_checkable
class HasSize(Protocol):
    def size(self) -> int: ...


class Model:
    def size(self):
        return 1


class Colour(enum.Enum):
    RED = 1


Float32 = npt.NDArray[np.float32]
Embedding = np.ndarray[tuple[int, Literal[512]], np.dtype[np.float32]]
F32 = np.zeros((3, 512), np.float32)
ANY_VALUE = object()


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (dict, {}),
        (dict[str, float], {1: "not looked at"}),
        (typing.Dict[str, int], {}),
        (Mapping[str, int], {}),
        (Sequence[int], [1]),
        (list | None, None),
        (Optional[list[int]], [1]),
        (int | str, "a"),
        (float, 3),
        (float, 3.5),
        (float, np.float64(3)),
        (complex, 3),
        (complex, 3.5),
        (Literal["a", 3], 3),
        (Literal[Colour.RED], Colour.RED),
        (None, None),
        (Any, ANY_VALUE),
        (object, ANY_VALUE),
        (Free, ANY_VALUE),
        (Sized_, ANY_VALUE),
        (HasSize, Model()),
        (Bound, {}),
        (Limited, "a"),
        (Named, {}),
        (Movie, {"name": 3}),
        (Callable[[int], int], len),
        (Callable, len),
        (type[int], int),
        (tuple[int, ...], ()),
        ("Model", Model()),
        ("Unknown", ANY_VALUE),
        ("Unknown | None", ANY_VALUE),
        ("dict | Unknown", ANY_VALUE),
        (Float32, F32),
        (Float32, F32.astype(">f4")),
        (npt.NDArray[Any], F32),
        (np.ndarray, F32),
        (npt.NDArray[np.floating], F32),
        (npt.NDArray[np.floating[Any]], F32),
        (npt.NDArray[np.int64], np.zeros(3, np.longlong)),
        (npt.NDArray[np.float32 | np.float64], F32),
        (npt.NDArray[float], np.zeros(3)),
        (npt.NDArray[np.str_], np.array(["a"])),
        (npt.NDArray[np.datetime64], np.array(["2020-01-01"], "M8[ns]")),
        (npt.NDArray[Free], F32),
        (npt.ArrayLike, [1, 2]),
        (Embedding, F32),
        (Embedding | None, None),
        (np.ndarray[tuple[Any, ...], np.dtype[np.float32]], F32),
        (np.ndarray[tuple[int, ...], np.dtype[np.float32]], F32),
        (np.ndarray[tuple[int, Literal[1, 512]], np.dtype[Any]], F32),
        (np.ndarray[tuple[()], np.dtype[Any]], np.array(3)),
        (np.ndarray[tuple[int, *tuple[int, ...]], np.dtype[Any]], F32),
        (np.ndarray[Any, np.dtype[np.float32]], F32),
        (np.memmap, "memmap"),
        (Float32, "memmap"),
        (np.ma.MaskedArray, np.ma.masked_array([1])),
    ],
    ids=str,
)
@pytest.mark.parametrize("mark", [Shared, CopyOnWrite])
def test_value_that_fits(mark: Any, type_: Any, value: Any, tmp_path: Any) -> None:
    """A value that its annotation allows passes."""
    if isinstance(value, str) and value == "memmap":
        value = np.memmap(tmp_path / "file", np.float32, "w+", shape=(3,))
    build_spec(with_annotation(mark[type_])).check_value("model", value)


@pytest.mark.parametrize(
    ("type_", "value", "said"),
    [
        (dict, [], "must be dict, got list"),
        (dict, None, "must be dict, got None"),
        (dict, 3, "must be dict, got 3"),
        (dict[str, float], [], "must be dict, got list"),
        (Mapping[str, int], [], "must be Mapping, got list"),
        (dict | None, [], "must be dict or None, got list"),
        (Optional[dict], [], "must be dict or None, got list"),
        (int | str | None, 1.5, "must be int, str or None, got 1.5"),
        (int, "3", "must be int, got '3'"),
        (float, "3", "must be float, got '3'"),
        (complex, "3", "must be complex, got '3'"),
        (Literal["a", "b"], "c", "must be 'a' or 'b', got 'c'"),
        (HasSize, 3, "must be HasSize, got 3"),
        (Bound, [], "must be dict, got list"),
        (Limited, [], "must be int or str, got list"),
        (Named, [], "must be dict, got list"),
        (Movie, [], "must be dict, got list"),
        (Callable[[int], int], [], "must be callable, got list"),
        (type[int], 3, "must be type, got 3"),
        ("Model", {}, "must be Model, got dict"),
        (
            "Model",
            type("Model", (), {})(),
            "must be Model, got an older class of that name; make the value again",
        ),
        (bytes, "x" * 1000, "must be bytes, got str"),
        (
            dict | list | None,
            type("list", (), {})(),
            "must be dict, list or None, got an older class of that name; make the value again",
        ),
        (np.ndarray, [1], "must be ndarray, got list"),
        (Float32, [1], "must be ndarray of float32, got list"),
        (
            Float32,
            np.zeros((2, 3)),
            "must be ndarray of float32, got ndarray of float64, shape (2, 3)",
        ),
        (
            Float32 | None,
            np.zeros(2),
            "must be ndarray of float32 or None, got ndarray of float64, shape (2,)",
        ),
        (
            npt.NDArray[np.integer],
            np.zeros(2),
            "must be ndarray of integer, got ndarray of float64, shape (2,)",
        ),
        (
            npt.NDArray[np.float32 | np.float16],
            np.zeros(2),
            "must be ndarray of float32 or float16, got ndarray of float64, shape (2,)",
        ),
        (
            Embedding,
            F32[:, :100],
            "must be ndarray of float32, shape (any, 512), got ndarray of float32, shape (3, 100)",
        ),
        (
            Embedding,
            F32[0],
            "must be ndarray of float32, shape (any, 512), got ndarray of float32, shape (512,)",
        ),
        (
            np.ndarray[tuple[Literal[1, 3]], np.dtype[Any]],
            np.zeros(2),
            "must be ndarray, shape (1|3,), got ndarray of float64, shape (2,)",
        ),
        (
            np.ndarray[tuple[()], np.dtype[Any]],
            np.zeros(2),
            "must be ndarray, shape (), got ndarray of float64, shape (2,)",
        ),
        (np.memmap, np.zeros(2), "must be memmap, got ndarray of float64, shape (2,)"),
        (Annotated[int, pydantic.Field(gt=0)], "a", "must be int, got 'a'"),
        (Annotated[int, pydantic.Field(gt=0)], -1, "should be greater than 0, got -1"),
        (Annotated[int, pydantic.Field(gt=0)] | None, -1, "should be greater than 0, got -1"),
        (pydantic.PositiveInt, -1, "should be greater than 0, got -1"),
        (Annotated[Any, pydantic.Field(gt=0)], -1, "should be greater than 0, got -1"),
        (
            Annotated[dict[str, int], pydantic.Field(min_length=1)],
            {},
            "should have at least 1 item after validation, not 0, got dict",
        ),
        (
            Annotated[dict | None, pydantic.Field(gt=0)],
            {},
            "has constraints that mean nothing for it, got dict",
        ),
    ],
    ids=str,
)
def test_value_that_does_not_fit(type_: Any, value: Any, said: Any) -> None:
    """A value that its annotation forbids is one line: what it must be and what it is."""
    spec = build_spec(with_annotation(Shared[type_]))
    with pytest.raises(ArgumentError) as caught:
        spec.check_value("model", value)
    assert f"f(): 'model' {said}." == str(caught.value)
    assert caught.value.__cause__ is None


def sums_to_one(value):
    if sum(value) != 1:
        raise ValueError("weights must sum\n to 1")
    return [0]


def test_own_validator_is_honoured_and_changes_nothing() -> None:
    """A validator of the user's refuses in its own words, and its result is not used."""
    spec = build_spec(
        with_annotation(Annotated[Shared[list], pydantic.AfterValidator(sums_to_one)])
    )
    value = [1]
    spec.check_value("model", value)
    assert [1] == value
    with pytest.raises(ArgumentError) as caught:
        spec.check_value("model", [2])
    assert "f(): 'model' is refused: weights must sum to 1, got list." == str(caught.value)


def test_default_always_fits() -> None:
    """The default may contradict the annotation, as in model: Shared[dict] = None."""

    def f(x, model: Shared[dict] = None): ...

    spec = build_spec(f)
    spec.check_value("model", None)
    with pytest.raises(ArgumentError, match="must be dict, got list"):
        spec.check_value("model", [])


def test_listed_parameter_is_checked_against_its_annotation() -> None:
    """A parameter shared by the list has its plain annotation checked."""

    def f(x, model: dict): ...

    with pytest.raises(ArgumentError, match=r"^f\(\): 'model' must be dict, got list\.$"):
        build_spec(f, shared=["model"]).check_value("model", [])


class CountedDict(dict):
    reads = 0

    def __getitem__(self, key):
        CountedDict.reads += 1
        return super().__getitem__(key)

    def __iter__(self):
        CountedDict.reads += 1
        return super().__iter__()

    def items(self):
        CountedDict.reads += 1
        return super().items()


@pytest.mark.parametrize("type_", [dict[str, float], Mapping[str, float], Movie, dict | list[int]])
def test_check_never_reads_the_contents(type_: Any) -> None:
    """A check looks at the outside of a value only."""
    spec = build_spec(with_annotation(Shared[type_]))
    spec.check_value("model", CountedDict(a=1))
    assert 0 == CountedDict.reads


def test_import_takes_neither_ray_nor_pydantic_models() -> None:
    """Decorating imports no ray, pandas or torch, and not the slow part of pydantic."""
    code = (
        "import sys, sharedtask.task.signature.spec, sharedtask.options\n"
        "def f(x, m: sharedtask.annotations.Shared[dict] = None, *, k: int = 3): ...\n"
        "sharedtask.task.signature.spec.build_spec(f); sharedtask.options.resolve({})\n"
        "slow = {'ray', 'pandas', 'torch', 'pydantic.main', 'asyncio', 'socket'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()
