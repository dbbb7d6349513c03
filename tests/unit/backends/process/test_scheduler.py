"""The scheduler decides: these tests start no process."""

import sys
from collections import Counter, deque
from typing import Any

import pytest
from budget import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sharedtask.backends.base import Chunk, Limits, Team
from sharedtask.backends.process.scheduler import Scheduler
from sharedtask.backends.process.work_items import OpenCall, WorkItem
from sharedtask.backends.worker.envelope import Envelope

QUICK, SLOW = 0.001, 0.1


class FakeWorker:
    """A worker that runs nothing: the test says what it does."""

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.ran = self.seen_at = self.hand = self.at = 0
        self.leaving = self.ended = False
        self.stop_reason: object = None
        self.kill_reason: object = None
        self.work_items: deque[WorkItem] = deque()
        self.tokens: dict[int, bool] = {}
        self.asked: list[WorkItem] = []  # to be given up

    def free_request_slot(self) -> int:
        return 1 - self.work_items[0].request_slot if self.work_items else 0

    def in_hand(self) -> int:
        return self.hand

    def cancel(self, work_item: WorkItem) -> None:
        self.asked.append(work_item)

    def take_back(self, work_item: WorkItem) -> bool:
        self.cancel(work_item)
        return self.hand != work_item.number

    def begun(self, work_item: WorkItem) -> int:
        return self.at if self.hand == work_item.number else 0


class FakeTable:
    """Starts and dismisses fake workers, and notes what is sent."""

    def __init__(self) -> None:
        self.workers: dict[int, FakeWorker] = {}
        self.sent: list[tuple[int, Any]] = []  # serial of the worker, the first item of the chunk
        self.dismissed: list[int] = []
        self.last = 0

    def spawn(self, _call: OpenCall) -> FakeWorker:
        self.last += 1
        worker = self.workers[self.last] = FakeWorker(self.last)
        return worker

    def send(self, worker: FakeWorker, work_item: WorkItem) -> None:
        worker.tokens.update(dict.fromkeys(work_item.call.tokens, False))
        self.sent.append((worker.serial, work_item.chunk.items[0]))

    def dismiss(self, worker: FakeWorker) -> None:
        worker.leaving = True
        self.dismissed.append(worker.serial)


class FakeSink:
    """Lets every chunk begin, unless it refuses."""

    refuses = False

    def begun(self, _chunk: int) -> bool:
        return not self.refuses

    def report(self, _report: Any) -> None:
        pytest.fail("the scheduler reports nothing")


class FakeLeases:
    released = False

    def release(self) -> None:
        self.released = True


def a_call(
    limit: int = 2,
    *,
    team: Team | None = None,
    seconds: float | None = None,
    items: int | None = None,
    tokens: tuple[int, ...] = (),
    splits: bool = True,
) -> OpenCall:
    """A call of at most ``limit`` workers, which run ``items`` each before they are replaced."""
    fields: dict[str, Any] = {
        "task": "task",
        "header": b"",
        "constants": Envelope(b""),
        "leases": FakeLeases(),
        "needs": (),
        "limit": limit,
        "timeout": None,
        "limits": None if items is None else Limits(None, items),
        "splits": splits,
        "function": print,
        "sink": FakeSink(),
        "slot_table": None,
        "users": (team or Team()).chunks,
    }
    call = OpenCall(**fields)
    call.tokens, call.seconds = set(tokens), seconds
    return call


def a_chunk(call: OpenCall, *items: Any) -> WorkItem:
    return WorkItem(call, Chunk(0, 0, items or (0,)), 0, Envelope(b""))


class Bench:
    """A scheduler with fake workers."""

    def __init__(self) -> None:
        self.table = FakeTable()
        self.scheduler: Scheduler[FakeWorker] = Scheduler(self.table)

    def add(self, call: OpenCall, *items: Any) -> list[WorkItem]:
        """Add a chunk for each of the items."""
        work_items = [a_chunk(call, item) for item in items]
        for work_item in work_items:
            self.scheduler.add(work_item)
        return work_items

    def end(self, serial: int, *, is_used_up: bool = False) -> None:
        """A worker finishes its first chunk."""
        worker = self.table.workers[serial]
        worker.ran += len(worker.work_items[0].chunk.items)
        self.scheduler.end(worker, worker.work_items[0], is_used_up=is_used_up)

    def die(self, serial: int, *, again: bool = True) -> None:
        """A worker dies with its chunks, the last of which is looked at first."""
        worker = self.table.workers.pop(serial)
        for work_item in reversed(list(worker.work_items)):
            self.scheduler.lose(worker, work_item, work_item if again else None)
        self.scheduler.fill_idle()

    def worker(self, serial: int = 1) -> FakeWorker:
        return self.table.workers[serial]

    @property
    def sent(self) -> list[tuple[int, Any]]:
        return self.table.sent

    def order(self) -> list[Any]:
        """The first items of the chunks in the order in which they were sent."""
        return [item for _, item in self.sent]

    def waiting(self) -> list[Any]:
        return [work_item.chunk.items[0] for work_item in self.scheduler.queue]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ------------------------------------------------------------------------- choosing a worker


