"""``multi_process``: a map in one call, for functions that are not decorated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from tempfile import mkdtemp
from types import MappingProxyType
from typing import Any, Concatenate, Literal, TypeAlias, TypeVar, overload

from sharedtask.annotations import Role
from sharedtask.errors import OptionsError
from sharedtask.habits import OTHER_SPELLINGS
from sharedtask.options import check_options, resolve
from sharedtask.system.tracebacks import SHORTENED, shorten
from sharedtask.task.signature.spec import TaskSpec
from sharedtask.text import did_you_mean, one_of

from . import result_files
from .decorator import define
from .direct_call import value_behind
from .plan import plan_map
from .task import BoundTask, Task, parts_of, remade, run_with

__all__ = ["multi_process"]

R = TypeVar("R")
J = TypeVar("J")
AnyTask: TypeAlias = Task[..., Any] | BoundTask[..., Any]
BackendName: TypeAlias = Literal["mp", "ray", "threadpool", "safe", "seq"]

_BACKENDS: Mapping[str, str] = MappingProxyType(
    {"mp": "process", "ray": "ray", "threadpool": "thread", "safe": "serial", "seq": "serial"}
)
_SHARING = ("mp", "ray")
_UNCOPIED = ("seq", "threadpool")
# Names of backends in the options of a task, and in other libraries.
_OTHER_BACKENDS: Mapping[str, str] = MappingProxyType(
    {
        "process": "mp",
        "processes": "mp",
        "multiprocessing": "mp",
        "thread": "threadpool",
        "threads": "threadpool",
        "serial": "seq",
        "sequential": "seq",
    }
)
# Keywords that are used here and not passed to the function.
WORDS = (
    "items",
    "inputs",
    "workers",
    "backend",
    "desc",
    "progress",
    "lazy_output",
    "shared_kwargs",
    "gpus",
)


@overload
def multi_process(
    func: Callable[..., Any],
    items: Iterable[Any] | None = None,
    *,
    lazy_output: Literal[True],
    **others: Any,
) -> list[str]: ...
@overload
def multi_process(
    func: Callable[Concatenate[J, ...], R],
    items: Iterable[J] | None = None,
    *,
    inputs: Iterable[J] | None = None,
    workers: int | None = None,
    backend: BackendName | None = None,
    desc: str | None = None,
    progress: bool = True,
    lazy_output: Literal[False] = False,
    shared_kwargs: Iterable[str] | None = None,
    gpus: float | None = None,
    **func_kwargs: Any,
) -> list[R]: ...
def multi_process(
    func: Callable[..., Any],
    items: Iterable[Any] | None = None,
    *,
    inputs: Iterable[Any] | None = None,
    workers: int | None = None,
    backend: str | None = None,
    desc: str | None = None,
    progress: bool = True,
    lazy_output: bool = False,
    shared_kwargs: Iterable[str] | None = None,
    gpus: float | None = None,
    **func_kwargs: Any,
) -> list[Any]:
    """Call ``func(item, **func_kwargs)`` for every item and return the results in order.

    ``parallel`` with ``map`` does the same and declares at the function what is shared. ``func``
    may be a task: its own options apply unless this call sets them.

    Args:
        func: Any function, lambdas and methods included; its first parameter gets the item.
        items: The values of that parameter, one after the other. Not a str or bytes.
        inputs: Another name for ``items``.
        workers: Number of items that run at once; all CPUs by default.
        backend: "mp": worker processes. "ray": tasks of Ray. "threadpool": threads of this process,
            in which ``func`` gets the caller's own objects, except for marked parameters.
            "safe": one after the other in this process, with the rules of the other backends: a
            parameter marked ``Shared`` is read-only. "seq": a plain loop in this process, in which
            ``func`` gets the caller's own objects. The default is that of any task: "mp", unless
            ``defaults()``, SHAREDTASK_BACKEND or an initialised Ray changes it.
        desc: Text before the progress bar.
        progress: Whether a bar is shown, on stderr.
        lazy_output: Return paths instead of results. Every result is pickled into a file by the
            worker that computed it: 000000.pkl for the first item, and so on, in a new folder
            "sharedtask-..." where ``tempfile`` creates its own (see ``TMPDIR``; on a cluster,
            all machines must see it). A file appears when it is complete. You delete the folder;
            after an error it is kept if it contains results, and a note on the error names it.
        shared_kwargs: Names among ``func_kwargs`` whose values are put into shared memory ("mp")
            or Ray's object store once, read-only, and found there again by later calls with the
            same objects. Everything else is copied with each chunk of items.
        gpus: With "ray", GPUs for each worker; below 1, that many share one.
        **func_kwargs: Further arguments of ``func``, the same for every item. If a
            parameter of ``func`` has the name of one above, set it with
            ``functools.partial(func, desc=...)``.

    Returns:
        One result per item; with ``lazy_output``, one path.

    Raises:
        OptionsError: An argument is missing, given twice or out of range, or ``shared_kwargs``
            names a parameter that ``func`` or ``func_kwargs`` lacks, or the backend shares nothing.
        DefinitionError: ``func`` cannot be a task, or a parameter cannot be shared.
        ArgumentError: ``func`` cannot be called with ``func_kwargs``.
        Exception: The exception that ``func`` raised, with a note that names the item.

    Examples:
        >>> import numpy as np
        >>> from sharedtask import multi_process
        >>> def score(row, model=None, scale=1):
        ...     weights = model["weights"]
        ...     return float(weights[row].sum() * scale)
        >>> model = {"weights": np.eye(3)}
        >>> multi_process(
        ...     score, items=range(3), shared_kwargs=["model"], model=model, scale=2, progress=False
        ... )
        [2.0, 2.0, 2.0]
    """
    try:
        _check_backend(backend)
        given = _one_input(items, inputs)
        names = _shared_names(shared_kwargs, func_kwargs)
        task = func if isinstance(func, (Task, BoundTask)) else define(func, {}, {})
        _check_keywords(parts_of(task).target.spec, names, func_kwargs)
        _check_sharing(backend, names)
        task = _with_shared(task, names)
        options = _options(workers, backend, desc if progress else None, progress)
        if gpus is not None:
            options["ray_options"] = _with_gpus(gpus, {**parts_of(task).explicit, **options})
        task = task.with_options(**check_options(options, "multi_process()"))
        run = _Map(task, given, func_kwargs)
        if backend in _UNCOPIED:
            run.copy_nothing()
        if backend == "seq":
            run.share_nothing()
        return run.to_files() if lazy_output else run.to_list()
    except SHORTENED as error:
        shorten(error)
        raise


# --- refusals -------------------------------------------------------------------------


def _check_backend(backend: object) -> None:
    if backend is None or (isinstance(backend, str) and backend in _BACKENDS):
        return
    word = _OTHER_BACKENDS.get(str(backend), str(backend))
    hint, known = did_you_mean(word, _BACKENDS), one_of(map(repr, _BACKENDS))
    raise OptionsError(f"multi_process(): backend must be {known}, got {backend!r}.{hint}")


def _one_input(items: Iterable[Any] | None, inputs: Iterable[Any] | None) -> Iterable[Any]:
    if items is not None and inputs is not None:
        msg = "multi_process(): items= and inputs= are two names for the same; give one of them."
        raise OptionsError(msg)
    given = inputs if items is None else items
    if given is None:
        msg = "multi_process(): there are no items; give items=, such as a list or a range."
        raise OptionsError(msg)
    return given


def _shared_names(shared_kwargs: object, func_kwargs: Mapping[str, Any]) -> list[str]:
    """The names in ``shared_kwargs``, each once, each with a value."""
    names = [] if shared_kwargs is None else _names_in(shared_kwargs)
    for name in names:
        if name not in func_kwargs:
            hint = did_you_mean(name, func_kwargs) or f" Add {name}=... to the call."
            msg = f"multi_process(): {name!r} in shared_kwargs={names} is not given.{hint}"
            raise OptionsError(msg)
    return names


def _names_in(given: object) -> list[str]:
    if isinstance(given, str):
        msg = (
            f"multi_process(): shared_kwargs={given!r} is one text, and a list of names is needed:"
            f" shared_kwargs=[{given!r}]."
        )
        raise OptionsError(msg)
    names: list[Any] = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(name, str) for name in names):
        msg = f"multi_process(): shared_kwargs must be a list of names, got {given!r}."
        raise OptionsError(msg)
    return list(dict.fromkeys(names))


def _check_keywords(spec: TaskSpec, names: list[str], func_kwargs: Mapping[str, Any]) -> None:
    """Refuse to share unknown parameters, and misspelt keywords of ours."""
    parameters = spec.signature.parameters
    unknown = [] if spec.accepts_kwargs else [n for n in func_kwargs if n not in parameters]
    for name in unknown:
        hint = did_you_mean(name, parameters)
        ours = did_you_mean(OTHER_SPELLINGS.get(name, name), WORDS, "{}=")
        if name in names:
            msg = f"multi_process(): {name!r} in shared_kwargs={names} is no parameter of"
            raise OptionsError(f"{msg} {spec.shown}.{hint}")
        if ours and not hint:
            msg = f"multi_process(): there is no {name}=, here or in {spec.shown}.{ours}"
            raise OptionsError(msg)


def _check_sharing(backend: str | None, names: list[str]) -> None:
    if names and backend not in (None, *_SHARING):
        msg = (
            f"multi_process(): shared_kwargs={names} needs a backend that shares,"
            f" {one_of(map(repr, _SHARING))}, and {backend!r} runs in this process."
            " Choose one of them, or leave shared_kwargs out."
        )
        raise OptionsError(msg)


def _with_gpus(gpus: Any, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Ray's options, those of the task included, for workers with this many GPUs."""
    # Ray's own rule: one GPU can be divided, several can not.
    if type(gpus) not in (int, float) or not (0 <= gpus <= 1 or gpus % 1 == 0 <= gpus):
        msg = f"multi_process(): gpus must be a whole number or a part of one GPU, got {gpus!r}."
        raise OptionsError(msg)
    options = resolve(explicit)
    if options.backend != "ray":
        msg = f"multi_process(): gpus={gpus} is for Ray, which hands GPUs out; say backend='ray'."
        raise OptionsError(msg)
    return {**(options.ray_options or {}), "num_gpus": gpus}


