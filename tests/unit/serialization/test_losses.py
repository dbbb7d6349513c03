"""What pickle leaves out of a value is carried, or refused, or told: never lost in silence.

Libraries that are not installed have stand-ins here, of the same names.
"""

import collections
import datetime as dt
import decimal
import fractions
import random
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import PosixPath
from typing import Any, ClassVar

import numpy as np
import pytest

import sharedtask
from sharedtask import (
    CopyOnWrite,
    IncompleteValueWarning,
    Shared,
    SharedTaskError,
    UnshareableError,
    explain,
    parallel,
    share,
)
from sharedtask.serialization import codec, missing
from sharedtask.serialization.losses import collected

pytestmark = pytest.mark.timeout(110)


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Nothing was told yet."""
    missing._warned.clear()


def through(value: Any) -> Any:
    payload = codec.encode_shared(value)
    return codec.decode(payload.head, [bytes(b) for b in payload.buffers])


# ------------------------------------------------------------------- classes derived from others


class Day(dt.date):
    note: Any


class Moment(dt.datetime):
    note: Any


class Ratio(fractions.Fraction):
    note: Any


class Price(decimal.Decimal):
    note: Any


class Place(PosixPath):
    note: Any


class Groups(collections.defaultdict[str, Any]):
    note: Any


class Counts(collections.Counter[str]):
    note: Any


class Dice(random.Random):
    note: Any


class Slotted(dt.date):
    __slots__ = ("note",)


class Queue(collections.deque[int]):
    note: Any


class Ordered(collections.OrderedDict[str, int]):
    note: Any


DERIVED: dict[str, Callable[[], Any]] = {
    "date": lambda: Day(2020, 1, 2),
    "datetime": lambda: Moment(2020, 1, 2),
    "Fraction": lambda: Ratio(1, 3),
    "Decimal": lambda: Price("1.50"),
    "Path": lambda: Place("/a/b"),
    "defaultdict": lambda: Groups(list, a=[1]),
    "Counter": lambda: Counts("aab"),
    "Random": lambda: Dice(3),
    "slots": lambda: Slotted(2020, 1, 2),
    "deque": lambda: Queue([1], 3),
    "OrderedDict": lambda: Ordered(a=1),
}


def noted_in(_x: int, values: Any) -> list[Any]:
    return [(type(each).__name__, each.note) for each in values]


@pytest.mark.parametrize("name", DERIVED)
def test_attributes_of_a_derived_class_are_carried(name: str) -> None:
    """A base that pickles itself knows nothing of what a derived class adds: it follows."""
    value = DERIVED[name]()
    value.note = {"unit": [1]}
    made = through(value)
    assert (type(value), {"unit": [1]}) == (type(made), made.note)
    if name != "Random":
        assert value == made


PANDAS: dict[str, Callable[[Any], Any]] = {
    "frame": lambda pd: pd.DataFrame({"a": [1, 2]}),
    "series": lambda pd: pd.Series([1, 2]),
    "index": lambda pd: pd.Index([1, 2], name="n"),
    "range": lambda pd: pd.RangeIndex(2, name="n"),
    "names": lambda pd: pd.Index(["a", "b"]),
    "several": lambda pd: pd.MultiIndex.from_tuples([(1, 2), (3, 4)], names=["a", "b"]),
    "times": lambda pd: pd.date_range("2020", periods=2),
    "lengths": lambda pd: pd.to_timedelta([1, 2]),
    "categories": lambda pd: pd.CategoricalIndex(["a", "b"]),
    "intervals": lambda pd: pd.IntervalIndex.from_breaks([0, 1, 2]),
    "periods": lambda pd: pd.period_range("2020", periods=2, freq="D"),
}


@pytest.mark.parametrize("name", PANDAS)
def test_attributes_set_on_frames_and_indexes_are_carried(name: str) -> None:
    """The pickles of pandas leave them out, for most kinds silently."""
    value = PANDAS[name](pytest.importorskip("pandas"))
    object.__setattr__(value, "note", {"unit": [1]})
    made = through(value)
    assert (type(value), {"unit": [1]}) == (type(made), made.note)
    assert value.equals(made)


def test_object_without_attributes_travels_as_before() -> None:
    """Nothing follows where there is nothing."""
    for name in DERIVED.keys() - {"Random"}:  # which has attributes
        assert b"complete" not in codec.encode(DERIVED[name]()).head


def test_attributes_arrive_on_every_backend(backend: Any) -> None:
    """Shared, unmarked, captured, in items and in results, wherever the tasks run."""
    values = [DERIVED[name]() for name in ("datetime", "Decimal", "defaultdict", "slots")]
    for each in values:
        each.note = "noted"
    expected = [noted_in(0, values)] * 2

    def shared(_x: int, values: Shared[Any]) -> Any:
        return noted_in(0, values)

    def own(_x: int, values: CopyOnWrite[Any]) -> Any:
        return noted_in(0, values)

    def captured(_x: int) -> Any:
        return noted_in(0, values)

    def item(values: Any) -> Any:
        return values

    options: Any = {"backend": backend, "chunksize": 1}
    for function in (shared, own, noted_in):
        assert expected == parallel(**options)(function).map(range(2), values=values)
    assert expected == parallel(**options)(captured).map(range(2))
    results = parallel(**options)(item).map([values, values])
    assert expected == [noted_in(0, result) for result in results]


class Reducible:
    """A base of the user that leaves out on purpose what its ``__reduce__`` does not name."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return type(self), ()