def test_first_chunk_starts_a_worker(bench: Bench) -> None:
    """A pool without workers starts one for the first chunk."""
    bench.add(a_call(), "a")
    assert [(1, "a")] == bench.sent


def test_chunks_start_as_many_workers_as_the_call_may_have(bench: Bench) -> None:
    """Each chunk gets a worker of its own up to the call's limit; the others wait."""
    bench.add(a_call(limit=2), "a", "b", "c")
    assert [(1, "a"), (2, "b")] == bench.sent
    assert ["c"] == bench.waiting()


def test_idle_worker_is_taken_before_one_is_started(bench: Bench) -> None:
    """A warm worker takes the next chunk, although more may be started."""
    bench.add(a_call(), "a")
    bench.end(1)
    bench.add(a_call(), "b")
    assert [(1, "a"), (1, "b")] == bench.sent


def test_worker_that_has_the_values_is_preferred(bench: Bench) -> None:
    """Of two idle workers the one that has all values of the call is taken."""
    bench.add(a_call(tokens=(1,)), "a")
    bench.add(a_call(tokens=(2,)), "b")
    bench.end(1)
    bench.end(2)
    bench.add(a_call(tokens=(2,)), "c")
    assert (2, "c") == bench.sent[-1]


def test_worker_with_most_of_the_values_is_preferred(bench: Bench) -> None:
    """If no idle worker has all values, the one that has most of them is taken."""
    bench.add(a_call(tokens=(1,)), "a")
    bench.add(a_call(tokens=(2, 3)), "b")
    bench.end(1)
    bench.end(2)
    bench.add(a_call(tokens=(1, 2, 3)), "c")
    assert (2, "c") == bench.sent[-1]


def test_pool_does_not_grow_beyond_the_limit_of_the_call(bench: Bench) -> None:
    """A call starts no worker where the pool has as many as the call may use."""
    bench.add(a_call(limit=2), "a", "b")
    bench.add(a_call(limit=2), "c")
    assert [1, 2] == list(bench.table.workers)
    assert ["c"] == bench.waiting()


def test_call_with_a_larger_limit_starts_more(bench: Bench) -> None:
    """The pool grows to the limit of the call that asks for most."""
    bench.add(a_call(limit=1), "a")
    bench.add(a_call(limit=3), "b", "c")
    assert [(1, "a"), (2, "b"), (3, "c")] == bench.sent


@pytest.mark.parametrize("state", ["ended", "leaving", "stop_reason", "kill_reason"])
def test_worker_that_ends_gets_no_chunk(bench: Bench, state: str) -> None:
    """A worker that is dead, leaving, stopped or killed gets no chunk."""
    bench.add(a_call(), "a")
    bench.end(1)
    setattr(bench.worker(), state, True)
    bench.add(a_call(), "b")
    assert (2, "b") == bench.sent[-1]


def test_worker_that_leaves_does_not_count(bench: Bench) -> None:
    """A worker that is leaving makes place for another one."""
    bench.add(a_call(limit=1), "a")
    bench.worker().leaving = True
    bench.add(a_call(limit=1), "b")
    assert (2, "b") == bench.sent[-1]


# --------------------------------------------------------------------------- taking one back


def numbered(call: OpenCall, *numbers: int) -> list[WorkItem]:
    """Chunks of two items, with these numbers."""
    return [WorkItem(call, Chunk(n, 2 * n, (n, n)), 0, Envelope(b"")) for n in numbers]


def test_waiting_chunk_is_taken_back_whole(bench: Bench) -> None:
    """Nothing of it has begun, and the chunks beside it stay in their order."""
    call = a_call(limit=1, seconds=SLOW)
    for work_item in numbered(call, 1, 2, 3, 4):
        bench.scheduler.add(work_item)
    assert 0 == bench.scheduler.withdraw(call, 3)
    assert [2, 4] == bench.waiting()
    assert 3 == call.pending


