"""Whether an item that has raised is run again: the option ``retries`` in maps and submits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.errors import ClosedError

if TYPE_CHECKING:
    from sharedtask.options import Options


def runs_again(
    options: Options, failures: dict[int, int], index: int, error: BaseException
) -> bool:
    """Count a failure of an item; returns whether it may be run once more.

    ``failures`` counts those of a call, by the index of the item.
    """
    if isinstance(error, ClosedError) or not isinstance(error, options.retry_on):
        return False
    failures[index] = failures.get(index, 0) + 1
    return failures[index] <= options.retries