class OnPurpose(Reducible):
    def __init__(self) -> None:
        self.cache = [1]
        del self.cache

    cache: Any


def test_what_a_class_of_the_user_leaves_out_stays_out() -> None:
    """A ``__reduce__`` that the user has written is taken at its word."""
    value = OnPurpose()
    value.cache = [1]
    assert {} == vars(through(value))


def test_attribute_of_a_frame_is_carried() -> None:
    """What the user has set on a DataFrame or a Series; not what pandas keeps there."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0]})
    frame.attrs["unit"] = "m"
    for value in (frame, frame["a"]):
        object.__setattr__(value, "label", "train")
        object.__setattr__(value, "_private", "theirs")
        made = through(value)
        assert ("train", {"unit": "m"}) == (made.label, made.attrs)
        assert not hasattr(made, "_private")
        assert made.equals(value)


def test_attribute_of_a_frame_of_polars_is_carried() -> None:
    """A class derived from polars' frame has attributes of its own."""
    polars = pytest.importorskip("polars")

    labelled: Any = type("Labelled", (polars.DataFrame,), {})
    value = labelled({"a": [1, 2]})
    value.label = "train"
    made = through(value)
    assert ("Labelled", "train", [1, 2]) == (type(made).__name__, made.label, made["a"].to_list())


# ------------------------------------------------------------------------------- stand-ins


def module_of(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> types.ModuleType:
    """A module of this name, where none is installed."""
    made = types.ModuleType(name)
    vars(made).update(contents)
    for value in contents.values():
        if isinstance(value, type):
            value.__module__ = name
            value.__qualname__ = value.__name__
    parents = name.split(".")[:-1]
    for end in range(1, len(parents) + 1):
        parent = ".".join(parents[:end])
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, made)
    return made


class Mol:
    """As rdkit's: properties are in the binary form if they are asked for."""

    def __init__(self, binary: bytes) -> None:
        self.text, _, name = binary.partition(b"|")
        self.name = name or None

    def ToBinary(self, flags: int = 0) -> bytes:
        return self.text + (b"|" + self.name if flags == 7 and self.name else b"")

    def __reduce__(self) -> Any:
        return type(self), (self.ToBinary(),)


class RWMol(Mol):
    def __reduce__(self) -> Any:
        return type(self), (self.ToBinary(),)


class ChemicalReaction(Mol):
    pass