def test_last_waiting_chunk_leaves_an_empty_queue(bench: Bench) -> None:
    """A call whose only waiting chunk is taken back has no turn any more."""
    call = a_call(limit=1, seconds=SLOW)
    for work_item in numbered(call, 1, 2):
        bench.scheduler.add(work_item)
    assert 0 == bench.scheduler.withdraw(call, 2)
    assert not bench.scheduler.queue.teams


def test_chunk_in_hand_is_taken_back_from_its_current_item_on(bench: Bench) -> None:
    """The worker is asked to end it; what it may have begun stays its own."""
    call = a_call(limit=1)
    (work_item,) = numbered(call, 1)
    bench.scheduler.add(work_item)
    bench.worker().hand, bench.worker().at = work_item.number, 1
    assert 1 == bench.scheduler.withdraw(call, 1)
    assert [work_item] == bench.worker().asked
    assert not work_item.cancelled


def test_chunk_in_the_socket_is_taken_back_whole(bench: Bench) -> None:
    """A worker that has not begun it gives it up, and nothing is reported of it."""
    call = a_call(limit=1, seconds=QUICK)
    first, second = numbered(call, 1, 2)
    bench.scheduler.add(first)
    bench.scheduler.add(second)
    bench.worker().hand = first.number
    assert 0 == bench.scheduler.withdraw(call, 2)
    assert second.cancelled


def test_chunk_that_is_gone_counts_as_begun(bench: Bench) -> None:
    """Of a chunk that has ended, all items may have begun."""
    call = a_call()
    (work_item,) = numbered(call, 1)
    bench.scheduler.add(work_item)
    bench.end(1)
    assert bench.scheduler.withdraw(call, 1) >= 2


# -------------------------------------------------------------------------------- prefetching


def test_quick_chunk_waits_in_a_worker(bench: Bench) -> None:
    """A second chunk is sent to a busy worker if chunks of the call are quick; a third waits."""
    bench.add(a_call(limit=1, seconds=QUICK), "a", "b", "c")
    assert [(1, "a"), (1, "b")] == bench.sent
    assert ["c"] == bench.waiting()


@pytest.mark.parametrize("seconds", [SLOW, None])
def test_other_chunk_waits_for_a_free_worker(bench: Bench, seconds: float | None) -> None:
    """A chunk that may take long is not sent to a busy worker."""
    bench.add(a_call(limit=1, seconds=seconds), "a", "b")
    assert [(1, "a")] == bench.sent


def test_worker_is_refilled_with_two_quick_chunks(bench: Bench) -> None:
    """Once a call's chunks are known to be quick, an idle worker gets two of them."""
    call = a_call(limit=1)
    bench.add(call, "a", "b", "c", "d")
    call.note(QUICK)
    bench.end(1)
    assert [(1, "a"), (1, "b"), (1, "c")] == bench.sent


def test_worker_prefetches_its_own_call_behind_a_slow_one(bench: Bench) -> None:
    """The second chunk in a worker may be of the call that it runs, though a slow one is next."""
    quick, slow = a_call(limit=1, seconds=QUICK), a_call(limit=1, seconds=SLOW)
    bench.add(quick, "q1", "q2", "q3", "q4")
    bench.add(slow, "s")
    bench.end(1)  # q3
    bench.end(1)  # s is next, and is not prefetched
    assert ["q1", "q2", "q3", "q4"] == bench.order()
    bench.end(1)
    bench.end(1)
    assert "s" == bench.order()[-1]


def test_call_at_its_limit_prefetches_into_its_own_workers(bench: Bench) -> None:
    """The second chunk in a worker of the call takes no further worker."""
    call = a_call(limit=1, seconds=QUICK)
    bench.add(a_call(limit=2, seconds=SLOW), "x", "y")
    bench.add(call, "a", "b", "c")
    bench.end(1)
    assert [(1, "a"), (1, "b")] == bench.sent[2:]


def test_two_chunks_in_a_worker_have_different_slots(bench: Bench) -> None:
    """Each of the two chunks in a worker has a word on the status page of its own."""
    work_items = bench.add(a_call(limit=1, seconds=QUICK), "a", "b")
    assert [0, 1] == [work_item.request_slot for work_item in work_items]


# ------------------------------------------------------------------------------ order, fairness


def test_chunks_of_a_call_are_sent_in_order(bench: Bench) -> None:
    """A worker that finished a chunk gets the one that has waited longest."""
    bench.add(a_call(limit=1), *range(5))
    for _ in range(4):
        bench.end(1)
    assert list(range(5)) == bench.order()


