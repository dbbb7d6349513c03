"""Views with many gaps: gathered to be stored, and compared without that while no one writes."""

import ctypes
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from budget import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from sharedtask import CopyOnWrite, Shared, parallel
from sharedtask.memory import dirty_pages, mapping
from sharedtask.memory.payload import Payload
from sharedtask.memory.strided import Scattered
from sharedtask.serialization import codec
from sharedtask.store import stores
from sharedtask.store.publication import Publication
from sharedtask.testing import arrays, assert_same
from sharedtask.testing.strategies import views

pytestmark = pytest.mark.timeout(110)

some = settings(
    deadline=None, max_examples=examples(150), suppress_health_check=[HealthCheck.too_slow]
)
PAGE = 4096
COUNT = 1 << 20  # elements of the base: a quarter of them is watched where the kernel can


@pytest.fixture(params=["watched", "compared"])
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to find changes; the answers are the same."""
    name: str = request.param
    if name == "compared":
        monkeypatch.setenv("SHAREDTASK_WATCH", "off")
    else:
        monkeypatch.delenv("SHAREDTASK_WATCH", raising=False)
    return name


@pytest.fixture
def watching() -> None:
    """Where the kernel watches no memory, everything is compared."""
    base = np.zeros(COUNT)
    found = dirty_pages.watch(base.ctypes.data, base.nbytes)
    if found is None:
        pytest.skip("userfaultfd is not to be had here")
    found.release()


def at(places: Any, table: Shared[Any]) -> list[float]:
    return [float(table[k]) for k in places]


def adds(item: int, table: CopyOnWrite[Any]) -> float:
    table[item] += 1
    return float(table.sum())


LOOKS: dict[str, Callable[[Any], Any]] = {
    "every fourth": lambda b: b[::4],
    "backwards": lambda b: b[::-4],
    "columns": lambda b: b.reshape(-1, 64)[:, ::3],
    "one column": lambda b: np.tile(b, 8).reshape(-1, 64)[:, 3],
    "tile": lambda b: b.reshape(1024, 1024)[:400, 300:700],
    "F order": lambda b: b.reshape(1024, 1024)[::2, ::2].T,
    "repeated": lambda b: np.broadcast_to(b[::4], (3, COUNT // 4)),
    "two that overlap": lambda b: {"a": b[::4], "b": b[1::4]},
    "two that are equal": lambda b: [b[::4], b[::4]],
    "two that share columns": lambda b: [b.reshape(-1, 16)[:, :3], b.reshape(-1, 16)[:, 2:5]],
    "of another step": lambda b: (b[::4], b[::8]),
}


@pytest.fixture
def publish() -> Iterator[Callable[..., Publication]]:
    """Publish a value, watched."""
    made: list[Publication] = []

    def publish(value: Any, keep: Any = stores.keep) -> Publication:
        made.append(Publication(codec.encode(value), watched=True, keep=keep))
        return made[-1]

    yield publish
    for publication in made:
        publication.release()


def is_current(publication: Publication, value: Any) -> tuple[bool, int]:
    """Whether it still is what was published, and the bytes that were needed to tell."""
    tracemalloc.start()
    try:
        found = publication.matches(codec.encode(value))
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SMALL = 1 << 18


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_nothing_is_gathered_while_nobody_writes(look: Any, publish: Any) -> None:
    """An unchanged view is known by its place: to tell takes no copy of its elements."""
    base = np.arange(float(COUNT))
    value = look(base)
    publication = publish(value)
    assert_same(value, publication.value())
    for _ in range(3):
        found, needed = is_current(publication, value)
        assert found
        assert needed < SMALL


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_to_compare_takes_no_dense_copy(look: Any, publish: Any, watch: str) -> None:
    """After a write, and where no memory can be watched, a little is gathered at a time."""
    base = np.arange(float(COUNT))
    value = look(base)
    publication = publish(value)
    for _ in range(3):
        base[COUNT // 2] = base[COUNT // 2]
        found, needed = is_current(publication, value)
        assert found
        assert needed < 5 * SMALL
    assert watch


def test_to_store_takes_no_dense_copy(publish: Any) -> None:
    """A view is gathered into the segment a little at a time."""
    base = np.arange(4.0 * COUNT)  # beyond 4 MiB it is written through a mapping, else by write()
    for view in (base[::4], base[7:-40_000:4], base[::16]):
        tracemalloc.start()
        try:
            publication = publish(view)
            assert tracemalloc.get_traced_memory()[1] < 2 * SMALL
        finally:
            tracemalloc.stop()
        assert_same(view, publication.value())


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("step", [4, -4, 100])
def test_write_is_seen_wherever_it_is(step: int, at_end: bool, watch: str, publish: Any) -> None:
    """Elements, first and last among them, change the value; what lies between does not."""
    base = np.zeros(COUNT * max(1, abs(step) // 4) + 3)[1:]
    view = base[::step]
    elements = set(range(len(base))[::step])
    ends = [0, 1, 2, PAGE // 8, len(base) // 2, len(base) // 2 + 1]
    places = [len(base) - 1 - k for k in ends] if at_end else ends
    for place in [*places, *places]:
        publication = publish(view)
        for _ in range(2):
            assert publication.matches(codec.encode(view))
        base[place] += 1
        assert (place not in elements) == publication.matches(codec.encode(view))
        if place not in elements:
            assert publication.matches(codec.encode(view))
            base[range(len(base))[::step][7]] += 1
            assert not publication.matches(codec.encode(view))
    assert watch


def test_change_is_published_again(backend: Any, watch: str) -> None:
    """Each call sees the elements as they are, whatever was written: them, between them, both."""
    task = parallel(backend=backend)(at)
    base = np.zeros(COUNT)
    view = base[::-4]
    place = range(COUNT)[::-4][9]
    expected = 0.0
    for n in range(1, 12):
        if n % 2:
            base[place] = expected = float(n)
        if n % 3:
            base[place + 1] = -1.0
        assert [[expected, base[-1]]] == task.map([[9, 0]], table=view)
    assert watch


def test_values_over_one_base_are_seen_changed(backend: Any, watch: str) -> None:
    """Two views of one table, as two values of their own: a write is seen in the one it is in."""
    task = parallel(backend=backend)(at)
    base = np.zeros(COUNT)
    left, right = base[::4], base[1::4]
    for n in range(1, 8):
        base[400 + n % 2] = n
        assert [[base[400]]] == task.map([[100]], table=left)
        assert [[base[401]]] == task.map([[100]], table=right)
        assert [[base[400]]] == task.map([[100]], table=left)
    assert watch


@pytest.mark.parametrize("role", [Shared, CopyOnWrite], ids=["Shared", "CopyOnWrite"])
def test_task_has_the_view_that_the_caller_has(backend: Any, role: Any) -> None:
    """The view arrives dense, in order; a private one is written for no one else to see."""
    table = np.arange(12.0 * (1 << 12)).reshape(-1, 12)[::-1, 1::4]
    if role is Shared:
        assert [table[5, 1]] == parallel(backend=backend)(cell).map([(5, 1)], table=table)
    else:
        total = table.sum() + table.shape[1]
        assert [total] * 4 == parallel(backend=backend)(adds).map([0, 1, 2, 0], table=table)
    assert 12.0 * (1 << 12) - 11 == table[0, 0]


def cell(place: Any, table: Shared[Any]) -> float:
    assert table.flags.c_contiguous
    assert not table.flags.writeable
    return float(table[place])


@pytest.mark.usefixtures("watching")
def test_write_between_the_elements_is_forgiven_twice(publish: Any) -> None:
    """A watch begins again after a write that changed nothing, but not the third time in a row."""
    base = np.arange(float(COUNT))
    view = base[::4]
    publication = publish(view)
    for _ in range(3):  # now and then: the watch stays
        base[1] += 1
        assert publication.matches(codec.encode(view))
        found, needed = is_current(publication, view)
        assert found
        assert needed < SMALL
    for _ in range(3):  # each time: it goes
        base[1] += 1
        assert publication.matches(codec.encode(view))
    found, needed = is_current(publication, view)
    assert found
    assert needed > SMALL
    base[4] += 1
    assert not publication.matches(codec.encode(view))


@pytest.mark.usefixtures("watching")
def test_elements_far_apart_are_compared(publish: Any) -> None:
    """A page for every other element is not watched: to look through them would take as long."""
    base = np.zeros((1 << 17, 256))
    publication = publish(base[:, 0])
    assert publication.matches(codec.encode(base[:, 0]))
    assert is_current(publication, base[:, 0])[1] > SMALL
    base[77, 0] = 1
    assert not publication.matches(codec.encode(base[:, 0]))


def test_write_while_it_is_stored_is_seen(watch: str, publish: Any) -> None:
    """First the memory is protected, then gathered: a write in between, or during that, is seen."""
    base = np.zeros(COUNT)
    view = base[::4]
    for when in ("before", "after"):

        def keep(payload: Payload, when: str = when) -> Any:
            if when == "before":
                base[400] += 1
            store = stores.keep(payload)
            if when == "after":
                base[400] += 1
            return store

        publication = publish(view, keep)
        assert (when == "before") == publication.matches(codec.encode(view))
        stored = publication.value()[100]
        assert base[400] == stored + (when == "after")
    assert watch


def test_threads_that_write_meanwhile_are_seen(watch: str, publish: Any) -> None:
    """Whatever was stored of what threads write: it matches only where it is the same."""
    base = np.zeros(COUNT)
    view = base[::4]
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            base[::512] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        publications = [publish(view) for _ in range(20)]
    finally:
        stop.set()
        thread.join()
    for publication in publications:
        same = np.array_equal(publication.value(), view)
        assert same == publication.matches(codec.encode(view))
    assert watch


@pytest.mark.parametrize(
    "turn",
    [
        lambda b: b[COUNT // 2 - 4 :: -4],
        lambda b: b[1 : COUNT // 2 + 1 : 4],
        lambda b: b[:COUNT:8],
    ],
    ids=["direction", "offset", "step"],
)
def test_another_view_of_the_same_memory(turn: Any, watch: str, publish: Any) -> None:
    """One that differs in its direction, offset or step alone is another value."""
    base = np.zeros(COUNT)
    base[COUNT // 8 * 3 : COUNT // 8 * 3 + 4] = 1, 2, 3, 4
    view = base[: COUNT // 2 : 4]
    publication = publish(view)
    assert publication.matches(codec.encode(view))
    assert publication.matches(codec.encode(base.copy()[: COUNT // 2 : 4]))
    assert turn(base).shape == view.shape
    assert not publication.matches(codec.encode(turn(base)))
    assert publication.matches(codec.encode(view))
    assert watch


@some
@given(view=arrays(), data=st.data())
def test_any_array_is_gathered_and_compared_by_its_elements(view: Any, data: Any) -> None:
    """The bytes are those of a copy in C order; one that differs anywhere is told from it."""
    if not view.nbytes:
        return
    scattered = Scattered.of(view)
    # Element by element: numpy's own copy of a structure may leave out what pads it.
    at = [view.ctypes.data + int(np.dot(k, view.strides)) for k in np.ndindex(view.shape)]
    elements = [ctypes.string_at(address, view.itemsize) for address in at]
    copy = np.frombuffer(bytearray(b"".join(elements)), np.uint8)
    assert np.array_equal(copy, scattered.gathered())
    assert copy.tobytes() == b"".join(piece.tobytes() for piece in scattered.pieces())
    assert scattered.equals(mapping.memory_of(copy))
    low, high = scattered.span()
    assert low <= view.ctypes.data < high
    copy[data.draw(st.integers(0, len(copy) - 1))] ^= 1
    assert not scattered.equals(mapping.memory_of(copy))


@some
@given(found=views(), data=st.data())
def test_any_views_of_one_base_are_compared_as_their_copies_are(found: Any, data: Any) -> None:
    """One number of the base is changed: what was published matches where no view shows it."""
    base, shown = found
    copies = [np.array(view) for view in shown]
    publication = Publication(codec.encode(shown), watched=True)
    try:
        assert publication.matches(codec.encode(shown))
        place = data.draw(st.integers(0, base.size - 1))
        base.reshape(-1)[place] += 1
        # What is stored with its gaps may be published again for what stands in them.
        if publication.matches(codec.encode(shown)):
            assert all(map(np.array_equal, copies, shown))
        for copy, arrived in zip(copies, publication.value(), strict=True):
            assert_same(copy, np.array(arrived))
    finally:
        publication.release()


@pytest.mark.usefixtures("watching")
def test_watches_that_overlap_do_not_forget_for_one_another() -> None:
    """A page has one mark for all watches: who wipes it out lets the others know."""
    memory = np.zeros(8 << 20, np.uint8)
    start = memory.ctypes.data
    first, second = dirty_pages.watch(start, 4 << 20), dirty_pages.watch(start + (2 << 20), 4 << 20)
    assert first is not None
    assert second is not None
    memory[3 << 20] = 1
    third = dirty_pages.watch(start, 8 << 20)
    assert third is not None
    assert [False, False, True] == [w.unchanged() for w in (first, second, third)]
    first.release()
    third.release()
    again = dirty_pages.watch(start, 8 << 20)
    assert again is not None
    second.release()
    assert again.unchanged()
    memory[5 << 20] = 1
    assert not again.unchanged()
    again.release()


class Watches(RuleBasedStateMachine):
    """Watches that overlap, beside a model: the pages that were written since each began."""

    PAGES = 1024
    watches = Bundle("watches")

    def __init__(self) -> None:
        super().__init__()
        self.memory = np.zeros((self.PAGES + 1) * PAGE, np.uint8)
        self.first = -self.memory.ctypes.data % PAGE
        self.pages = self.memory[self.first :][: self.PAGES * PAGE].reshape(self.PAGES, PAGE)
        self.written: dict[int, set[int]] = {}
        self.begun: dict[int, tuple[Any, range]] = {}

    @rule(target=watches, start=st.integers(0, 700), length=st.integers(256, 1024))
    def begin(self, start: int, length: int) -> Any:
        pages = range(start, min(start + length, self.PAGES))
        begun = dirty_pages.watch(self.pages[start].ctypes.data, len(pages) * PAGE)
        if begun is None:
            return multiple()
        self.begun[id(begun)] = begun, pages
        self.written[id(begun)] = set()
        return begun

    @rule(page=st.integers(0, PAGES - 1))
    def write(self, page: int) -> None:
        self.pages[page, 7] += 1
        for written in self.written.values():
            written.add(page)

    @rule(page=st.integers(0, PAGES - 1))
    def read(self, page: int) -> None:
        assert 0 <= self.pages[page, 9]

    @rule(watch=consumes(watches))
    def end(self, watch: Any) -> None:
        watch.release()
        del self.begun[id(watch)], self.written[id(watch)]

    @invariant()
    def tells_what_was_written(self) -> None:
        for key, (watch, pages) in self.begun.items():
            assert watch.unchanged() == self.written[key].isdisjoint(pages)

    def teardown(self) -> None:
        for watch, _ in self.begun.values():
            watch.release()


TestWatches = Watches.TestCase
TestWatches.settings = settings(deadline=None, max_examples=examples(60), stateful_step_count=30)
TestWatches = pytest.mark.usefixtures("watching")(TestWatches)
