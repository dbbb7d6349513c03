"""Rules about items: their size, their order, their results, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator

from sharedtask.text import duration, human
from sharedtask.tracing.records import Call, Recorded

from .advice import Advice, apart, at_once, by_task, matters

MANY = 100  # items of a task; fewer do not show what one costs
SENDING = frozenset(("unpack", "report"))  # phases of workers
HANDING = ("encode", "dispatch", "results")  # phases of the caller
LARGE_RESULT, LARGE_RESULTS = 1_000_000, 32_000_000  # bytes of one, and of all
ALONE = 0.2  # share of a call in which one worker has work
WAITED = 0.25  # share of a call that the caller's own code takes


def _is_map(call: Call) -> bool:
    """Whether it has many items: a submit has one, and its caller does other work meanwhile."""
    return apart(call) and call.method not in ("submit", "executor")


def small_items(recorded: Recorded) -> Iterator[Advice]:
    """Items cost more to send than to run."""
    for task, calls in by_task(call for call in recorded.calls if _is_map(call)):
        count = sum(call.items for call in calls)
        run = sum(call.times.total for call in calls)
        sent = sum(_sending(recorded, call) for call in calls)
        if count >= MANY and sent > run and matters(recorded, sent):
            yield _pack(task, calls, run / count, sent / count)


def _sending(recorded: Recorded, call: Call) -> float:
    """Seconds, in the caller and in workers, of sending items and their results."""
    chunks = [chunk for chunk in recorded.chunks if chunk.call == call.number]
    seen = sum(chunk.count for chunk in chunks)
    workers = sum(s.seconds for chunk in chunks for s in chunk.spans if s.phase in SENDING)
    whole = workers * call.items / seen if seen else 0.0  # the ring may have lost some
    return whole + sum(call.phases.get(phase, 0.0) for phase in HANDING)


def _pack(task: str, calls: list[Call], run: float, sent: float) -> Advice:
    count, chunks = sum(c.items for c in calls), sum(c.chunks for c in calls)
    small = [c for c in calls if c.chunksize != "auto"]
    if small and count < 20 * chunks:
        what = f"chunksize={small[-1].chunksize} sends them nearly one by one. Leave it out."
        code = f'{task} = {task}.with_options(chunksize="auto")'
    else:
        what = "Put more into one item, or map on threads, where nothing is sent."
        code = f"{task}.map([items[k:k + 1000] for k in range(0, len(items), 1000)])"
    return Advice(
        "small items",
        f"{duration(run)} to run, {duration(sent)} to send",
        f"An item of {task} runs {duration(run)}, and sending it and its result takes "
        f"{duration(sent)}. {what}",
        code,
        sent * count,
    )


def large_results(recorded: Recorded) -> Iterator[Advice]:
    """Results of megabytes are copied to the caller one by one."""
    returning = (call for call in recorded.calls if apart(call) and call.method != "map_into")
    for task, calls in by_task(returning):
        count = sum(call.items for call in calls)
        nbytes = sum(call.bytes_back for call in calls)
        if nbytes >= LARGE_RESULTS and nbytes >= LARGE_RESULT * count:
            each = human(nbytes / count)
            yield Advice(
                "large results",
                f"{each} x {count:,}",
                f"Each result of {task} has {each}: workers copy it out, and the caller holds "
                f"{human(nbytes)}. With map_into workers write into one array.",
                f"{task}.map_into(sharedtask.empty((len(items), *shape), dtype), items)",
                sum(call.phases.get("results", 0.0) for call in calls) + nbytes / 1e9,
            )


def straggler(recorded: Recorded) -> Iterator[Advice]:
    """All workers but one had nothing left for a large part of a call."""
    for call in recorded.outer:
        alone = _alone(recorded, call)
        if at_once(call) > 1 and alone >= ALONE * call.seconds and matters(recorded, alone):
            yield _order(call, alone)


def _alone(recorded: Recorded, call: Call) -> float:
    """Seconds at the end of a call in which its last chunk alone was run."""
    chunks = [chunk for chunk in recorded.chunks if chunk.call == call.number]
    if len({chunk.worker for chunk in chunks}) < 2:
        return 0.0
    last = max(chunks, key=lambda chunk: chunk.stop)
    others = max(chunk.stop for chunk in chunks if chunk.worker != last.worker)
    return max(last.stop - max(others, last.start), 0.0)


def _order(call: Call, alone: float) -> Advice:
    share = f"{alone / call.seconds:.0%}"
    figure = f"{duration(alone)} of {duration(call.seconds)}"
    slow = call.slowest[0] if call.slowest else None
    if slow is not None and slow.seconds >= alone / 2:
        told = f" ({slow.text})" if slow.text else ""
        return Advice(
            "straggler",
            figure,
            f"For {share} of a call of {call.task} one worker had work: item {slow.index}{told} "
            f"took {duration(slow.seconds)}, the median is {duration(call.times.median)}. Start "
            "long items first, or use results as they finish with imap_unordered.",
            f"{call.task}.map(sorted(items, key=size, reverse=True))",
            alone,
        )
    return Advice(
        "straggler",
        figure,
        f"For {share} of a call of {call.task} one worker had a chunk left while the others had "
        f"none. Smaller chunks spread the end over all workers; chunksize was {call.chunksize}.",
        f"{call.task} = {call.task}.with_options(chunksize=1)",
        alone,
    )


def waited_for_items(recorded: Recorded) -> Iterator[Advice]:
    """The caller's iterator was slower than the workers."""
    for call in recorded.outer:
        seconds = call.phases.get("items", 0.0)
        if seconds >= WAITED * call.seconds and matters(recorded, seconds):
            yield Advice(
                "slow iterator",
                f"{duration(seconds)} of {duration(call.seconds)}",
                f"Workers of {call.task} waited for the iterator of items: the caller spent "
                f"{duration(seconds)} in it. Pass cheap items (paths, keys, numbers), and read "
                "the data inside the task.",
                f"{call.task}.map(paths)  # open and read each path inside {call.task}",
                seconds,
            )


