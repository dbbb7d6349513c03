"""What users of other libraries type by habit, and what it is called here."""

import sys

__all__ = ["OTHER_BACKENDS", "OTHER_NAMES", "OTHER_SPELLINGS", "unknown_name"]

# Names of the same option in joblib, concurrent.futures, torch, Ray, multiprocessing,
# mpire and others.
OTHER_SPELLINGS: dict[str, str] = {
    "n_jobs": "workers",
    "max_workers": "workers",
    "num_workers": "workers",
    "num_cpus": "workers",
    "processes": "workers",
    "batch_size": "chunksize",
    "chunk_size": "chunksize",
    "pre_dispatch": "buffersize",
    "max_tasks_active": "buffersize",
    "max_retries": "retries",
    "maxtasksperchild": "tasks_per_worker",
    "max_tasks_per_child": "tasks_per_worker",
    "worker_lifespan": "tasks_per_worker",
    "initargs": "initializer",
    "worker_init": "initializer",
    "worker_init_fn": "initializer",
    "random_state": "seed",
    "rng": "seed",
    "task_timeout": "timeout",
    "timeout_seconds": "timeout",
    "checkpoint": "journal",
    "resume": "journal",
}

# Values of ``backend`` in joblib, Dask and others.
OTHER_BACKENDS: dict[str, str] = {
    "mp": "process",
    "multiprocessing": "process",
    "processes": "process",
    "spawn": "process",
    "fork": "process",
    "forkserver": "process",
    "threading": "thread",
    "threadpool": "thread",
    "threads": "thread",
    "sequential": "serial",
    "seq": "serial",
    "sync": "serial",
    "synchronous": "serial",
}

_DECORATED = "Decorate the function with @sharedtask.parallel, and call"
# Names in other libraries: of the module, as in ``sharedtask.Parallel``.
OTHER_NAMES: dict[str, str] = {
    "Parallel": f"{_DECORATED} f.map(items, ...) instead of Parallel()(delayed(f)(...)).",
    "delayed": f"{_DECORATED} f.map(items, ...), or f.starmap(pairs).",
    "Pool": f"There is no pool to open. {_DECORATED} f.map(items).",
    "ThreadPool": f"{_DECORATED} f.with_options(backend='thread').map(items).",
    "WorkerPool": f"There is no pool to open. {_DECORATED} f.map(items).",
    "ProcessPoolExecutor": f"{_DECORATED} f.map(items), or use sharedtask.Executor().",
    "ThreadPoolExecutor": f"{_DECORATED} f.with_options(backend='thread').submit(item).",
    "remote": f"{_DECORATED} f.map(items), on Ray with backend='ray'.",
    "put": "Mark the parameter Shared[...], and pass the value; or use share(value).",
    "scatter": "Mark the parameter Shared[...], and pass the value; or use share(value).",
    "map": f"{_DECORATED} f.map(items); multi_process(f, items) maps in one call.",
    "starmap": f"{_DECORATED} f.starmap(pairs).",
    "SharedMemory": "zeros(shape), empty(shape) and array(values) make arrays in shared memory.",
}


def unknown_name(name: str) -> Exception:
    """The error for a name that the package lacks, with what to write instead if that is known.

    Only the ``__getattr__`` of the package calls this.
    """
    hint = OTHER_NAMES.get(name)
    if hint is None:
        return AttributeError(f"module 'sharedtask' has no attribute {name!r}")
    # `from sharedtask import Parallel` first calls hasattr in a function of importlib. Python drops
    # the text of an AttributeError there, and keeps an ImportError.
    caller = sys._getframe(1).f_back  # None for a C program that embeds Python
    if caller is not None and caller.f_code.co_name == "_handle_fromlist":
        return ImportError(f"cannot import name {name!r} from 'sharedtask'. {hint}", name=name)
    return AttributeError(f"module 'sharedtask' has no attribute {name!r}. {hint}")