def test_calls_take_turns(bench: Bench) -> None:
    """Calls that wait get a worker in turn, in the order of their arrival."""
    first, second, third = a_call(limit=1), a_call(limit=1), a_call(limit=1)
    bench.add(first, "a1", "a2", "a3")
    bench.add(second, "b1", "b2")
    bench.add(third, "c1")
    for _ in range(5):
        bench.end(1)
    assert ["a1", "a2", "b1", "c1", "a3", "b2"] == bench.order()


def test_calls_of_a_team_take_turns(bench: Bench) -> None:
    """Within a team, calls that wait get a worker in turn as well."""
    team = Team()
    bench.add(a_call(limit=1, team=team), "a1", "a2", "a3")
    bench.add(a_call(limit=1, team=team), "b1", "b2")
    for _ in range(4):
        bench.end(1)
    assert ["a1", "a2", "b1", "a3", "b2"] == bench.order()


def test_chunk_that_is_begun_again_is_next_in_its_team(bench: Bench) -> None:
    """Chunks of a worker that died go before the other calls of its team."""
    team = Team()
    for item in "abc":
        bench.add(a_call(limit=1, team=team, seconds=QUICK), item)
    bench.die(1)
    assert [(1, "a"), (1, "b"), (2, "a"), (2, "b")] == bench.sent


def test_late_call_does_not_wait_for_a_long_one(bench: Bench) -> None:
    """A chunk behind a thousand of another call is sent with the next turn."""
    bench.add(a_call(limit=1), *range(1000))
    bench.end(1)
    bench.add(a_call(limit=1), "late")
    bench.end(1)
    bench.end(1)
    assert [0, 1, 2, "late"] == bench.order()


def test_chunk_that_is_begun_again_is_next(bench: Bench) -> None:
    """A chunk of a worker that died goes before all others, of its own call and of others."""
    bench.add(a_call(limit=1), "a1", "a2")
    bench.add(a_call(limit=1), "b1")
    bench.die(1)
    assert [(1, "a1"), (2, "a1")] == bench.sent
    bench.end(2)
    bench.end(2)
    assert ["b1", "a2"] == bench.order()[2:]


def test_chunks_of_a_dead_worker_are_begun_again_in_order(bench: Bench) -> None:
    """Both chunks of a worker that died are next, the first one first."""
    bench.add(a_call(limit=1, seconds=QUICK), "a1", "a2", "a3")
    bench.die(1)
    assert [(2, "a1"), (2, "a2")] == bench.sent[2:]


def test_end_of_a_chunk_costs_the_same_however_many_wait(bench: Bench) -> None:
    """The calls made at the end of a chunk do not grow with the chunks or the calls that wait."""

    def calls_at_an_end() -> int:
        found: Counter[str] = Counter()
        sys.setprofile(lambda _frame, event, _arg: found.update((event,)))
        bench.end(1)
        sys.setprofile(None)
        return found["call"] + found["c_call"]

    bench.add(a_call(limit=1), *range(10))
    for _ in range(3):
        bench.add(a_call(limit=1), 0)
    few = calls_at_an_end()
    bench.add(a_call(limit=1), *range(2000))
    for _ in range(2000):
        bench.add(a_call(limit=1), 0)
    assert few >= calls_at_an_end()


# -------------------------------------------------------------------------------------- limits


def test_calls_of_a_team_share_their_limit(bench: Bench) -> None:
    """Calls of one team together use no more workers than the limit of one of them."""
    team = Team()
    bench.add(a_call(limit=4), *"wxyz")
    for serial in (1, 2, 3, 4):
        bench.end(serial)
    for item in "abc":
        bench.add(a_call(limit=2, team=team), item)
    assert ["a", "b"] == bench.order()[4:]
    assert ["c"] == bench.waiting()


def test_team_goes_on_when_it_has_room(bench: Bench) -> None:
    """When a chunk of a team ends, the next call of the team gets the worker."""
    team = Team()
    for item in "abcd":
        bench.add(a_call(limit=1, team=team), item)
    for _ in range(3):
        bench.end(1)
    assert [(1, "a"), (1, "b"), (1, "c"), (1, "d")] == bench.sent


def test_full_call_does_not_block_others(bench: Bench) -> None:
    """A call at its limit waits for its own worker; the next call gets the free one."""
    bench.add(a_call(limit=2), "x", "y")
    bench.add(a_call(limit=1), "a1", "a2")
    bench.add(a_call(limit=2), "b1")
    bench.end(1)
    bench.end(2)
    assert [(1, "a1"), (2, "b1")] == bench.sent[2:]