def waited_for_caller(recorded: Recorded) -> Iterator[Advice]:
    """The caller's loop over results was slower than the workers."""
    for call in recorded.outer:
        seconds = call.phases.get("caller", 0.0)
        starved = call.efficiency < 0.5
        if starved and seconds >= WAITED * call.seconds and matters(recorded, seconds):
            yield Advice(
                "slow loop",
                f"{duration(seconds)} of {duration(call.seconds)}",
                f"The loop over the results of {call.task} took {duration(seconds)}, while workers "
                "had nothing to do. Do that work inside the task, or let more items run ahead.",
                f"{call.task} = {call.task}.with_options(buffersize=1000)",
                seconds,
            )


def _stopped(call: Call) -> bool:
    """Whether it may have ended before its last item."""
    return bool(call.errors or call.deaths or call.timeouts) or not call.finished


def slower_than_a_loop(recorded: Recorded) -> Iterator[Advice]:
    """All calls of a task took longer than their items would have, one after the other."""
    maps = (call for call in recorded.outer if _is_map(call) and call.items and not _stopped(call))
    for task, calls in by_task(maps):
        seconds = sum(call.seconds for call in calls)
        caller = sum(call.phases.get(p, 0.0) for call in calls for p in ("items", "caller"))
        loop = sum(call.times.total for call in calls) + caller
        if seconds > 1.1 * loop and matters(recorded, seconds - loop):
            start = sum(call.phases.get("start", 0.0) for call in calls)
            why = f", {duration(start)} of it to start workers" if start > 0.2 * seconds else ""
            yield Advice(
                "slower than a loop",
                f"{duration(seconds)}, a loop {duration(loop)}",
                f"Calls of {task} took {duration(seconds)}{why}; its items alone take "
                f"{duration(loop)}. A plain loop is faster for so little work.",
                f'{task} = {task}.with_options(backend="serial")',
                seconds - loop,
            )
