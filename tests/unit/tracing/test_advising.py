"""Each advice is given where its figure says so, and not where there is nothing to say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from traces import recorded, times, topics

from sharedtask.tracing.advising import Advice, advise
from sharedtask.tracing.records import Call, Chunk, Decoding, Item, Recorded, Span, Value, Worker


def only(run: Recorded, topic: str) -> Advice:
    """The advice of a topic, which is given once."""
    (found,) = (advice for advice in advise(run) if advice.topic == topic)
    return found


def call(number: int = 0, **changes: Any) -> Call:
    """A map of 100 items of 10 ms on two cores, in half a second."""
    fields: dict[str, Any] = {
        "task": "score",
        "method": "map",
        "backend": "process",
        "start": float(number),
        "stop": number + 0.51,
        "workers": 2,
        "cpus": 2,
        "phases": {"wait": 0.51},
        "chunks": 10,
        "items": 100,
        "times": times(100, 0.01),
    }
    return Call(number, **{**fields, **changes})


def calls(*made: Call, **changes: Any) -> Recorded:
    return Recorded(seconds=made[-1].stop, cpus=2, calls=made, **changes)


def test_a_run_without_faults_has_no_advice() -> None:
    """Two workers are busy throughout, and little is sent."""
    assert () == advise(recorded(item=0.01, chunks=40))
    assert () == advise(calls(call()))
    assert () == advise(Recorded())


def table(sent: int, **changes: Any) -> Value:
    fields = {"marked": False, "sent": sent, **changes}
    return Value("table", "dict", 1_000_000, **fields)


def test_an_unmarked_argument_that_is_sent_with_each_chunk_is_to_be_marked() -> None:
    """The figure is its size and how many times it was sent."""
    found = only(calls(call(values=(table(40),))), "unmarked")
    assert "1.0 MB x 40" == found.figure
    assert "table: Shared[dict]" == found.code
    assert "40.0 MB in all" in found.sentence


@pytest.mark.parametrize(
    "value",
    [
        table(2),
        table(0, marked=True, travel="shared"),
        table(40, marked=True),
        table(40, travel="in place"),
        dataclasses.replace(table(1000), nbytes=10_000),
    ],
)
def test_arguments_that_cost_little_need_no_mark(value: Value) -> None:
    """Sent a few times, shared, in messages too, in place, or small."""
    assert [] == topics(calls(call(values=(value,))))


def model(**changes: Any) -> Value:
    fields = {"miss": "new", "compare": 0.0, "encode": 0.05, "store": 0.05, **changes}
    return Value("model", "dict", 80_000_000, marked=True, travel="shared", **fields)


def test_a_value_that_is_new_in_each_call_is_to_be_made_once() -> None:
    """It is stored at each call, since no call finds the object of the one before."""
    run = calls(*(call(n, values=(model(same_object=False),)) for n in range(5)))
    found = only(run, "new value")
    assert "5 stores in 5 calls, 400 ms" == found.figure
    assert "share(model)" in found.code


def test_a_value_that_changes_between_calls_is_to_be_in_shared_memory() -> None:
    """It is stored at each call, though it is the same object."""
    value = model(miss="changed", same_object=True)
    found = only(calls(*(call(n, values=(value,)) for n in range(5))), "changed value")
    assert "sharedtask.array(model)" in found.code


def test_a_value_that_is_found_again_needs_no_advice() -> None:
    """The first call stores it, the others find it."""
    hit = model(miss="", hit=True, encode=0.0, store=0.0)
    first = call(values=(model(),))
    assert [] == topics(calls(first, *(call(n, values=(hit,)) for n in range(1, 5))))


def test_a_value_that_is_stored_now_and_then_needs_no_advice() -> None:
    """Three times in all, or for less than half of the calls."""
    hit = model(miss="", hit=True, encode=0.0, store=0.0)
    for values in ([model()] * 3, [model(), *[hit] * 6, *[model()] * 3]):
        assert [] == topics(calls(*(call(n, values=(v,)) for n, v in enumerate(values))))


def test_a_value_that_takes_long_to_compare_is_not_stored() -> None:
    """A hit is no store, whatever it takes."""
    hit = model(miss="", hit=True, compare=0.1, encode=0.0, store=0.0)
    assert [] == topics(calls(*(call(n, values=(hit,)) for n in range(5))))


def decodings(name: str, count: int, each: float, **changes: Any) -> tuple[Decoding, ...]:
    made = [Decoding(0, n % 2, name, n / 100, n / 100 + each, **changes) for n in range(count)]
    return tuple(made)


def test_a_function_that_is_new_in_each_call_is_to_be_defined_once() -> None:
    """Two workers decoded it forty times."""
    run = calls(call(), decodings=decodings("function", 40, 0.01))
    assert "40 times on 2 workers, 400 ms" == only(run, "function decoded").figure


def test_a_function_that_each_worker_decodes_once_needs_no_advice() -> None:
    """That is what it costs."""
    assert [] == topics(calls(call(), decodings=decodings("function", 2, 0.2)))


def test_a_value_of_many_objects_is_to_be_made_of_arrays() -> None:
    """The figure is what the slowest worker took, and how many did it."""
    run = calls(call(), decodings=decodings("table", 2, 1.2, objects=1_000_000))
    found = only(run, "decoded slowly")
    assert "1.2 s x 2" == found.figure
    assert "1,000,000 objects" in found.sentence


def test_a_value_that_is_decoded_at_once_needs_no_advice() -> None:
    """Arrays are mapped: there are few objects, or little time is spent."""
    few = decodings("table", 2, 1.2, objects=3, mapped=80_000_000)
    fast = decodings("table", 2, 0.001, objects=1_000_000)
    assert [] == topics(calls(call(), decodings=(*few, *fast)))


SMALL: dict[str, Any] = {
    "items": 100_000,
    "times": times(100_000, 1e-6),
    "phases": {"encode": 0.1, "dispatch": 0.1, "results": 0.2, "wait": 0.11},
}


def test_items_that_cost_more_to_send_than_to_run_are_to_be_packed() -> None:
    """The figures are those of one item."""
    found = only(calls(call(**SMALL)), "small items")
    assert "1 us to run, 4 us to send" == found.figure
    assert "range(0, len(items), 1000)" in found.code


def test_items_that_are_sent_one_by_one_are_to_be_sent_in_chunks() -> None:
    """Where the option makes chunks small, it is to be left out."""
    run = calls(call(**SMALL, chunks=100_000, chunksize="1"))
    assert 'score = score.with_options(chunksize="auto")' == only(run, "small items").code


def test_small_items_on_threads_need_no_advice() -> None:
    """Nothing is sent there."""
    assert [] == topics(calls(call(**SMALL, backend="thread")))


def test_large_results_are_to_be_written_into_an_array() -> None:
    """The figure is the size of one, and how many there were."""
    run = calls(call(bytes_back=800_000_000))
    assert "8.0 MB x 100" == only(run, "large results").figure


@pytest.mark.parametrize(
    "changes",
    [{"bytes_back": 800_000_000, "method": "map_into"}, {"bytes_back": 1_000_000}],
)
def test_results_written_in_place_and_small_ones_need_no_advice(changes: dict[str, Any]) -> None:
    """They are where they belong, or are few bytes."""
    assert [] == topics(calls(call(**changes)))


def chunks(*stops: float) -> tuple[Chunk, ...]:
    """A chunk for each worker, from 0 on."""
    return tuple(Chunk(n, 0, n, n, 1, 0.0, 0.0, stop, stop) for n, stop in enumerate(stops))


def test_a_straggler_is_to_be_started_first() -> None:
    """One item ran alone for two fifths of the call."""
    slow = Item(0, 99, 1, 0.2, 0.5, "'large.csv'")
    run = calls(call(slowest=(slow,)), chunks=chunks(0.3, 0.5))
    found = only(run, "straggler")
    assert "200 ms of 510 ms" == found.figure
    assert "item 99 ('large.csv') took 300 ms" in found.sentence
    assert "sorted(" in found.code


def test_a_straggling_chunk_of_small_items_is_to_be_cut() -> None:
    """No item is long, but one worker has many left."""
    run = calls(call(slowest=(Item(0, 99, 1, 0.4, 0.41),)), chunks=chunks(0.3, 0.5))
    assert "chunksize=1" in only(run, "straggler").code


def test_workers_that_end_together_need_no_advice() -> None:
    """There is no straggler."""
    assert [] == topics(calls(call(), chunks=chunks(0.49, 0.5)))


def test_a_slow_iterator_is_to_yield_what_is_cheap() -> None:
    """The caller spent four fifths of the call in it."""
    run = calls(call(phases={"items": 0.4, "wait": 0.11}))
    assert "400 ms of 510 ms" == only(run, "slow iterator").figure


def test_a_fast_iterator_needs_no_advice() -> None:
    """A tenth of the call is no reason to change it."""
    assert [] == topics(calls(call(phases={"items": 0.05, "wait": 0.46})))


def test_a_slow_loop_over_results_is_told_where_workers_starved() -> None:
    """The caller's own code took most of the call, and workers little."""
    slow: dict[str, Any] = {"phases": {"caller": 0.4, "wait": 0.11}, "method": "imap"}
    assert "slow loop" in topics(calls(call(**slow, times=times(100, 0.001))))
    assert [] == topics(calls(call(**slow)))


