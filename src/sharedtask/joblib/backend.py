"""The backend that joblib makes for each ``Parallel``: batches become calls of the library.

Parallel.dispatch -> submit(batch) -> Facade.submit -> workers -> callback -> Parallel
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import joblib
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from sharedtask import context
from sharedtask.backends import registry
from sharedtask.errors import OptionsError
from sharedtask.options import MAX_WORKERS, check_options, resolve
from sharedtask.recipes import Recipe
from sharedtask.task.calling import Facade, failed, when_done
from sharedtask.task.decorator import parallel
from sharedtask.task.task import parts_of

from . import files, naming, worker
from .batches import BatchContext
from .registering import NAME, is_default

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sharedtask.options import Options
    from sharedtask.task.futures import TaskFuture

_TARGET = parts_of(parallel(worker.run)).target

# Options that joblib or its user sets by another name.
_THEIR_WORDS = {
    "workers": "n_jobs",
    "chunksize": "batch_size",
    "buffersize": "pre_dispatch",
    "progress": "verbose",
    "desc": "verbose",
}
_NOT_HERE = {
    "journal": "joblib.Memory keeps results",
    "seed": "a function of joblib has no parameter annotated Rng",
}
# Arguments that joblib passes to every backend, unused by this one: nothing goes through a file,
# and joblib has handled the others itself.
_OF_JOBLIB = frozenset(
    ("temp_folder", "max_nbytes", "mmap_mode", "prefer", "require", "verbose", "context")
)
_INITARGS = "initargs"
_SHARED_FROM = 1 << 20  # joblib's own default of max_nbytes


class SharedTaskBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # no types
    """joblib's backend "sharedtask"; made by joblib.

    Args:
        nesting_level: Set by joblib.
        inner_max_num_threads: Threads of numerical libraries in each worker.
        **params: Options of the library, and ``initializer`` with ``initargs``, called once in each
            worker: the ``backend_params`` of ``joblib.parallel_config``.

    Raises:
        OptionsError: One of them is unknown, out of range, or decided by joblib.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **params: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._params = _checked(params)
        self._facade: Facade | None = None
        self._open: set[TaskFuture[Any]] = set()
        self._numbers = 0
        self.parallel: Any = None

    def __reduce__(self) -> Any:
        given = self.nesting_level, self.inner_max_num_threads, self._params
        return _rebuilt, (type(self), *given)

    # joblib has no types, and those inferred from its bodies are wrong.

    def effective_n_jobs(self, n_jobs: int | None) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """How many calls run at once: 1 within a task, whose worker has no workers of its own."""
        if n_jobs == 0:
            msg = "n_jobs == 0 in Parallel has no meaning"
            raise ValueError(msg)
        if n_jobs is None or context.a_task():
            return 1
        if n_jobs < 0:
            n_jobs = max(joblib.cpu_count() + 1 + n_jobs, 1)
        return min(n_jobs, MAX_WORKERS)

    def configure(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: Any = None,
        require: Any = None,
        **params: Any,
    ) -> int:
        """Called at the beginning of a ``Parallel``; see ``joblib.parallel.ParallelBackendBase``.

        Several of them may use one backend: each gets its own.
        """
        del prefer, require  # joblib's own to decide
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self._facade = self._facade_of(n_jobs, params)
        if self.parallel is None:
            own = _rebuilt(*self.__reduce__()[1])
            own.parallel = parallel
            raise FallbackToBackend(own)
        return n_jobs

    def _facade_of(self, n_jobs: int, params: Mapping[str, Any]) -> Facade:
        given = {name: value for name, value in params.items() if name not in _OF_JOBLIB}
        options = _with_initargs({**self._params, **_checked(given)})
        decided = resolve({**options, "workers": n_jobs})
        self._refuse_threads(decided)
        shared_from = _shared_from(params) if decided.captured == "share" else None
        return Facade(_TARGET, decided, shared_from, self.inner_max_num_threads)

    def _refuse_threads(self, options: Options) -> None:
        where = registry.of(options).name
        if self.inner_max_num_threads is not None and where != "process":
            msg = (
                f"inner_max_num_threads={self.inner_max_num_threads} is for workers of this"
                f" machine, and the calls run on backend={where!r}. Leave it out."
            )
            raise OptionsError(msg)

    def start_call(self) -> None:
        """Called at the beginning of each call of a ``Parallel``."""
        self._numbers = 0
        # joblib keeps calls there that were not sent because of an error, and would run them now.
        left = getattr(self.parallel, "_ready_batches", None)
        while left is not None and not left.empty():
            left.get()

    def compute_batch_size(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See ``joblib.parallel.AutoBatchingMixin``."""
        size: int = super().compute_batch_size()
        return size

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> Any:
        """Send a batch. An unpicklable one raises nothing here, as joblib would block."""
        first, self._numbers = self._numbers, self._numbers + len(func)
        future = self._sent(func, range(first, first + len(func)))
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        if callback is not None:
            when_done(future, callback)
        return future

    apply_async = submit  # the name before joblib 1.5

    def _sent(self, batch: Any, numbers: range) -> TaskFuture[Any]:
        facade, calls = self._facade, files.opened_for_writing(batch.items)
        assert facade is not None  # noqa: S101  made by configure()
        batch_context = BatchContext(batch._backend, batch._n_jobs, is_default())
        name = naming.name_of_all(calls)
        try:
            return facade.submit(name, numbers, numbers.start, calls, batch_context)
        except Exception as error:  # noqa: BLE001  pickling runs user code
            return failed(naming.with_culprit(error, calls, numbers))

    def retrieve_result_callback(self, out: TaskFuture[Any]) -> Any:
        """The results of a batch; raises its error."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Kill the running calls, whose results are not needed any more."""
        del ensure_ready  # the workers belong to the whole program
        for future in self._open.copy():
            future.kill()

    def terminate(self) -> None:
        """Called at the end of the ``Parallel``. The workers stay for the next one."""
        self.reset_batch_stats()


def _rebuilt(
    cls: type[SharedTaskBackend],
    nesting_level: int | None,
    threads: int | None,
    params: Mapping[str, Any],
) -> SharedTaskBackend:
    return cls(nesting_level, threads, **params)


# ------------------------------------------------------------------------------- parameters


def _checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the library's form, and ``initargs``.

    Raises:
        OptionsError: A name is unknown, or a value is out of range.
    """
    for name in params:
        if name in _THEIR_WORDS:
            msg = f"backend {NAME!r}: {name}= is {_THEIR_WORDS[name]}= of joblib."
            raise OptionsError(msg)
        if name in _NOT_HERE:
            msg = f"backend {NAME!r} has no {name}=: {_NOT_HERE[name]}."
            raise OptionsError(msg)
    options = {name: value for name, value in params.items() if name != _INITARGS}
    own = {_INITARGS: params[_INITARGS]} if _INITARGS in params else {}
    return {**check_options(options, f"backend {NAME!r}"), **own}


def _with_initargs(params: dict[str, Any]) -> dict[str, Any]:
    """The options, the initializer with its arguments."""
    args, recipe = tuple(params.pop(_INITARGS, ())), params.get("initializer")
    return {**params, "initializer": Recipe(recipe.function, args)} if recipe and args else params


def _shared_from(params: Mapping[str, Any]) -> int | None:
    """The size from which arrays are shared; None if tasks may write their arguments."""
    mode = params.get("mmap_mode", "r")
    if mode in ("r+", "w+"):
        msg = (
            f"backend {NAME!r}: with mmap_mode={mode!r} calls would write into a file of joblib's,"
            " and nothing goes through a file here. Have them return what they make, or pass an"
            " np.memmap of your own that is open for writing."
        )
        raise OptionsError(msg)
    if mode is None or mode == "c":
        return None
    size: int | None = params.get("max_nbytes", _SHARED_FROM)
    return size