def test_call_that_was_full_keeps_its_turn(bench: Bench) -> None:
    """A call that had no room is served by when it got a worker last, not behind all others."""
    busy = a_call(limit=2)
    bench.add(busy, "x", "y")
    bench.add(a_call(limit=1), "a1", "a2")
    bench.end(1)  # a1
    for item in "bcd":
        bench.add(a_call(limit=1), item)
    bench.end(2)  # b: a2 has no room yet
    bench.end(1)  # a2: its call waits longest
    assert ["x", "y", "a1", "b", "a2"] == bench.order()


def test_idle_worker_is_left_idle_if_no_call_has_room(bench: Bench) -> None:
    """A free worker gets no chunk of a call that uses as many as it may."""
    bench.add(a_call(limit=2), "x", "y")
    bench.add(a_call(limit=1), "a", "b")
    bench.end(1)
    bench.end(2)
    assert ["x", "y", "a"] == bench.order()
    assert not bench.worker(2).work_items


# --------------------------------------------------------------------------------- used-up workers


def test_used_up_worker_is_replaced(bench: Bench) -> None:
    """A worker that is used up at the end of a chunk is replaced by a new one."""
    bench.add(a_call(limit=1), "a", "b")
    bench.end(1, is_used_up=True)
    assert bench.worker(1).leaving
    assert [(1, "a"), (2, "b")] == bench.sent


def test_leaving_worker_is_dismissed_at_its_last_chunk(bench: Bench) -> None:
    """A worker that was told to leave while it was busy gets no further chunk."""
    bench.add(a_call(limit=1), "a", "b")
    bench.worker().leaving = True
    bench.end(1)
    assert [1] == bench.table.dismissed
    assert [(1, "a"), (2, "b")] == bench.sent


def test_worker_that_has_run_its_items_makes_place(bench: Bench) -> None:
    """An idle worker that has run as many items as the call allows is dismissed for a new one."""
    bench.add(a_call(limit=1), "a")
    bench.end(1)
    bench.add(a_call(limit=1, items=1), "b")
    assert bench.worker(1).leaving
    assert (2, "b") == bench.sent[-1]


def test_worker_that_gets_idle_makes_place(bench: Bench) -> None:
    """The chunk that waits may not run in the worker that gets idle, which is replaced."""
    bench.add(a_call(limit=1), "a")
    bench.add(a_call(limit=1, items=1), "b")
    bench.end(1)
    assert bench.worker(1).leaving
    assert [(1, "a"), (2, "b")] == bench.sent


def test_used_up_worker_serves_calls_without_a_count(bench: Bench) -> None:
    """A worker that may not run the first call in the queue gets a chunk of the next one."""
    bench.add(a_call(limit=2), "x", "y")
    bench.end(1)
    bench.worker(1).ran = 5
    bench.add(a_call(limit=2), "z")
    bench.add(a_call(limit=2, items=3), "counted")
    bench.add(a_call(limit=2), "free")
    bench.end(1)
    assert (1, "free") == bench.sent[-1]


def test_chunk_with_a_count_is_not_prefetched(bench: Bench) -> None:
    """A worker whose items are counted gets its next chunk when the count is known."""
    bench.add(a_call(limit=1, items=10, seconds=QUICK), "a", "b")
    assert [(1, "a")] == bench.sent


def test_chunk_may_run_the_items_that_its_worker_has_left(bench: Bench) -> None:
    """A chunk is told how many items its worker may still run."""
    call = a_call(limit=1, items=10)
    bench.add(call, "a")
    bench.end(1)
    (work_item,) = bench.add(call, "b")
    assert 9 == work_item.chunk_limits.items


# -------------------------------------------------------------------------------------- the end


def test_chunk_that_may_not_begin_is_dropped(bench: Bench) -> None:
    """If the sink takes a chunk back, its call stays open for others; the next call goes on."""
    over, other = a_call(limit=1), a_call(limit=1)
    bench.add(over, "a1", "a2")
    bench.add(other, "b")
    over.sink.refuses = True  # type: ignore[attr-defined]
    bench.end(1)
    assert (0, False) == (over.pending, over.closed)
    assert ["a1", "b"] == bench.order()


def test_cancelled_call_loses_its_waiting_chunks(bench: Bench) -> None:
    """Waiting chunks of a call that is given up are dropped, those of others stay in order."""
    kept, dropped = a_call(limit=1), a_call(limit=1)
    bench.add(kept, "a1", "a2", "a3")
    bench.add(dropped, "b1", "b2")
    bench.scheduler.cancel(dropped, kill_at=1.0)
    assert ["a2", "a3"] == bench.waiting()
    assert 0 == dropped.pending