def test_a_map_slower_than_a_loop_is_to_be_a_loop() -> None:
    """The figures are the time of the calls and that of their items."""
    run = calls(call(times=times(100, 0.001), phases={"start": 0.3, "wait": 0.21}))
    found = only(run, "slower than a loop")
    assert "510 ms, a loop 100 ms" == found.figure
    assert "300 ms of it to start workers" in found.sentence


@pytest.mark.parametrize("changes", [{"errors": 1}, {"deaths": 1}, {"finished": False}])
def test_a_map_that_stopped_early_is_not_compared_with_a_loop(changes: dict[str, Any]) -> None:
    """Its items are not all that a loop would have run."""
    slow: dict[str, Any] = {"times": times(100, 0.001), "phases": {"start": 0.3, "wait": 0.21}}
    assert [] == topics(calls(call(**slow, **changes)))


def test_a_loop_that_would_wait_as_long_is_no_better() -> None:
    """What the caller's iterator takes, it takes in a loop too."""
    run = calls(call(times=times(100, 0.001), phases={"items": 0.4, "wait": 0.11}))
    assert ["slow iterator"] == topics(run)


def threaded(threads: int, beside: float = 0.75) -> Call:
    """Cores worked a second for it, and most of that time in threads that libraries have made."""
    return call(cpu=1.0, cpu_beside=beside, threads=threads)


