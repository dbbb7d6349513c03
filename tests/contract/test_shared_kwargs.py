"""``multi_process``: what it shares, what it refuses, and results in files."""

import functools
import inspect
import io
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import with_long

from sharedtask import (
    ArgumentError,
    DefinitionError,
    OptionsError,
    SerializationError,
    Shared,
    TaskTimeoutError,
    WorkerDiedError,
    multi_process,
    parallel,
    share,
)
from sharedtask.options import Options, resolve
from sharedtask.store.cache import Lease, ShareCache
from sharedtask.task.multi_process import WORDS, _Map

pytestmark = pytest.mark.timeout(120)

SHARING = ("mp", "ray")
UNSHARING = ("seq", "threadpool", "safe")
ALL = (*SHARING, *UNSHARING)
# Called with names and values from parameters, which no type checker can follow.
call: Callable[..., Any] = multi_process
quiet: Callable[..., Any] = functools.partial(multi_process, progress=False)


@pytest.fixture(params=SHARING)
def sharing(request: pytest.FixtureRequest) -> str:
    """Every backend that shares."""
    name: str = request.param
    return name


@pytest.fixture(params=ALL)
def any_backend(request: pytest.FixtureRequest) -> str:
    """Every backend."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``tempfile`` makes folders."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """Every value that a call looks up in a cache, and whether it was found there."""
    seen: list[tuple[Any, bool]] = []
    lease = ShareCache.lease

    def watched(cache: ShareCache, value: Any, **options: Any) -> Lease:
        found = lease(cache, value, **options)
        seen.append((value, found.hit))
        return found

    monkeypatch.setattr(ShareCache, "lease", watched)
    return seen


def hits(leases: list[tuple[Any, bool]], value: Any) -> list[bool]:
    return [hit for seen, hit in leases if seen is value]


# ----------------------------------------------------------------------- functions that are mapped


def process_item(item_id: int, model: Any = None) -> Any:
    return model["weights"][item_id % 100, 0] + model["bias"][0]


def process_func(item: int, model: Any = None, lookup: Any = None, config: Any = None) -> Any:
    near = lookup[item % 1000, 0] * model["weights"][item % 500, 0]
    return bool(near > config["threshold"])


def classify_image(img_id: int, model: Any = None, config: Any = None) -> int:
    features = model["weights"][img_id % 100]
    return 1 if features.mean() > config["threshold"] else 0


def any_kwargs(item: int, **kwargs: Any) -> Any:
    scaled = item * kwargs.get("config", {}).get("multiplier", 1)
    return scaled + kwargs["model"]["bias"] if "model" in kwargs else scaled


def is_writeable(item: int, model: Any) -> Any:
    return model.flags.writeable


def double(x: int) -> int:
    return 2 * x


def fail_on_two(x: int) -> int:
    if x == 2:
        raise KeyError("two")
    return x


def model_of(rows: int, columns: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"weights": rng.normal(size=(rows, columns)), "bias": np.array([1.5]), "name": "model"}


# ------------------------------------------------------------------------------- calls that work


def test_one_shared_model(sharing: str) -> None:
    """A model in ``shared_kwargs`` gives every item the result of an ordinary call."""
    large_model = model_of(1000, 1000)
    results = call(
        process_item,
        items=range(100),
        workers=4,
        backend=sharing,
        shared_kwargs=["model"],
        model=large_model,
    )
    assert [process_item(i, large_model) for i in range(100)] == results


def test_several_shared_objects(sharing: str) -> None:
    """Two objects are shared beside one that is not; the items stand by position."""
    model, table = model_of(500, 500), np.random.default_rng(1).normal(size=(1000, 100))
    config = {"threshold": 0.5}
    results = quiet(
        process_func,
        list(range(50)),
        workers=4,
        backend=sharing,
        shared_kwargs=["model", "lookup"],
        model=model,
        lookup=table,
        config=config,
    )
    assert [process_func(i, model, table, config) for i in range(50)] == results


def test_from_end_to_end(sharing: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A classification with eight workers and a text beside the bar."""
    model, config = model_of(1000, 512), {"threshold": 0.0, "batch_size": 32}
    results = call(
        classify_image,
        items=range(1000),
        workers=8,
        backend=sharing,
        shared_kwargs=["model"],
        model=model,
        config=config,
        desc="Classifying images",
    )
    assert [classify_image(i, model, config) for i in range(1000)] == results
    assert "Classifying images: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model", "reference", "embeddings"])
