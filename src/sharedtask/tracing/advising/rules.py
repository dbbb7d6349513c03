"""All rules, and the order of what they say."""

from __future__ import annotations

from sharedtask.tracing.records import Recorded

from . import items, machine, values
from .advice import Advice

RULES = (
    values.unmarked,
    values.stored_again,
    values.function_decoded_again,
    values.decoded_slowly,
    items.small_items,
    items.large_results,
    items.straggler,
    items.waited_for_items,
    items.waited_for_caller,
    items.slower_than_a_loop,
    machine.inner_threads,
    machine.too_many_workers,
    machine.lock_waits,
    machine.recycled,
)


def advise(recorded: Recorded) -> tuple[Advice, ...]:
    """What there is to say about a run, the dearest first; empty if there is nothing to say."""
    found = [advice for rule in RULES for advice in rule(recorded)]
    return tuple(sorted(found, key=lambda advice: -advice.cost))