@pytest.mark.parametrize("cls", [Mol, RWMol, ChemicalReaction])
def test_properties_of_a_molecule_are_carried(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone, rdkit leaves properties out unless all are asked for."""
    all_ = types.SimpleNamespace(AllProps=7)
    home = "rdkit.Chem.rdChemReactions" if cls is ChemicalReaction else "rdkit.Chem.rdchem"
    module_of(monkeypatch, home, **{cls.__name__: type(cls.__name__, (cls,), {})})
    module_of(monkeypatch, "rdkit.Chem", PropertyPickleOptions=all_)
    made = vars(sys.modules[home])[cls.__name__](b"CCO|ethanol")
    assert b"ethanol" == through(made).name


class Word:
    def __init__(self, orth: int) -> None:
        self.orth, self.flags = orth, 0


class Vocab:
    """As spaCy's: words are made as they are asked for, their flags computed."""

    def __init__(self) -> None:
        self.words: dict[int, Word] = {}

    def __getitem__(self, orth: int) -> Word:
        return self.words.setdefault(orth, Word(orth))

    def __iter__(self) -> Any:
        return iter(self.words.values())

    def __reduce__(self) -> Any:
        return type(self), ()


def test_flags_of_words_are_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone, spaCy computes flags again, and what was set by hand would be lost."""
    module_of(monkeypatch, "spacy.vocab", Vocab=type("Vocab", (Vocab,), {}))
    vocab = vars(sys.modules["spacy.vocab"])["Vocab"]()
    vocab[1 << 63].flags = 1 << 63 | 5
    vocab[7].flags = 2
    made = through(vocab)
    assert {1 << 63: 1 << 63 | 5, 7: 2} == {word.orth: word.flags for word in made}


class Index:
    """As rtree's: what is pickled is how it was made, and not what is in it."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def get_size(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> Any:
        return {"entries": []}


def test_index_that_would_arrive_empty_is_refused(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of rtree loses its entries, so it is refused with the way to it and a cure."""
    module_of(monkeypatch, "rtree.index", Index=type("Index", (Index,), {}))
    index = vars(sys.modules["rtree.index"])["Index"]()
    assert 0 == through(index).get_size()
    index.entries.append((0, 0, 1, 1))

    def look(_x: int, model: Shared[Any]) -> int:
        return len(model)

    task = parallel(look).with_options(backend=backend)
    with pytest.raises(UnshareableError, match=r"model\['places'\].*build it in the task"):
        task.map(range(2), model={"places": index})


class Figure:
    """As matplotlib's: unpickling it makes it one of pyplot's, where it was one."""

    made: ClassVar[list[Any]] = []

    def __getstate__(self) -> Any:
        return {"title": "a", "_restore_to_pylab": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.pop("_restore_to_pylab", False):
            self.made.append(self)
        vars(self).update(state)


def test_copy_of_a_figure_is_none_of_pyplots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing a figure adds none to those of the caller; one that a task returns is added."""
    module_of(monkeypatch, "matplotlib.figure", Figure=type("Figure", (Figure,), {}))
    figure = vars(sys.modules["matplotlib.figure"])["Figure"]()
    assert "a" == through(figure).title
    assert [] == Figure.made
    codec.decode(codec.encode(figure, back=True).head)
    assert 1 == len(Figure.made)


# ------------------------------------------------------------------------------- torch


def doubled(gradient: Any) -> Any:
    return gradient * 2


def test_gradients_and_hooks_are_carried(backend: Any) -> None:
    """A module arrives with the gradients of its parameters, a tensor with its hooks."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    model(torch.ones(3)).sum().backward()
    leaf = torch.ones(3, requires_grad=True)
    leaf.register_hook(doubled)
    labelled = torch.nn.Parameter(torch.ones(2))
    labelled.label, labelled.grad = "a", torch.full((2,), 5.0)

    def look(_x: int, model: Shared[Any]) -> Any:
        layer, leaf, labelled = model
        (leaf.clone() * 3).sum().backward()
        gradients = [p.grad.tolist() for p in layer.parameters()]
        return gradients, leaf.grad.tolist(), labelled.label, labelled.grad.tolist()

    gradients = [p.grad.tolist() for p in model.parameters()]
    expected = gradients, [6.0] * 3, "a", [5.0, 5.0]
    task = parallel(look).with_options(backend=backend)
    assert [expected] == task.map([0], model=[model, leaf, labelled])
    assert leaf.grad is None


def test_gradient_of_a_sparse_tensor_is_carried() -> None:
    """A tensor that torch takes apart keeps its gradient too."""
    torch = pytest.importorskip("torch")
    sparse = torch.eye(3).to_sparse().requires_grad_()
    sparse.grad = torch.eye(3).to_sparse()
    assert [[1.0, 0.0, 0.0]] == through(sparse).grad.to_dense().tolist()[:1]


def test_graph_of_a_tensor_is_told_of(backend: Any) -> None:
    """A tensor that was computed with gradients arrives alone, and the caller is told where."""
    torch = pytest.importorskip("torch")
    graph = torch.ones(3, requires_grad=True) * 2

    def total(_x: int, model: Shared[Any]) -> float:
        return float(model["out"].detach().sum())

    task = parallel(total).with_options(backend=backend)
    with pytest.warns(IncompleteValueWarning, match=r"model\['out'\] \(Tensor\).*detach"):
        assert [6.0, 6.0] == task.map(range(2), model={"out": graph})
    task.map(range(2), model={"out": graph})  # told once


def test_graph_of_a_result_is_told_of() -> None:
    """Where warnings are errors, a result that loses its graph is an error at its item."""
    pytest.importorskip("torch")

    def compute(x: int) -> Any:
        import torch

        return torch.ones(2, requires_grad=True) * x if x == 1 else x

    task = parallel(compute).with_options(backend="process", return_exceptions=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = task.map(range(3))
    assert [0, 2] == [results[0], results[2]]
    assert isinstance(results[1], IncompleteValueWarning)
    assert "compute(): the result of item 1 (Tensor) arrives without the graph" in str(results[1])


# ------------------------------------------------------------------------------- told once


class Image:
    """As Pillow's image of several frames."""

    is_animated = True


@pytest.fixture
def animated(monkeypatch: pytest.MonkeyPatch) -> Any:
    whole = type("Image", (Image,), {})
    made = type("ImageFile", (whole,), {"__getstate__": lambda _: {}})
    module_of(monkeypatch, "PIL.Image", Image=whole)
    module_of(monkeypatch, "PIL.ImageFile", ImageFile=made)
    return made()


def through_shared(value: Any, backend: Any) -> None:
    parallel(shared=["v"])(lambda _, v: 0).with_options(backend=backend).map([1], v=[value])


def through_unmarked(value: Any, backend: Any) -> None:
    parallel(lambda _, v: 0).with_options(backend=backend).map([1], v=[value])


def through_items(value: Any, backend: Any) -> None:
    parallel(lambda _: 0).with_options(backend=backend).map([[value], [value]])


def through_submit(value: Any, backend: Any) -> None:
    parallel(lambda _: 0).with_options(backend=backend).submit([value]).result()


def through_imap(value: Any, backend: Any) -> None:
    list(parallel(shared=["v"])(lambda _, v: 0).with_options(backend=backend).imap([1], v=[value]))


LOCAL = ("serial", "thread")


@pytest.mark.parametrize(
    ("way", "place"),
    [
        (through_shared, r"v\[0\]"),
        (through_unmarked, r"v\[0\]"),
        (through_items, r"item 0\[0\]"),
        (through_submit, r"item 0\[0\]"),
        (through_imap, r"v\[0\]"),
    ],
)
@pytest.mark.parametrize("backend", LOCAL)
def test_loss_is_told_at_its_place(backend: str, way: Any, place: str, animated: Any) -> None:
    """However a value goes to the tasks, the warning names it, what it loses, and a cure."""
    match = rf"<lambda>\(\): {place} \(ImageFile\) arrives without its other frames. Pass its path"
    with pytest.warns(IncompleteValueWarning, match=match) as caught:
        way(animated, backend)
    assert [__file__] == [each.filename for each in caught]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        way(animated, backend)


def test_loss_of_a_handle_is_told(animated: Any) -> None:
    """``share`` tells it at once."""
    with pytest.warns(IncompleteValueWarning, match=r"share\(\): value\[0\] \(ImageFile\)"):
        share([animated]).close()


def test_loss_that_was_an_error_is_told_again(animated: Any) -> None:
    """Where warnings are errors each call raises, and nothing has run."""
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(IncompleteValueWarning):
                through_shared(animated, "serial")


def test_nothing_is_told_by_who_only_looks(animated: Any) -> None:
    """``explain`` does not send the value."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain([animated])
    with collected() as lost:
        codec.encode([animated])
    assert [animated] == [loss.part for loss in lost]


# ------------------------------------------------------------------------- random numbers

RNG = np.random.default_rng(0)

GENERATORS: dict[str, Callable[[], Any]] = {
    "numpy": lambda: np.random.default_rng(0),
    "numpy's old one": lambda: np.random.RandomState(0),
    "Python's": lambda: random.Random(0),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_as_an_argument_is_told_of(backend: Any, name: str) -> None:
    """Each chunk has a copy of it, and all copies give the same numbers."""

    def draw(_x: int, rng: Any) -> float:
        return float(rng.random())

    task = parallel(draw).with_options(backend=backend, chunksize=1)
    with pytest.warns(IncompleteValueWarning, match=r"draw\(\): rng .*same random.*annotated Rng"):
        assert 1 == len(set(task.map(range(4), rng=GENERATORS[name]())))


def test_generator_that_a_function_captures_is_told_of() -> None:
    """Each worker has a copy of the global."""

    def draw(_x: int) -> float:
        return float(RNG.random())

    task = parallel(draw).with_options(backend="process")
    with pytest.warns(IncompleteValueWarning, match=r"draw\(\): global RNG \(Generator\)"):
        task.map(range(2))


def test_generator_inside_a_model_is_none_of_our_business(backend: Any) -> None:
    """A fitted estimator keeps the generator that it was fitted with: no one draws from it."""

    def look(_x: int, model: Shared[Any]) -> int:
        return len(model)

    task = parallel(look).with_options(backend=backend)
    assert [1] == task.map([0], model={"random_state": np.random.RandomState(0)})


# ------------------------------------------------------------------- singletons of a script

SINGLETON = """
from sharedtask import CopyOnWrite, Shared, parallel, share

class Model:
    instance = None

    def __init__(self):
        self.size = 3

    def __reduce__(self):
        return "Model.instance"

Model.instance = Model()

def shared(x, m: Shared[object]):
    return m is Model.instance and m.size == 3

def own(x, m: CopyOnWrite[object]):
    return m is Model.instance

def unmarked(x, m):
    return m is Model.instance

def item(m):
    return m is Model.instance

def result(x):
    return Model.instance

m = Model.instance
for backend in ("serial", "thread", "process"):
    each = parallel(backend=backend, workers=2)
    assert all(each(task).map([1], m=m) == [True] for task in (shared, own, unmarked))
    assert each(item).map([m, m]) == [True, True]
    assert each(result).map([1]) == [m]
    with share(m) as handle:
        assert each(shared).map([1], m=handle) == [True]
"""


def test_singleton_that_says_its_name_is_the_one(run: Any) -> None:
    """An object that pickles as its name is the one of that name in every task."""
    assert "" == run(SINGLETON)


def test_warning_is_no_error_of_the_library() -> None:
    """It is a warning of the user's code, and can be made an error or silenced like one."""
    assert issubclass(sharedtask.IncompleteValueWarning, UserWarning)
    assert not issubclass(sharedtask.IncompleteValueWarning, SharedTaskError)
