"""Rules about the machine: cores, memory, and locks."""

from __future__ import annotations

from collections.abc import Iterator

from sharedtask.text import duration, human
from sharedtask.tracing.records import Call, Recorded, Worker

from .advice import Advice, apart, by_task, matters

COMPETING = 1.5  # times the cores
RECYCLED = 3  # workers: fewer are what the option is for
BESIDE = 0.2  # share of the time of cores that other threads take
SHARED = 0.2  # share of the time of items in which they wait for a core
LOCKED = 0.2  # share of the time of items in which they wait for a lock
MEMORY_LIMIT = "memory_limit"


def inner_threads(recorded: Recorded) -> Iterator[Advice]:
    """Threads of numerical libraries, in all workers that run at once, are more than the cores."""
    for task, calls in by_task(call for call in recorded.outer if apart(call)):
        beside, worst = sum(call.cpu_beside for call in calls), max(calls, key=_threads)
        threads, cost = _threads(worst), sum(map(_competing, calls))
        used = sum(call.cpu for call in calls)
        if threads > COMPETING * worst.cpus and beside >= BESIDE * used and matters(recorded, cost):
            yield Advice(
                "inner threads",
                f"{worst.busy_threads:.1f} x {worst.workers} threads on {worst.cpus} cores",
                f"{duration(beside)} of the {duration(used)} of CPU time of {task} were in "
                f"threads of libraries: about {worst.busy_threads:.1f} threads computed in each of "
                f"{worst.workers} workers, and there are {worst.cpus} cores, so they compete. "
                "Limit them before libraries are loaded, or with threadpoolctl inside the task.",
                "OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python program.py",
                cost,
            )


def _threads(call: Call) -> float:
    """The threads that compute at once, in all workers."""
    return call.busy_threads * call.workers


def _competing(call: Call) -> float:
    """Seconds in which threads of its workers waited for each other's cores, about."""
    return call.cpu / call.cpus * max(1 - call.cpus / _threads(call), 0.0)


def too_many_workers(recorded: Recorded) -> Iterator[Advice]:
    """Items of more workers than cores compete for the cores: they waited, though not to sleep."""
    for task, calls in by_task(call for call in recorded.outer if call.backend == "process"):
        call = max(calls, key=lambda call: call.workers / call.cpus)
        waited, own = (sum(times) for times in zip(*map(_waited_of, calls), strict=True))
        crowded = call.workers >= COMPETING * call.cpus and waited >= SHARED * own
        if crowded and matters(recorded, waited / call.workers):
            yield Advice(
                "too many workers",
                f"{call.workers} workers on {call.cpus} cores",
                f"{call.workers} workers of {task} shared {call.cpus} cores: its items waited "
                f"{duration(waited)} of their {duration(own)} for one. More workers than cores "
                "help items that wait for a network or a disk, not items that compute.",
                f"{task} = {task}.with_options(workers={call.cpus})",
                waited / call.workers,
            )


def _waited_of(call: Call) -> tuple[float, float]:
    return call.core_wait, call.times.total


def lock_waits(recorded: Recorded) -> Iterator[Advice]:
    """Items spent much of their time waiting for locks of shared arrays."""
    for task, calls in by_task(recorded.outer):
        waited = sum(call.lock_wait for call in calls)
        own = sum(call.times.total for call in calls)
        workers = max(call.workers for call in calls)
        if waited >= LOCKED * max(own, waited) and matters(recorded, waited / workers):
            yield Advice(
                "lock waits",
                f"{duration(waited)} of {duration(max(own, waited))}",
                f"Items of {task} waited {duration(waited)} for locks. Lock the rows that are "
                "written, compute before acquiring the lock, or use Reduced: each worker adds to "
                "its own array.",
                "with grid.write(row): ...  # or: grid: Reduced[np.ndarray]",
                waited / workers,
            )


def recycled(recorded: Recorded) -> Iterator[Advice]:
    """Workers were replaced again and again, for they exceeded ``memory_limit``."""
    gone = [w for w in recorded.workers if w.end.startswith("replaced") and MEMORY_LIMIT in w.end]
    cost = sum(worker.phases.get("start", 0.0) for worker in recorded.workers)
    if len(gone) >= RECYCLED:
        peak = max(worker.memory_peak for worker in gone)
        reached = f", having up to {human(peak)}" if peak else ""
        yield Advice(
            "recycled workers",
            f"{len(gone)} workers after {_typical(gone)} items each",
            f"{len(gone)} workers were replaced because of memory_limit{reached}. Each new one "
            "starts and decodes again. Raise the limit, or find what the task keeps.",
            f'task = task.with_options(memory_limit="{2 * peak // 1_000_000 or 4000}MB")',
            cost,
        )


def _typical(workers: list[Worker]) -> str:
    counts = sorted(worker.items for worker in workers)
    return f"{counts[len(counts) // 2]:,}"