# --- the task --------------------------------------------------------------------------------


def _options(
    workers: object, backend: str | None, desc: object, progress: object
) -> dict[str, Any]:
    """The options of this call; a task's own options count for the rest."""
    options: dict[str, Any] = {"progress": progress}
    if workers is not None:
        options["workers"] = workers
    if backend is not None:
        options["backend"] = _BACKENDS[backend]
    if desc is not None or not progress:  # a description of the task would turn the bar on
        options["desc"] = desc
    return options


def _with_shared(task: AnyTask, names: list[str]) -> AnyTask:
    """The same task with these parameters shared as well."""
    roles = parts_of(task).target.spec.roles
    if all(roles.get(name) is Role.SHARED for name in names):
        return task

    def make(function: Any, lists: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        shared = list(dict.fromkeys((*lists.get("shared", ()), *names)))
        return define(function, {**lists, "shared": shared}, options)

    other: AnyTask = remade(task, make)
    return other


class _Map:
    """One map of a task, perhaps of another target than the task's own."""

    def __init__(self, task: AnyTask, items: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        self._parts = parts_of(task)
        self._items = items
        self._kwargs = kwargs
        self._changes: dict[str, Any] = {}  # of the target
        # All refusals come before the target changes and a folder is created.
        plan_map(self._parts.target, items, (), kwargs, resolve(self._parts.explicit))

    def _run(self, items: Iterable[Any]) -> list[Any]:
        target = replace(self._parts.target, **self._changes)
        return run_with(self._parts._replace(target=target)).map(items, **self._kwargs)

    def copy_nothing(self) -> None:
        """Call the function with the caller's own unmarked objects."""
        self._changes["uncopied"] = True

    def share_nothing(self) -> None:
        """Call the function with the caller's own objects."""
        self._changes["spec"] = replace(self._parts.target.spec, roles={})
        self._kwargs = {name: value_behind(value) for name, value in self._kwargs.items()}

    def to_list(self) -> list[Any]:
        """The results."""
        return self._run(self._items)

    def to_files(self) -> list[Any]:
        """The paths of the results; with ``return_exceptions`` exceptions are among them."""
        if resolve(self._parts.explicit).journal is not None:
            msg = (
                "multi_process(): lazy_output=True writes every result to a file of its own, and a "
                "journal would keep nothing but the paths. Use one of the two."
            )
            raise OptionsError(msg)
        target, folder = self._parts.target, mkdtemp(prefix="sharedtask-")
        saver = result_files.Saver(target.function, target.spec.name, folder, len(target.bound))
        self._changes["function"] = saver
        try:
            paths = self._run(result_files.numbered(self._items))
        except BaseException as error:
            result_files.name_the_item(error)
            result_files.clean_up(folder, error)
            raise
        for outcome in paths:
            result_files.name_the_item(outcome)
        if not paths:  # the caller does not get the name of a folder without files
            os.rmdir(folder)
        return paths
