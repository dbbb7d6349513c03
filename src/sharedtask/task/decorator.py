"""``parallel``: checks a function at its definition and makes a task of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from sharedtask.errors import DefinitionError
from sharedtask.options import check_options
from sharedtask.serialization import functions
from sharedtask.system.tracebacks import shortened
from sharedtask.task.signature.spec import build_spec, name_of

from .task import Task, kind_of, make_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Unpack

    from sharedtask.options import OptionsDict
    from sharedtask.task.signature.spec import Lists

P = ParamSpec("P")
R = TypeVar("R")


@overload
def parallel(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def parallel(
    *,
    shared: Sequence[str] = (),
    copy_on_write: Sequence[str] = (),
    partitioned: Sequence[str] = (),
    locked: Sequence[str] = (),
    reduced: Sequence[str] | Mapping[str, Any] = (),
    per_worker: Sequence[str] = (),
    **options: Unpack[OptionsDict],
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
@shortened
def parallel(
    function: Any = None,
    /,
    *,
    shared: Sequence[str] = (),
    copy_on_write: Sequence[str] = (),
    partitioned: Sequence[str] = (),
    locked: Sequence[str] = (),
    reduced: Sequence[str] | Mapping[str, Any] = (),
    per_worker: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Turn a function into a task that can be mapped over many items.

    Args:
        function: The function; its first parameter (after ``self`` or ``cls``) gets the item.
        shared: Names of parameters whose values are shared read-only, like ``Shared[T]``.
        copy_on_write: Names of parameters whose values are shared and writable, private
            to each item, like ``CopyOnWrite[T]``.
        partitioned: Names of array parameters of which each item gets its own, writable
            block, like ``Partitioned[T]``.
        locked: Names of parameters that tasks read and write under locks, like ``Locked[T]``.
        reduced: Names of parameters to which tasks add, like ``Reduced[T]``, with the
            operation: ``{"best": "max"}``.
        per_worker: Names of parameters whose value each worker makes for
            itself, like ``PerWorker[T]``.
        **options: Defaults for this task: ``backend``, ``workers``, ``chunksize``, ``buffersize``,
            ``progress``, ``desc``, ``timeout`` (seconds per item), ``retries``, ``retry_on``,
            ``return_exceptions``, ``verify``, ``captured``, ``strict``, ``journal``, ``seed``,
            ``memory_limit`` (bytes per worker), ``tasks_per_worker``, ``logs``, ``initializer``,
            ``ray_options``.

    Returns:
        A task. Calling it calls the function; ``map``, ``imap``, ``submit`` ... run many items.

    Raises:
        DefinitionError: The declaration cannot work; the text shows the signature.
        OptionsError: An option is unknown or out of range.

    Examples:
        >>> import numpy as np
        >>> from sharedtask import Shared, parallel
        >>> @parallel
        ... def norm(i: int, rows: Shared[np.ndarray]) -> float:
        ...     return float(np.linalg.norm(rows[i]))
        >>> norm(1, rows=np.eye(3))
        1.0
        >>> norm.map(range(3), rows=np.eye(3))
        [1.0, 1.0, 1.0]
    """
    lists: Lists = {
        "shared": shared,
        "copy_on_write": copy_on_write,
        "partitioned": partitioned,
        "locked": locked,
        "reduced": reduced,
        "per_worker": per_worker,
    }
    if function is not None:
        return define(function, lists, options)

    @shortened
    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return define(function, lists, options)

    # Options are checked before the function is known.
    check_options(options, "parallel()", lists)
    return decorate


def define(
    function: Callable[P, R],
    lists: Lists,
    options: Mapping[str, Any],
) -> Task[P, R]:
    """Create a task and check it immediately."""
    if isinstance(function, Task):
        msg = f"{name_of(function)}() is a task already. Use with_options() to change its options."
        raise DefinitionError(msg)
    kind = kind_of(function)
    spec = build_spec(functions.bare(function), kind=kind, **lists)
    checked = check_options(options, f"{spec.name}()", lists)
    spec.refuse_options(checked)
    return make_task(function, lists, checked, spec)
