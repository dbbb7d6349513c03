"""Rules about values: what is sent, stored and decoded more often than it has to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sharedtask.text import duration, human
from sharedtask.tracing.records import Call, Decoding, Recorded, Value

from .advice import Advice, apart, by_task, matters

SENT = 8_000_000  # bytes in all, some 10 ms of copies on each side
LARGE = 100_000  # bytes of one value: smaller ones are what arguments are for
STORED = 3  # times: once is needed, twice may be chance
OBJECTS = 10_000
DECODED_PICKLE = 1_000_000  # bytes of pickle, some 10,000 objects, where they were not counted


def unmarked(recorded: Recorded) -> Iterator[Advice]:
    """A large value that is not marked went along with each chunk."""
    for task, calls in by_task(recorded.calls):
        for name, values in _by_name(calls):
            sent = [value for value in values if _is_sent(value)]
            total = sum(value.nbytes * value.sent for value in sent)
            if total >= SENT:
                yield _mark(task, name, sent, total)


def _is_sent(value: Value) -> bool:
    """Arrays of a megabyte are not: they are stored by themselves, once."""
    return not value.marked and value.travel in ("message", "beside") and value.nbytes >= LARGE


def _mark(task: str, name: str, values: list[Value], total: int) -> Advice:
    times, value = sum(value.sent for value in values), values[-1]
    cost = sum(value.encode for value in values) + total / 1e9
    size = human(value.nbytes)
    return Advice(
        "unmarked",
        f"{size} x {times:,}",
        f"{name} ({value.kind}, {size}) of {task} is not marked: it was sent with {times:,} "
        f"chunks, {human(total)} in all, and each chunk decoded it. If you mark it, it is stored "
        "once, and each worker decodes it once.",
        _marking(name, value),
        cost,
    )


def _marking(name: str, value: Value) -> str:
    if name == "self":
        return '@parallel(shared=["self"])'
    if name.isidentifier() and name != "function":
        return f"{name}: Shared[{value.kind}]"
    return f"def task(item, value: Shared[{value.kind}]): ...  # pass it as an argument"


def stored_again(recorded: Recorded) -> Iterator[Advice]:
    """A shared value was stored at nearly each call, for it is new or changed each time."""
    for task, calls in by_task(recorded.calls):
        for name, values in _by_name(calls):
            again = [v for v in values[1:] if v.miss in ("changed", "new", "dead")]
            cost = sum(value.compare + value.encode + value.store for value in again)
            if len(again) >= STORED and 2 * len(again) >= len(values) and matters(recorded, cost):
                yield _keep(task, name, again, cost, len(values))


def _keep(task: str, name: str, again: list[Value], cost: float, calls: int) -> Advice:
    value = again[-1]
    figure = f"{len(again) + 1} stores in {calls} calls, {duration(cost)}"
    what = f"{name} ({value.kind}, {human(value.nbytes)}) of {task}"
    if value.same_object:
        return Advice(
            "changed value",
            figure,
            f"{what} is changed between the calls and stored again each time. Arrays made by "
            "sharedtask.array are in shared memory from the start: workers see changes at once.",
            f"{name} = sharedtask.array({name})  # once, then change it in place",
            cost,
        )
    return Advice(
        "new value",
        figure,
        f"{what} is a new object in each call, so it is stored each time. Create it once, "
        "before the loop, or use a handle.",
        f"with share({name}) as {name}: ...  # the loop of calls inside",
        cost,
    )


def function_decoded_again(recorded: Recorded) -> Iterator[Advice]:
    """Workers decoded the function more than once, for each call brings a new one."""
    for task, decodings in _by_task(recorded, lambda d: d.name == "function"):
        workers = len({decoding.worker for decoding in decodings})
        cost = sum(decoding.seconds for decoding in decodings)
        if len(decodings) > 3 * workers and matters(recorded, cost / max(workers, 1)):
            yield Advice(
                "function decoded",
                f"{len(decodings):,} times on {workers} workers, {duration(cost)}",
                f"{task} was decoded {len(decodings):,} times by {workers} workers: it is a new "
                "function in each call. Define it once, at the top level of a module, and pass "
                "what changes as an argument.",
                f"@parallel\ndef {_identifier(task)}(item, setting): ...",
                cost / max(workers, 1),
            )


def decoded_slowly(recorded: Recorded) -> Iterator[Advice]:
    """A value of many Python objects is decoded in each worker."""
    for task, decodings in _by_task(recorded, lambda d: d.name != "function" and _is_many(d)):
        for name in sorted({decoding.name for decoding in decodings}):
            own = [decoding for decoding in decodings if decoding.name == name]
            longest = max(own, key=lambda decoding: decoding.seconds)
            if matters(recorded, longest.seconds):
                yield _flatten(task, longest, len(own))


def _is_many(decoding: Decoding) -> bool:
    return decoding.objects >= OBJECTS or decoding.nbytes >= DECODED_PICKLE


def _flatten(task: str, longest: Decoding, times: int) -> Advice:
    number = f"about {longest.objects:,} objects" if longest.objects else human(longest.nbytes)
    return Advice(
        "decoded slowly",
        f"{duration(longest.seconds)} x {times}",
        f"{longest.name} of {task} is {number} of pickle: each worker decodes it, which took up "
        f"to {duration(longest.seconds)}. Arrays and Arrow tables are mapped, not decoded.",
        f"{_identifier(longest.name)} = pyarrow.table(...)  # or numpy arrays of keys and values",
        longest.seconds,
    )


def _by_name(calls: list[Call]) -> Iterator[tuple[str, list[Value]]]:
    """The values that came along under the same name with calls, by time."""
    found: dict[str, list[Value]] = {}
    for call in calls:
        for value in call.values if apart(call) else ():
            found.setdefault(value.name, []).append(value)
    return iter(found.items())


def _by_task(
    recorded: Recorded, wanted: Callable[[Decoding], bool]
) -> Iterator[tuple[str, list[Decoding]]]:
    """The decodings that are wanted, by the name of the task."""
    tasks = {call.number: call.task for call in recorded.calls}
    found: dict[str, list[Decoding]] = {}
    for decoding in filter(wanted, recorded.decodings):
        if decoding.call in tasks:
            found.setdefault(tasks[decoding.call], []).append(decoding)
    return iter(found.items())


def _identifier(text: str) -> str:
    """A name for a line of code."""
    last = text.rsplit(".", 1)[-1]
    return last if last.isidentifier() else "score"