def test_cancelled_call_asks_its_workers(bench: Bench) -> None:
    """A worker is asked to give up its chunk of the call, and only of this call."""
    mine, other = a_call(limit=2), a_call(limit=2)
    (work_item,) = bench.add(mine, "a")
    bench.add(other, "b")
    bench.scheduler.cancel(mine, kill_at=1.0)
    assert [work_item] == bench.worker(1).asked == bench.scheduler.given_up
    assert [] == bench.worker(2).asked


def test_cancelled_member_leaves_its_team(bench: Bench) -> None:
    """The other calls of the team go on in order."""
    team = Team()
    calls = [a_call(limit=1, team=team) for _ in range(4)]
    for number, call in enumerate(calls):
        bench.add(call, number)
    bench.scheduler.cancel(calls[1], kill_at=1.0)
    bench.end(1)
    bench.end(1)
    assert [0, 2, 3] == bench.order()


def test_closed_call_is_released_with_its_last_chunk(bench: Bench) -> None:
    """The values of a closed call are released when no worker has a chunk of it."""
    call = a_call(limit=1)
    bench.add(call, "a", "b")
    call.closed = True
    bench.scheduler.cancel(call, kill_at=1.0)
    assert not call.leases.released  # type: ignore[attr-defined]
    bench.end(1)
    assert call.leases.released  # type: ignore[attr-defined]


def test_given_up_chunk_is_overdue_at_its_time(bench: Bench) -> None:
    """A given-up chunk has until its time to end; then it is reported with its worker."""
    call = a_call(limit=1)
    (work_item,) = bench.add(call, "a")
    bench.scheduler.cancel(call, kill_at=5.0)
    assert [] == list(bench.scheduler.overdue(4.9))
    assert [(bench.worker(), work_item)] == list(bench.scheduler.overdue(5.0))


@pytest.mark.parametrize("dies", [True, False])
def test_given_up_chunk_that_ends_is_forgotten(bench: Bench, dies: bool) -> None:
    """A given-up chunk that ends, or whose worker dies, is not overdue any more."""
    call = a_call(limit=1)
    bench.add(call, "a")
    bench.scheduler.cancel(call, kill_at=1.0)
    if dies:
        bench.die(1, again=False)
    else:
        bench.end(1)
    assert [] == bench.scheduler.given_up


def test_chunk_of_a_dead_worker_stays_pending(bench: Bench) -> None:
    """A chunk that replaces the one of a dead worker keeps the call pending."""
    call = a_call(limit=1)
    (work_item,) = bench.add(call, "a")
    worker = bench.table.workers.pop(1)
    bench.scheduler.lose(worker, work_item, a_chunk(call, "each"))
    assert (1, ["each"]) == (call.pending, bench.waiting())


def test_chunk_of_a_dead_worker_may_be_over(bench: Bench) -> None:
    """A chunk that is not begun again is done, and its worker has room for the call's next."""
    call = a_call(limit=1)
    bench.add(call, "a", "b")
    bench.die(1, again=False)
    assert [(1, "a"), (2, "b")] == bench.sent
    assert 1 == call.pending


def test_all_chunks_are_dropped(bench: Bench) -> None:
    """At the end of the pool all chunks come back, and no call is pending."""
    call = a_call(limit=1)
    work_items = bench.add(call, "a", "b", "c")
    assert sorted(map(id, work_items)) == sorted(map(id, bench.scheduler.drop_all()))
    assert (0, []) == (call.pending, bench.waiting())