def test_backend_is_not_needed_to_share(
    name: str, leases: list[tuple[Any, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a backend, shared arguments go to worker processes and are shared there."""
    monkeypatch.delenv("SHAREDTASK_BACKEND", raising=False)
    namespace: dict[str, Any] = {}
    exec(f"def use(x, {name}): return float({name}[x]), {name}.flags.writeable", namespace)
    value = np.arange(1000.0)
    results = quiet(namespace["use"], items=[1, 2], shared_kwargs=[name], **{name: value})
    assert [(1.0, False), (2.0, False)] == results
    assert [False] == hits(leases, value)


def test_second_call_finds_the_value_shared(sharing: str, leases: list[tuple[Any, bool]]) -> None:
    """The same object is put into shared memory once, whichever call asks for it."""
    model = model_of(100, 1000)
    for _ in range(2):
        quiet(process_item, range(8), backend=sharing, shared_kwargs=["model"], model=model)
    quiet(any_kwargs, range(8), backend=sharing, shared_kwargs=["model"], model=model)
    assert [False, True, True] == hits(leases, model)


def test_changed_value_is_shared_anew(sharing: str) -> None:
    """What was changed in place since the last call is never served stale."""
    model = model_of(100, 1000)
    for bias in (1.0, 2.0):
        model["bias"][0] = bias
        got = quiet(process_item, [0], backend=sharing, shared_kwargs=["model"], model=model)
        assert [model["weights"][0, 0] + bias] == got


def test_unshared_value_is_not_published(sharing: str, leases: list[tuple[Any, bool]]) -> None:
    """An argument that is not in ``shared_kwargs`` is copied, and is writable."""
    model = np.zeros(1000)
    assert [True, True] == quiet(is_writeable, range(2), backend=sharing, model=model)
    assert [] == hits(leases, model)


def test_shared_arrays_are_read_only(sharing: str) -> None:
    """A shared array cannot be written."""
    shared = {"shared_kwargs": ["model"], "model": np.zeros(1000)}
    assert [False, False] == quiet(is_writeable, range(2), backend=sharing, **shared)


def test_function_with_any_kwargs(sharing: str) -> None:
    """A function with ``**kwargs`` takes and shares any name."""
    got = quiet(
        any_kwargs,
        range(5),
        backend=sharing,
        shared_kwargs=["model"],
        model={"bias": 10, "weights": np.ones(100)},
        config={"multiplier": 3},
    )
    assert [10, 13, 16, 19, 22] == got


def test_handle_is_shared(sharing: str) -> None:
    """A value shared by hand stands where the value would."""
    model = model_of(100, 10)
    with share(model) as handle:
        got = quiet(process_item, [3], backend=sharing, shared_kwargs=["model"], model=handle)
    assert [process_item(3, model)] == got


class Scorer:
    """Something with methods."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def plain(self, row: int, table: Any = None) -> int:
        return self.factor * int(table[row])

    @parallel(workers=2)
    def task(self, row: int, table: Any = None) -> int:
        return self.factor * int(table[row])

    @parallel(shared=["self"])
    def shared_self(self, row: int, table: Any = None) -> int:
        return self.factor * int(table[row])


@parallel
def annotated(row: int, table: Shared[Any]) -> tuple[int, bool]:
    return int(table[row]), table.flags.writeable


@parallel(return_exceptions=True, desc="its own text")
def forgiving(x: int, table: Any = None) -> int:
    return fail_on_two(x)


def times(factor: int) -> Callable[..., int]:
    return lambda i, table: factor * int(table[i])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "lambda": lambda thing, table=None: 3 * int(table[thing]),
    "closure": times(3),
    "partial": functools.partial(lambda a, b, table: b * int(table[a]), b=3),
    "positional-only": lambda i, /, table: 3 * int(table[i]),
    "keyword-only": lambda i, *, table: 3 * int(table[i]),
    "method": Scorer(3).plain,
    "task": parallel(lambda i, table: 3 * int(table[i])),
    "task that shares": parallel(shared=["table"])(lambda i, table: 3 * int(table[i])),
    "method of a task": Scorer(3).task,
    "method that shares its object": Scorer(3).shared_self,
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_any_function_is_mapped(kind: str, any_backend: str) -> None:
    """Whatever takes an item first can be given, and writes its results to files as well."""
    table = np.arange(10.0)
    words: dict[str, Any] = {"backend": any_backend, "workers": 2, "table": table}
    if any_backend in SHARING:
        words["shared_kwargs"] = ["table"]
    assert [0, 3, 6] == quiet(FUNCTIONS[kind], range(3), **words)
    assert [0, 3, 6] == contents(quiet(FUNCTIONS[kind], range(3), lazy_output=True, **words))


def test_parameter_named_like_one_of_ours_is_fixed_beforehand(any_backend: str) -> None:
    """A function's own ``desc`` or ``workers`` reaches it through ``functools.partial``."""
    func = functools.partial(lambda x, desc, workers: f"{x} {desc} {workers}", desc="a", workers=7)
    assert ["1 a 7"] == quiet(func, [1], backend=any_backend, workers=2, desc="b")


SCRIPT = """
import pickle, sys, tempfile
import numpy as np
from sharedtask import multi_process
class Result:
    def __init__(self, value): self.value = value
def work(x, table): return Result(float(table[x]))
words = dict(backend={backend!r}, shared_kwargs=["table"], table=np.arange(9.0), progress=False)
print([type(r) is Result and r.value for r in multi_process(work, [2, 5], **words)])
tempfile.tempdir = sys.argv[1]
for path in multi_process(work, [2, 5], lazy_output=True, **words):
    with open(path, "rb") as file: result = pickle.load(file)
    print(type(result) is Result, result.value)
"""


@pytest.mark.parametrize("sharing", with_long(SHARING, "ray"), indirect=True)
def test_function_of_the_main_script(sharing: str, run: Callable[..., str], folders: Path) -> None:
    """Functions and classes of a script go to the workers and back, in files too."""
    printed = run(SCRIPT.format(backend=sharing), folders).split("\n")
    assert ["[2.0, 5.0]", "True 2.0", "True 5.0", ""] == printed


# ------------------------------------------------------------------------------- tasks as function


def test_task_keeps_what_the_call_does_not_say(sharing: str) -> None:
    """Options of a task hold where ``multi_process`` says nothing."""
    for extra in ({}, {"shared_kwargs": ["table"], "table": np.zeros(9)}):
        results = quiet(forgiving, range(4), backend=sharing, **extra)
        assert [0, 1, KeyError, 3] == [type(r) if isinstance(r, KeyError) else r for r in results]


def test_task_counts_its_shared_values() -> None:
    """A task that is given here counts in its own ``cache_info``, other parameters included."""
    annotated.cache_clear()
    table = np.arange(1000)
    for _ in range(2):
        assert [(4, False)] == quiet(annotated, [4], table=table, shared_kwargs=["table"])
    assert (1, 1) == annotated.cache_info()[:2]
    task = parallel(is_writeable)
    assert [False] == quiet(task, [0], shared_kwargs=["model"], model=table)
    assert (1, 0) == task.cache_info()[:2]


def test_task_of_another_backend_may_share() -> None:
    """Only a backend that is named here refuses; a task's own follows its own rules."""
    task = parallel(backend="serial")(is_writeable)
    assert [False] == quiet(task, [0], shared_kwargs=["model"], model=np.zeros(9))


# ------------------------------------------------------------------------------------- refusals


def refused(**words: Any) -> str:
    with pytest.raises(ValueError) as caught:
        quiet(**{"func": process_item, "items": [1, 2, 3], **words})
    assert isinstance(caught.value, (OptionsError, DefinitionError))
    return str(caught.value)


DATA = np.zeros(3)
MISTAKES = [
    ({"shared_kwargs": ["large_array"]}, ["'large_array'", "not given", "large_array="]),
    ({"shared_kwargs": ["modle"], "model": DATA}, ["'modle'", "Did you mean 'model'?"]),
    (
        {"shared_kwargs": ["invalid"], "invalid": DATA},
        ["'invalid'", "process_item(item_id: "],
    ),
    ({"shared_kwargs": ["modle"], "modle": DATA}, ["'modle'", "Did you mean 'model'?"]),
    ({"shared_kwargs": "model", "model": DATA}, ["'model'", "shared_kwargs=['model']"]),
    ({"shared_kwargs": [3], "model": DATA}, ["[3]", "list of names"]),
    ({"shared_kwargs": 3, "model": DATA}, ["got 3", "list of names"]),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES)
@pytest.mark.parametrize("backend", [None, *ALL])
def test_wrong_names_are_refused(words: dict[str, Any], says: list[str], backend: Any) -> None:
    """A name that is not given, or is no parameter, is ValueError, and the text names it."""
    text = refused(backend=backend, **words)
    assert [] == [part for part in says if part not in text]


def test_item_is_not_shared(sharing: str) -> None:
    """The parameter that takes the item differs in each call."""
    text = refused(backend=sharing, shared_kwargs=["item_id"], item_id=1)
    assert "'item_id' takes the item" in text


@pytest.mark.parametrize("backend", UNSHARING)
def test_backend_without_sharing_is_refused(backend: str) -> None:
    """Backends in this process take no ``shared_kwargs``; the text says which do."""
    text = refused(backend=backend, shared_kwargs=["model"], model=DATA)
    assert repr(backend) in text
    assert "'mp' or 'ray'" in text
    assert [0] == quiet(lambda x: x, [0], backend=backend, shared_kwargs=[])


@pytest.mark.parametrize("backend", ["fastcore", "process", "MP", "", 3])
def test_unknown_backend_is_refused(backend: Any) -> None:
    """The text lists the backends there are."""
    text = refused(backend=backend)
    assert "'mp', 'ray', 'threadpool', 'safe' or 'seq'" in text
    assert repr(backend) in text


@pytest.mark.parametrize(
    ("given", "meant"),
    [("process", "mp"), ("threads", "threadpool"), ("serial", "seq"), ("thredpool", "threadpool")],
)
def test_near_backend_is_suggested(given: str, meant: str) -> None:
    """Another word for a backend, and a misspelt one, lead to the right one."""
    assert f"Did you mean {meant!r}?" in refused(backend=given)


def test_items_are_given_once() -> None:
    """``items`` and ``inputs`` are one argument, and it is needed."""
    assert [2, 4] == quiet(double, inputs=[1, 2], backend="seq")
    assert [] == quiet(double, [])
    assert "items= and inputs=" in refused(inputs=[1])
    assert "items=" in refused(items=None)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("items", ["text", 3])
def test_no_collection_is_refused(backend: str, items: Any, folders: Path) -> None:
    """A text or a number is no collection of items, also where the items are numbered."""
    with pytest.raises(ArgumentError, match="items"):
        quiet(double, items, backend=backend, lazy_output=True)
    assert [] == list(folders.iterdir())


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("n_jobs", "workers"),
        ("worker", "workers"),
        ("num_gpus", "gpus"),
        ("share_kwargs", "shared"),
    ],
)
def test_misspelt_word_is_refused(word: str, meant: str) -> None:
    """A keyword that is nearly one of ours is not passed on silently."""
    assert f"Did you mean {meant}" in refused(**{word: 1})


@pytest.mark.parametrize("backend", ALL)
def test_wrong_arguments_of_the_function_are_refused(backend: str) -> None:
    """The function's own arguments are checked before anything runs."""
    with pytest.raises(ArgumentError, match="Did you mean 'model'"):
        quiet(process_item, [1], backend=backend, mdoel=1)
    with pytest.raises(ArgumentError, match="missing a required argument: 'model'"):
        quiet(is_writeable, [1], backend=backend)


@pytest.mark.parametrize("words", [{"workers": 0}, {"progress": 3}, {"desc": 3, "progress": True}])
def test_option_out_of_range_is_refused(words: dict[str, Any]) -> None:
    """Options are checked as those of a task."""
    assert f"multi_process(): {next(iter(words))} must be" in refused(**words)


@pytest.mark.parametrize("func", [3, int, fail_on_two.__code__])
def test_what_is_no_function_is_refused(func: Any) -> None:
    """What cannot be a task is refused as a decorator would."""
    assert refused(func=func)


def test_words_are_those_of_the_signature() -> None:
    """Suggestions know every keyword that is taken here."""
    names = [*inspect.signature(multi_process).parameters]
    assert ["func", *WORDS, "func_kwargs"] == names


# ----------------------------------------------------------------------------------------- GPUs


@pytest.mark.parametrize("backend", [None, "mp", *UNSHARING])
def test_gpus_are_for_ray(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs without Ray are refused."""
    monkeypatch.delenv("SHAREDTASK_BACKEND", raising=False)
    assert "'ray'" in refused(backend=backend, gpus=1)


@pytest.mark.parametrize("gpus", [-1, 1.5, float("nan"), float("inf"), True, "1"])
def test_impossible_number_of_gpus_is_refused(gpus: Any) -> None:
    """Whole GPUs, or a part of one."""
    assert repr(gpus) in refused(backend="ray", gpus=gpus)


@pytest.mark.parametrize("gpus", [0, 0.25, 1, 2.0])
def test_gpus_become_an_option_of_ray(gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is in ``ray_options`` beside what a task has there."""
    asked: list[Options] = []

    def run_nothing(run: Any) -> list[Any]:
        asked.append(resolve(run._parts.explicit))
        return []

    monkeypatch.setattr(_Map, "to_list", run_nothing)
    task = parallel(backend="ray", ray_options={"num_cpus": 2, "num_gpus": 8})(double)
    quiet(task, [1], gpus=gpus)
    quiet(double, [1], backend="ray", gpus=gpus)
    assert [{"num_cpus": 2, "num_gpus": gpus}, {"num_gpus": gpus}] == [o.ray_options for o in asked]


@pytest.mark.parametrize("backend", ["ray"])
def test_no_gpu_is_needed_for_none(backend: str) -> None:
    """A task that asks Ray for no GPU runs on a machine without."""
    assert [2] == quiet(double, [1], backend=backend, gpus=0)


# -------------------------------------------------------------------------- backends and progress


def test_sequence_gets_the_very_objects() -> None:
    """The plain loop calls the function with what was given, marked as shared or not."""
    table = np.zeros(3)
    seen: list[Any] = []
    quiet(lambda x, table: seen.append(table), [1], backend="seq", table=table)
    assert table is seen[0]
    assert [(0, True)] == quiet(annotated, [0], backend="seq", table=table)
    with share(table) as handle:
        assert [(0, False)] == quiet(annotated, [0], backend="seq", table=handle)


def test_safe_keeps_the_rules_of_sharing() -> None:
    """The safe backend runs here, and what a function marks as shared is read-only."""
    assert [(0, False)] == quiet(annotated, [0], backend="safe", table=np.zeros(3))


def test_where_each_backend_runs(any_backend: str) -> None:
    """Those that share run in other processes, the thread pool in other threads, the rest here."""
    [(pid, thread)] = quiet(
        lambda x: (os.getpid(), threading.get_ident()), [1], backend=any_backend
    )
    assert (any_backend not in SHARING) == (pid == os.getpid())
    here = pid == os.getpid() and thread == threading.get_ident()
    assert (any_backend in ("seq", "safe")) == here


def test_environment_decides_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that names no backend can be run in one process from outside."""
    monkeypatch.setenv("SHAREDTASK_BACKEND", "serial")
    assert [os.getpid()] == quiet(lambda x: os.getpid(), [1])
    assert [False] == quiet(is_writeable, [1], shared_kwargs=["model"], model=np.zeros(3))


def test_error_of_an_item_is_raised_as_itself(any_backend: str) -> None:
    """The error of the first item that fails, with a note that names the item."""
    with pytest.raises(KeyError, match="two") as caught:
        quiet(fail_on_two, range(8), backend=any_backend)
    assert "in fail_on_two(), item 2" in caught.value.__notes__


@pytest.mark.parametrize(
    ("words", "shows"),
    [({}, True), ({"desc": "now"}, True), ({"progress": False, "desc": "now"}, False)],
)
def test_bar_is_shown_unless_it_is_turned_off(
    words: dict[str, Any], shows: bool, any_backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar stands on stderr; without progress there is none, whatever texts there are."""
    call(double, range(3), backend=any_backend, **words)
    err = capsys.readouterr().err
    assert shows == ("3/3" in err)
    assert (shows and "desc" in words) == ("now" in err)


def test_text_of_a_task_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """A task's own text stands beside the bar, where there is one."""
    multi_process(forgiving, range(3), backend="seq")
    assert "its own text" in capsys.readouterr().err
    multi_process(forgiving, range(3), backend="seq", progress=False)
    assert "" == capsys.readouterr().err


# ------------------------------------------------------------------------------ results in files


def contents(paths: list[str]) -> list[Any]:
    return [pickle.loads(Path(path).read_bytes()) for path in paths]


def big(x: int, table: Any = None) -> Any:
    return np.full(1000, x) if table is None else table[x]


def unpicklable(x: str) -> Any:
    return {"lock": threading.Lock()} if x == "b" else x


def unpicklable_file(x: int) -> Any:
    with open(os.devnull) as file:
        return file


def die(x: str) -> str:
    if x == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_results_are_files_in_the_order_of_the_items(any_backend: str, folders: Path) -> None:
    """Every item has a file named after its place, all in one new folder, and no others."""
    paths = quiet(big, iter(range(12)), backend=any_backend, lazy_output=True)
    [folder] = folders.iterdir()
    assert folder.name.startswith("sharedtask-")
    assert [str(folder / f"{i:06}.pkl") for i in range(12)] == paths
    assert sorted(paths) == sorted(map(str, folder.iterdir()))
    assert all(np.array_equal(np.full(1000, i), got) for i, got in enumerate(contents(paths)))
    assert all(got.flags.writeable for got in contents(paths))


def test_results_do_not_pass_through_the_parent(sharing: str) -> None:
    """The worker writes the file."""
    paths = quiet(lambda x: os.getpid(), range(3), backend=sharing, lazy_output=True)
    assert os.getpid() not in contents(paths)


def test_every_call_has_its_own_folder() -> None:
    """A second call overwrites nothing."""
    paths = [quiet(double, [i], backend="seq", lazy_output=True)[0] for i in range(2)]
    assert [0, 2] == contents(paths)


def test_shared_values_reach_functions_that_write_files(
    sharing: str, leases: list[tuple[Any, bool]]
) -> None:
    """Sharing is the same with results in files, and the cache too."""
    table = np.arange(1000.0)
    words = {"backend": sharing, "shared_kwargs": ["table"], "table": table, "lazy_output": True}
    for _ in range(2):
        assert [5.0, 7.0] == contents(quiet(big, [5, 7], **words))
    assert [False, True] == hits(leases, table)


def test_result_that_cannot_be_pickled_is_named(any_backend: str, folders: Path) -> None:
    """The error says what in the result is to blame; no half-written file is left."""
    with pytest.raises(SerializationError, match="cannot be pickled") as caught:
        quiet(unpicklable, ["a", "b"], backend=any_backend, workers=1, lazy_output=True)
    assert "result['lock'] is a _thread.lock" in str(caught.value)
    assert "in unpicklable(), item 1" in caught.value.__notes__
    assert ["000000.pkl"] == [path.name for path in folders.glob("*/*")]


def test_open_file_is_no_result() -> None:
    """A file is refused, as it is without files; its contents are not taken for it."""
    with pytest.raises(SerializationError, match=os.devnull):
        quiet(unpicklable_file, [1], backend="seq", lazy_output=True)


def test_error_says_where_the_results_are(any_backend: str, folders: Path) -> None:
    """What was finished before an error is kept, and a note names the folder."""
    with pytest.raises(KeyError) as caught:
        quiet(fail_on_two, range(3), backend=any_backend, workers=1, lazy_output=True)
    [folder] = folders.iterdir()
    assert f"The results so far are in {folder}" in caught.value.__notes__
    assert [0, 1] == contents([str(path) for path in sorted(folder.iterdir())])


def test_empty_folder_is_taken_away(any_backend: str, folders: Path) -> None:
    """Where the first item fails, nothing is left behind."""
    with pytest.raises(KeyError):
        quiet(fail_on_two, [2], backend=any_backend, lazy_output=True)
    assert [] == list(folders.iterdir())


def test_exceptions_stand_among_the_paths(any_backend: str) -> None:
    """A task that returns exceptions has them at their places."""
    results = quiet(forgiving, range(4), backend=any_backend, lazy_output=True)
    assert isinstance(results[2], KeyError)
    assert [0, 1, 3] == contents([*results[:2], results[3]])


def test_dead_worker_names_the_item_itself(sharing: str) -> None:
    """The numbers that the items get on their way do not show in errors."""
    with pytest.raises(WorkerDiedError) as caught:
        quiet(die, ["a", "b", "c", "d"], backend=sharing, lazy_output=True)
    assert (2, "c") == (caught.value.index, caught.value.item)
    assert "c" == pickle.loads(pickle.dumps(caught.value)).item
    results = quiet(parallel(return_exceptions=True)(die), ["c"], backend=sharing, lazy_output=True)
    assert isinstance(results[0], WorkerDiedError)
    assert "c" == results[0].item


def test_late_item_is_named_itself() -> None:
    """So do they not in a timeout."""
    slow = parallel(timeout=0.05)(lambda x: threading.Event().wait(0.2))
    with pytest.raises(TaskTimeoutError) as caught:
        quiet(slow, ["a"], backend="safe", lazy_output=True)
    assert "a" == caught.value.item


def test_full_disk_is_an_os_error(monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    """A file that cannot be written is not mistaken for a result that cannot be pickled."""

    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda *_: Full())
    with pytest.raises(OSError, match="No space left"):
        quiet(double, [1], backend="seq", lazy_output=True)
    assert [] == list(folders.iterdir())


def test_items_without_number_stay_uncounted() -> None:
    """An endless input is not read ahead of the work."""
    taken: list[int] = []

    def feed() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i
        sys.exit("read to its end")

    with pytest.raises(KeyError):
        quiet(fail_on_two, feed(), backend="seq", lazy_output=True)
    assert 1000 > len(taken)
