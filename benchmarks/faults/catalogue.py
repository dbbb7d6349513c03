"""The faults: for each what runs, over which items, and what happens around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.faults import deeds, scenes
from benchmarks.faults.scenes import Scene

IN_THE_MIDDLE = frozenset({3})
NOBODY: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table.

    Attributes:
        title: What goes wrong, as the table says it.
        task: What the workers run.
        items: Makes the seven items.
        bad: The places of the items at fault; ``before`` may find other ones.
        may_pass: Seven right results are as good as an error at the bad item.
        words: No item is at fault but the function: one of these must stand in the error.
        timeout: Seconds, for whoever has such an option.
        table: What a shared array holds when the pool is made; its right contents are ones.
        before: What happens once the workers are warm, before the clock starts.
    """

    title: str
    task: Callable[..., Any] = deeds.work
    items: Callable[[], list[Any]] = deeds.rooms
    bad: frozenset[int] = IN_THE_MIDDLE
    may_pass: bool = False
    words: tuple[str, ...] = ()
    timeout: float | None = None
    table: float | None = None
    before: Callable[[Scene], None] = scenes.nothing


FAULTS: dict[str, Fault] = {
    "sigkill": Fault("the worker is killed (SIGKILL)", deeds.killed),
    "segfault": Fault("the worker crashes (SIGSEGV)", deeds.crashes),
    "os-exit": Fault("os._exit(0) in the task", deeds.ends),
    "sys-exit": Fault("sys.exit(3) in the task", deeds.exits),
    "interrupt": Fault("KeyboardInterrupt in the task", deeds.interrupts),
    "two-arguments": Fault("exception whose __init__ takes two arguments", deeds.no_such_room),
    "exception-lock": Fault("exception that holds a lock", deeds.locked_room),
    "recursion": Fault("RecursionError", deeds.recurses),
    "result-pickle": Fault("result that cannot be pickled", deeds.gives_lock),
    "result-unpickle": Fault("result whose unpickling raises", deeds.gives_shattered),
    "item-pickle": Fault("item whose pickling raises", items=deeds.rooms_with(deeds.Stubborn)),
    "item-unpickle": Fault("item whose unpickling raises", items=deeds.rooms_with(deeds.Shattered)),
    "item-kills": Fault(
        "item whose unpickling kills the worker", items=deeds.rooms_with(deeds.DeadlyItem)
    ),
    "function": Fault(
        "function that captured a lock",
        deeds.behind_a_lock(),
        bad=NOBODY,
        words=("lock", "guard"),
    ),
    "hang": Fault("task that hangs, with a limit of 1 s", deeds.hangs, timeout=1.0),
    "idle": Fault("idle worker killed between two maps", bad=NOBODY, before=scenes.kill_idle),
    "all-killed": Fault(
        "all workers killed at once", deeds.waits, bad=NOBODY, before=scenes.kill_all_at_work
    ),
    "descriptors": Fault(
        "task closes descriptors 3 to 255", deeds.closes_descriptors, may_pass=True
    ),
    "write": Fault("task writes to the shared array", deeds.scribbles, may_pass=True, table=1.0),
    "stale": Fault(
        "shared array changed between two maps",
        deeds.look,
        bad=NOBODY,
        table=2.0,
        before=scenes.change_table,
    ),
}
QUICK = ("sigkill", "two-arguments", "item-unpickle", "idle")