@pytest.mark.parametrize("place", ["begun", "send"])
def test_exception_in_the_middle_loses_no_chunk(
    bench: Bench, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If sending a waiting chunk raises, the end of the pool still finds it, and once."""
    call = a_call(limit=1)
    bench.add(a_call(limit=1), "a")
    (waiting,) = bench.add(call, "b")
    where = call.sink if place == "begun" else bench.table
    with monkeypatch.context() as patch:
        patch.setattr(where, place, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bench.end(1)
    assert [waiting] == bench.scheduler.drop_all()


# ------------------------------------------------------------------------------------ rebalance


def busy_and_idle(bench: Bench, *, begun: bool = False) -> tuple[OpenCall, list[WorkItem]]:
    """Worker 1 has two chunks of a call and works on one of them; worker 2 is idle."""
    call = a_call(limit=2, seconds=QUICK)
    bench.add(call, "x", "y")
    work_items = bench.add(call, "z")
    first = bench.worker(1).work_items[0]
    bench.end(2)
    bench.worker(1).hand = (work_items[0] if begun else first).number
    bench.scheduler.rebalance(bench.worker(1))  # notes the current chunk
    return call, work_items


def test_waiting_chunk_is_taken_back_for_an_idle_worker(bench: Bench) -> None:
    """A chunk behind a long one goes to a worker that is idle, under a new number."""
    call, (old,) = busy_and_idle(bench)
    assert [(1, "x"), (2, "y"), (1, "z")] == bench.sent
    bench.scheduler.rebalance(bench.worker(1))
    assert (2, "z") == bench.sent[-1]
    assert old.cancelled
    assert old.number != bench.worker(2).work_items[0].number
    assert 3 == call.pending  # until the worker confirms that it did not run the old one


def test_chunk_that_was_begun_is_not_taken_back(bench: Bench) -> None:
    """A worker that has begun the second chunk keeps it."""
    _, (old,) = busy_and_idle(bench, begun=True)
    bench.scheduler.rebalance(bench.worker(1))
    assert not old.cancelled
    assert 3 == len(bench.sent)


def test_chunk_is_taken_back_at_the_second_look_only(bench: Bench) -> None:
    """A worker that went on to another chunk since the last look is left alone."""
    busy_and_idle(bench)
    bench.worker(1).hand += 1000
    bench.scheduler.rebalance(bench.worker(1))
    assert [] == bench.worker(1).asked


def test_nothing_is_taken_back_without_an_idle_worker(bench: Bench) -> None:
    """While all workers are busy, chunks stay where they are."""
    busy_and_idle(bench)
    bench.add(a_call(limit=2, seconds=SLOW), "w")
    bench.scheduler.rebalance(bench.worker(1))
    assert [] == bench.worker(1).asked


@pytest.mark.parametrize(("items", "splits", "asked"), [(9, True, 1), (1, True, 0), (9, False, 0)])
def test_long_chunk_is_asked_to_end_early(
    bench: Bench, items: int, splits: bool, asked: int
) -> None:
    """The rest of a chunk is divided between idle workers if the call allows it."""
    call = a_call(limit=2, splits=splits)
    bench.scheduler.add(a_chunk(call, *range(items)))
    bench.add(call, "y")
    bench.end(2)
    bench.worker(1).hand = bench.worker(1).work_items[0].number
    bench.scheduler.rebalance(bench.worker(1))
    bench.scheduler.rebalance(bench.worker(1))
    assert asked == len(bench.worker(1).asked)


def test_nothing_is_taken_back_while_others_wait(bench: Bench) -> None:
    """An idle worker that cannot take what waits does not take from others either."""
    busy_and_idle(bench)
    full = a_call(limit=1)
    bench.worker(2).ended = True
    bench.scheduler.queue.append(a_chunk(full, "w"))
    bench.worker(2).ended = False
    bench.scheduler.rebalance(bench.worker(1))
    assert [] == bench.worker(1).asked


# ------------------------------------------------------------------------------- any order of all


class AnyOrder(RuleBasedStateMachine):
    """Calls, teams, ends, deaths and cancellations in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.calls: list[OpenCall] = []
        self.alive: dict[str, OpenCall] = {}  # chunks that must still run, by their name
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.number = 0

    def workers(self) -> list[FakeWorker]:
        return list(self.bench.table.workers.values())

    def busy(self) -> list[FakeWorker]:
        return [worker for worker in self.workers() if worker.work_items]

    @rule(
        limit=st.integers(1, 4),
        items=st.sampled_from([None, None, 1, 3]),
        seconds=st.sampled_from([QUICK, SLOW, None]),
        joins=st.booleans(),
        draw=st.data(),
    )
    def call(
        self, limit: int, items: int | None, seconds: float | None, joins: bool, draw: Any
    ) -> None:
        """A call begins, alone or in the team of another one."""
        call = a_call(limit, items=items, seconds=seconds)
        if joins and self.calls:
            other = draw.draw(st.sampled_from(self.calls))
            call.users, call.limit = other.users, other.limit
            call.limits = other.limits
        self.calls.append(call)

    @precondition(lambda self: self.calls)
    @rule(draw=st.data(), count=st.integers(1, 6))
    def add(self, draw: Any, count: int) -> None:
        """Chunks are added to a call that is not closed."""
        call = draw.draw(st.sampled_from(self.calls))
        for _ in range(0 if call.closed else count):
            self.number += 1
            self.alive[str(self.number)] = call
            self.bench.add(call, str(self.number))

    @precondition(lambda self: self.busy())
    @rule(draw=st.data(), used_up=st.booleans())
    def end(self, draw: Any, used_up: bool) -> None:
        """A worker finishes its first chunk."""
        worker = draw.draw(st.sampled_from(self.busy()))
        self._note_end(worker.work_items[0])
        self.bench.end(worker.serial, is_used_up=used_up)

    def _note_end(self, work_item: WorkItem) -> None:
        name = work_item.chunk.items[0]
        if not work_item.cancelled:
            self.ended[name] += 1
            self.alive.pop(name, None)

    @precondition(lambda self: self.workers())
    @rule(draw=st.data(), again=st.booleans())
    def die(self, draw: Any, again: bool) -> None:
        """A worker dies; its chunks are begun again, but for those that were given up."""
        worker = draw.draw(st.sampled_from(self.workers()))
        del self.bench.table.workers[worker.serial]
        for work_item in reversed(list(worker.work_items)):
            repeats = again and not work_item.cancelled
            if not repeats:
                self._note_end(work_item)
            self.retried[work_item.chunk.items[0]] += repeats
            self.bench.scheduler.lose(worker, work_item, work_item if repeats else None)
        self.bench.scheduler.fill_idle()

    @precondition(lambda self: self.calls)
    @rule(draw=st.data())
    def cancel(self, draw: Any) -> None:
        """A call is closed and given up."""
        call = draw.draw(st.sampled_from(self.calls))
        call.closed = True
        if call.pending:
            self.bench.scheduler.cancel(call, kill_at=1.0)
        else:
            call.release()
        self.alive = {name: of for name, of in self.alive.items() if of is not call}

    @precondition(lambda self: self.busy())
    @rule(draw=st.data(), steps=st.booleans())
    def rebalance(self, draw: Any, steps: bool) -> None:
        """A worker is looked at, twice while it works on one chunk."""
        worker = draw.draw(st.sampled_from(self.busy()))
        worker.hand = worker.work_items[-1 if steps else 0].number
        for _ in range(2):
            self.bench.scheduler.rebalance(worker)

    @invariant()
    def no_chunk_is_lost_and_none_is_twice(self) -> None:
        """Each chunk that must run is in the queue or with one worker, and nowhere else."""
        found = Counter(self.bench.waiting())
        for worker in self.workers():
            found.update(t.chunk.items[0] for t in worker.work_items if not t.cancelled)
        assert found == Counter(dict.fromkeys(self.alive, 1))
        assert all(1 == times for times in self.ended.values())

    @invariant()
    def no_call_is_above_its_limit(self) -> None:
        """The workers that have chunks of a team are no more than its limit."""
        for call in self.calls:
            has = [
                w for w in self.workers() if any(t.call.users is call.users for t in w.work_items)
            ]
            assert {w.serial for w in has} == set(call.users)
            assert len(has) <= call.limit

    @invariant()
    def no_worker_has_too_much(self) -> None:
        """A worker has at most two chunks."""
        assert all(len(worker.work_items) <= 2 for worker in self.workers())

    @invariant()
    def counts_are_right(self) -> None:
        """A call counts its chunks, and is released when it is closed and has none."""
        for call in self.calls:
            waiting = sum(work_item.call is call for work_item in self.bench.scheduler.queue)
            running = sum(t.call is call for w in self.workers() for t in w.work_items)
            assert waiting + running == call.pending
            if call.closed and not call.pending:
                assert [] == call.unreleased

    @invariant()
    def no_worker_is_idle_while_a_chunk_for_it_waits(self) -> None:
        """An idle worker takes any chunk whose call has room and that it may run."""
        for work_item in self.bench.scheduler.queue:
            call = work_item.call
            if len(call.users) < call.limit:
                for worker in self.workers():
                    assert worker.work_items or not self.bench.scheduler._can_take(worker, call)

    @invariant()
    def next_line_has_waited_longest(self) -> None:
        """The queue finds the team with room that has the earliest turn."""
        queue = self.bench.scheduler.queue
        turns = [
            team.turn
            for team in queue.teams.values()
            if len(team.next_call.users) < team.next_call.limit
        ]
        first = queue.first()
        assert min(turns, default=None) == (None if first is None else first.turn)

    def teardown(self) -> None:
        """All chunks run in the end."""
        for _ in range(10_000):
            if not self.busy():
                break
            self._note_end(self.busy()[0].work_items[0])
            self.bench.end(self.busy()[0].serial)
            self._drop_those_that_left()
        assert [] == self.bench.waiting()
        assert {} == self.alive

    def _drop_those_that_left(self) -> None:
        for worker in self.workers():
            if worker.leaving and not worker.work_items:
                del self.bench.table.workers[worker.serial]
                self.bench.scheduler.fill_idle()


AnyOrder.TestCase.settings = settings(
    max_examples=examples(150), stateful_step_count=60, deadline=None
)
TestAnyOrder = AnyOrder.TestCase