def test_threads_of_libraries_that_exceed_the_cores_are_told() -> None:
    """Four computed in each of two workers, and competed for two cores."""
    found = only(calls(threaded(9)), "inner threads")
    assert "4.0 x 2 threads on 2 cores" == found.figure
    assert "750 ms of the 1 s" in found.sentence


def test_threads_of_libraries_that_do_little_need_no_advice() -> None:
    """They took a tenth of the cores' time, or there are no more of them than cores."""
    assert [] == topics(calls(threaded(9, beside=0.1)))
    assert [] == topics(calls(threaded(1)))


def crowded(core_wait: float, workers: int = 8) -> Call:
    """Workers on two cores, whose items took four seconds in all."""
    return call(workers=workers, times=times(100, 0.04), core_wait=core_wait)


def test_workers_that_share_cores_are_told_where_items_compute() -> None:
    """Items waited for a core three quarters of their time."""
    assert "8 workers on 2 cores" == only(calls(crowded(3.0)), "too many workers").figure


def test_more_workers_than_cores_are_right_for_items_that_wait() -> None:
    """Items that sleep wait for no core; and as many workers as cores are not too many."""
    assert [] == topics(calls(crowded(0.05)))
    assert [] == topics(calls(crowded(3.0, workers=2)))


def test_waits_for_locks_are_told() -> None:
    """Items waited for more than half of their time."""
    assert "600 ms of 1 s" == only(calls(call(lock_wait=0.6)), "lock waits").figure
    assert [] == topics(calls(call(lock_wait=0.05)))


def replaced(count: int, why: str) -> Recorded:
    gone = [
        Worker(
            n, "process", 1, "", end=why, items=7, phases={"start": 0.1}, memory_peak=300_000_000
        )
        for n in range(count)
    ]
    return calls(call(), workers=tuple(gone))


def test_workers_replaced_because_of_memory_limit_are_told() -> None:
    """The figure is how many there were and after how many items."""
    found = only(replaced(5, "replaced after 7 items because of memory_limit"), "recycled workers")
    assert "5 workers after 7 items each" == found.figure
    assert 'memory_limit="600MB"' in found.code


def test_items_of_replaced_workers_are_those_of_a_typical_one() -> None:
    """One that ended early, or late, does not count."""
    run = replaced(3, "replaced because of memory_limit")
    workers = tuple(
        dataclasses.replace(worker, items=items)
        for worker, items in zip(run.workers, (1, 9, 70), strict=True)
    )
    found = only(dataclasses.replace(run, workers=workers), "recycled workers")
    assert "3 workers after 9 items each" == found.figure


def test_workers_replaced_now_and_then_need_no_advice() -> None:
    """Two of them, or by another option."""
    assert [] == topics(replaced(2, "replaced after 7 items because of memory_limit"))
    assert [] == topics(replaced(5, "replaced after 7 items because of tasks_per_worker"))


def test_the_dearest_advice_comes_first() -> None:
    """The order is that of the seconds concerned."""
    run = calls(call(phases={"items": 0.2, "wait": 0.31}, values=(table(2000),)))
    assert ["unmarked", "slow iterator"] == topics(run)


def test_an_advice_is_read_as_figure_sentence_and_code() -> None:
    """Two lines, the second of which is code."""
    said = str(Advice("topic", "3 x 4", "Twelve are too many.", "twelve()"))
    assert "3 x 4: Twelve are too many.\n    twelve()" == said


def test_spans_lost_by_the_ring_are_made_up_for() -> None:
    """What the chunks that are left took to send counts for all items of the call."""
    span = Span("report", 0.0, 0.004)
    left = Chunk(0, 0, 0, 0, 10, 0.0, 0.0, 0.1, 0.1, (span,), times(10, 1e-5))
    few = calls(call(times=times(1000, 1e-5), items=1000), chunks=(left,))
    assert "10 us to run, 400 us to send" == only(few, "small items").figure
