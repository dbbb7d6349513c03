"""Rules about the machine: cores, memory, and locks."""

from __future__ import annotations

from collections.abc import Iterator

from sharedtask.text import duration, human
from sharedtask.tracing.records import Recorded, Worker

from .advice import Advice, apart, by_task, matters

COMPETING = 1.5  # times the cores
RECYCLED = 3  # workers: fewer are what the option is for
LOCKED = 0.2  # share of the time of items
MEMORY_LIMIT = "memory_limit"


def inner_threads(recorded: Recorded) -> Iterator[Advice]:
    """Threads of numerical libraries in all workers are more than the cores."""
    for task, calls in by_task(call for call in recorded.outer if apart(call)):
        seconds = sum(call.seconds for call in calls)
        worst = max(calls, key=lambda call: call.inner_threads * call.workers)
        threads = worst.inner_threads * worst.workers
        too_many = worst.inner_threads > 1 and threads > COMPETING * worst.cpus
        if too_many and matters(recorded, seconds):
            yield Advice(
                "inner threads",
                f"{worst.inner_threads} x {worst.workers} threads on {worst.cpus} cores",
                f"BLAS and OpenMP may use {worst.inner_threads} threads in each of "
                f"{worst.workers} workers of {task}, and there are {worst.cpus} cores: they "
                "compete. Set the number yourself.",
                "OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python program.py",
                seconds * (1 - worst.cpus / threads),
            )


def too_many_workers(recorded: Recorded) -> Iterator[Advice]:
    """Items of more workers than cores compete for the cores: they waited, though not to sleep."""
    for task, calls in by_task(call for call in recorded.outer if call.backend == "process"):
        call = max(calls, key=lambda call: call.workers / max(call.cpus, 1))
        cpu, own = sum(c.cpu for c in calls), sum(c.times.total for c in calls)
        seconds = sum(c.seconds for c in calls)
        computing = cpu >= 0.7 * min(call.cpus * seconds, own)
        if call.workers >= COMPETING * call.cpus and computing and cpu < 0.8 * own:
            waited = (own - cpu) / call.workers
            if matters(recorded, waited):
                yield Advice(
                    "too many workers",
                    f"{call.workers} workers on {call.cpus} cores",
                    f"{call.workers} workers of {task} shared {call.cpus} cores: each waited "
                    f"{duration(waited)} for one. More workers than cores help items that wait "
                    "for a network or a disk, not items that compute.",
                    f"{task} = {task}.with_options(workers={call.cpus})",
                    waited,
                )


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
                "written, compute before the lock is taken, or let each worker add to an array "
                "of its own with Reduced.",
                "with grid.write(row): ...  # or: grid: Reduced[np.ndarray]",
                waited / workers,
            )


def recycled(recorded: Recorded) -> Iterator[Advice]:
    """Workers were replaced again and again, for they exceeded ``memory_limit``."""
    gone = [w for w in recorded.workers if w.end.startswith("recycled") and MEMORY_LIMIT in w.end]
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
