"""Map a function over many items; values that every call needs are shared in memory once.

    @parallel
    def classify(image_id: int, model: Shared[dict]) -> int: ...

    classify.map(range(1_000), model=model)

The names below are loaded when they are first used, so that worker processes, which need few of
them, start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharedtask import version as _version
from sharedtask.system import interpreters as _interpreters
from sharedtask.system import loading as _loading

if TYPE_CHECKING:
    from sharedtask.annotations import CopyOnWrite as CopyOnWrite
    from sharedtask.annotations import Partitioned as Partitioned
    from sharedtask.annotations import PerWorker as PerWorker
    from sharedtask.annotations import Reduced as Reduced
    from sharedtask.annotations import Shared as Shared
    from sharedtask.backends.worker.info import WorkerInfo as WorkerInfo
    from sharedtask.backends.worker.info import worker_info as worker_info
    from sharedtask.errors import ArgumentError as ArgumentError
    from sharedtask.errors import BackendUnavailableError as BackendUnavailableError
    from sharedtask.errors import ChangedValueError as ChangedValueError
    from sharedtask.errors import ChangedValueWarning as ChangedValueWarning
    from sharedtask.errors import ClosedError as ClosedError
    from sharedtask.errors import DefinitionError as DefinitionError
    from sharedtask.errors import HintWarning as HintWarning
    from sharedtask.errors import IncompleteValueWarning as IncompleteValueWarning
    from sharedtask.errors import InitializerError as InitializerError
    from sharedtask.errors import InvalidNameError as InvalidNameError
    from sharedtask.errors import JournalError as JournalError
    from sharedtask.errors import JournalWarning as JournalWarning
    from sharedtask.errors import LockOrderError as LockOrderError
    from sharedtask.errors import MemoryLimitError as MemoryLimitError
    from sharedtask.errors import NameInUseError as NameInUseError
    from sharedtask.errors import NameRefusedError as NameRefusedError
    from sharedtask.errors import OptionsError as OptionsError
    from sharedtask.errors import OverlapError as OverlapError
    from sharedtask.errors import RegionPoisonedError as RegionPoisonedError
    from sharedtask.errors import SerializationError as SerializationError
    from sharedtask.errors import SharedTaskError as SharedTaskError
    from sharedtask.errors import StoreFullError as StoreFullError
    from sharedtask.errors import TaskExitError as TaskExitError
    from sharedtask.errors import TaskTimeoutError as TaskTimeoutError
    from sharedtask.errors import UnknownNameError as UnknownNameError
    from sharedtask.errors import UnshareableError as UnshareableError
    from sharedtask.errors import WorkerDiedError as WorkerDiedError
    from sharedtask.explaining.explain import explain as explain
    from sharedtask.explaining.report import Explanation as Explanation
    from sharedtask.memory.arrays import array as array
    from sharedtask.memory.arrays import empty as empty
    from sharedtask.memory.arrays import zeros as zeros
    from sharedtask.options import defaults as defaults
    from sharedtask.recipes import per_worker as per_worker
    from sharedtask.serialization.kinds import register as register
    from sharedtask.store.cache import CacheInfo as CacheInfo
    from sharedtask.store.handles import Handle as Handle
    from sharedtask.store.handles import attach as attach
    from sharedtask.store.handles import share as share
    from sharedtask.task.decorator import parallel as parallel
    from sharedtask.task.executor import Executor as Executor
    from sharedtask.task.futures import TaskFuture as TaskFuture
    from sharedtask.task.multi_process import multi_process as multi_process
    from sharedtask.task.rng import Rng as Rng
    from sharedtask.task.rng import per_item as per_item
    from sharedtask.task.shutdown import shutdown as shutdown
    from sharedtask.task.task import Task as Task
    from sharedtask.tracing.trace import Trace as Trace
    from sharedtask.tracing.trace import trace as trace
    from sharedtask.writing.locked.locked import Locked as Locked
    from sharedtask.writing.locked.regions import Regions as Regions
    from sharedtask.writing.partitioned.partitions import Partition as Partition
    from sharedtask.writing.partitioned.partitions import partition as partition
    from sharedtask.writing.reduced.operations import Reduction as Reduction

_interpreters.refuse_subinterpreter()

_MODULES = {
    "annotations": (
        "CopyOnWrite",
        "Partitioned",
        "PerWorker",
        "Reduced",
        "Shared",
    ),
    "recipes": ("per_worker",),
    "writing.locked.regions": ("Regions",),
    "task.shutdown": ("shutdown",),
    "task.decorator": ("parallel",),
    "errors": (
        "ArgumentError",
        "BackendUnavailableError",
        "ChangedValueError",
        "ChangedValueWarning",
        "ClosedError",
        "DefinitionError",
        "HintWarning",
        "IncompleteValueWarning",
        "InitializerError",
        "InvalidNameError",
        "JournalError",
        "JournalWarning",
        "LockOrderError",
        "MemoryLimitError",
        "NameInUseError",
        "NameRefusedError",
        "OptionsError",
        "OverlapError",
        "RegionPoisonedError",
        "SerializationError",
        "SharedTaskError",
        "StoreFullError",
        "TaskExitError",
        "TaskTimeoutError",
        "UnknownNameError",
        "UnshareableError",
        "WorkerDiedError",
    ),
    "explaining.explain": ("explain",),
    "explaining.report": ("Explanation",),
    "task.executor": ("Executor",),
    "task.futures": ("TaskFuture",),
    "writing.locked.locked": ("Locked",),
    "task.multi_process": ("multi_process",),
    "options": ("defaults",),
    "writing.partitioned.partitions": (
        "Partition",
        "partition",
    ),
    "writing.reduced.operations": ("Reduction",),
    "task.rng": (
        "Rng",
        "per_item",
    ),
    "memory.arrays": (
        "array",
        "empty",
        "zeros",
    ),
    "store.cache": ("CacheInfo",),
    "store.handles": (
        "Handle",
        "attach",
        "share",
    ),
    "serialization.kinds": ("register",),
    "task.task": ("Task",),
    "tracing.trace": (
        "Trace",
        "trace",
    ),
    "backends.worker.info": (
        "WorkerInfo",
        "worker_info",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

# Written out, because type checkers read it.
__version__ = _version.VERSION

__all__ = [
    "ArgumentError",
    "BackendUnavailableError",
    "CacheInfo",
    "ChangedValueError",
    "ChangedValueWarning",
    "ClosedError",
    "CopyOnWrite",
    "DefinitionError",
    "Executor",
    "Explanation",
    "Handle",
    "HintWarning",
    "IncompleteValueWarning",
    "InitializerError",
    "InvalidNameError",
    "JournalError",
    "JournalWarning",
    "LockOrderError",
    "Locked",
    "MemoryLimitError",
    "NameInUseError",
    "NameRefusedError",
    "OptionsError",
    "OverlapError",
    "Partition",
    "Partitioned",
    "PerWorker",
    "Reduced",
    "Reduction",
    "RegionPoisonedError",
    "Regions",
    "Rng",
    "SerializationError",
    "Shared",
    "SharedTaskError",
    "StoreFullError",
    "Task",
    "TaskExitError",
    "TaskFuture",
    "TaskTimeoutError",
    "Trace",
    "UnknownNameError",
    "UnshareableError",
    "WorkerDiedError",
    "WorkerInfo",
    "array",
    "attach",
    "defaults",
    "empty",
    "explain",
    "multi_process",
    "parallel",
    "partition",
    "per_item",
    "per_worker",
    "register",
    "share",
    "shutdown",
    "trace",
    "worker_info",
    "zeros",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from sharedtask.habits import unknown_name

        raise unknown_name(name)
    home = f"sharedtask.{_HOMES[name]}"
    with _loading.undisturbed(home):
        value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
