"""How items are cut into chunks, and how scalars among them travel."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedtask.backends.base import Chunk, Concurrency
from sharedtask.backends.worker import result_format
from sharedtask.task.chunking import Chunker, Pace

CONCURRENCY = Concurrency(workers=4, cpus=2)


def all_chunks(chunker: Chunker, most: int | None = None) -> list[Chunk]:
    found = []
    while (chunk := chunker.next(most)) is not None:
        found.append(chunk)
    return found


def paced(seconds: float | None) -> Pace:
    pace = Pace()
    pace.seconds = seconds
    return pace


@given(
    count=st.integers(0, 3000),
    form=st.sampled_from([list, tuple, range, iter]),
    known=st.booleans(),
    chunksize=st.one_of(st.just("auto"), st.integers(1, 200)),
    concurrency=st.builds(Concurrency, workers=st.integers(1, 64), cpus=st.integers(1, 64)),
    seconds=st.one_of(st.none(), st.floats(0, 10)),
    most=st.one_of(st.none(), st.integers(1, 50)),
)
def test_chunks_concatenate_to_the_items(
    count: int,
    form: Any,
    known: bool,
    chunksize: int | str,
    concurrency: Concurrency,
    seconds: float | None,
    most: int | None,
) -> None:
    """Whatever is known of the items, each is given once, in order, in chunks within the bounds."""
    items = range(count) if form is range else form(range(count))
    total = count if known or form is not iter else None
    chunks = all_chunks(Chunker(items, total, chunksize, concurrency, paced(seconds)), most)
    assert list(range(count)) == list(itertools.chain.from_iterable(c.items for c in chunks))
    assert all(chunk.items[0] == chunk.first for chunk in chunks)
    assert len({chunk.number for chunk in chunks}) == len(chunks)
    largest = min(most or concurrency.largest, concurrency.largest)
    if chunksize != "auto":
        largest = min(int(chunksize), most or int(chunksize))
    assert all(1 <= len(chunk.items) <= largest for chunk in chunks)


def test_small_job_is_one_chunk() -> None:
    """A job that one worker has done before a second begins is not cut."""
    assert 1 == len(all_chunks(Chunker(range(4), 4, "auto", CONCURRENCY, paced(0.00004))))


@pytest.mark.parametrize(("seconds", "chunks"), [(0.001, 2), (0.01, 4)])
def test_short_job_is_cut_for_the_cpus(seconds: float, chunks: int) -> None:
    """A job of a few ms is shared out once among the CPUs, a longer one item by item."""
    found = all_chunks(Chunker(list("abcd"), 4, "auto", CONCURRENCY, paced(seconds)))
    assert chunks == len(found)


def test_long_items_travel_alone() -> None:
    """Items that take longer than the way there and back are given out one by one."""
    chunks = all_chunks(Chunker(list(range(20)), 20, "auto", CONCURRENCY, paced(0.5)))
    assert [1] * 20 == [len(chunk.items) for chunk in chunks]


def test_error_of_the_items_comes_after_what_they_gave() -> None:
    """Items that were given before the iterable raised are run."""

    def items() -> Any:
        yield from range(3)
        raise LookupError

    chunker = Chunker(items(), None, 2, CONCURRENCY, Pace())
    assert [0, 1, 2] == [item for chunk in all_chunks(chunker) for item in chunk.items]
    assert isinstance(chunker.error, LookupError)


# ------------------------------------------------------------------------ scalars among the items

NUMBERS = st.one_of(st.none(), st.integers())
SLICES = st.builds(slice, NUMBERS, NUMBERS, NUMBERS)
SCALARS = st.one_of(
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(),
    st.text(),
    st.binary(),
    st.complex_numbers(),
)


@given(st.one_of(st.lists(SCALARS), st.lists(SLICES), st.builds(range, st.integers(-9, 9))))
def test_scalars_and_slices_travel_as_they_are(items: Any) -> None:
    """Numbers, texts, ranges and slices come back equal, and of the same types."""
    data = result_format.dump_items(items)
    assert data is not None
    loaded = result_format.load_items(data)
    assert repr(list(items)) == repr(list(loaded))
    assert list(map(type, items)) == list(map(type, loaded))


@pytest.mark.parametrize(
    "items",
    [
        [slice(np.int64(1), 2)],
        [slice(True)],
        [slice("a", "b")],
        [slice(0, 1), 2],
        [np.float64(1.0)],
        [(1, 2)],
    ],
    ids=repr,
)
def test_other_items_are_left_to_the_codec(items: Any) -> None:
    """What marshal would change, or cannot write, is not given to it."""
    assert result_format.dump_items(items) is None


def test_texts_that_are_not_unicode_travel() -> None:
    """A surrogate in an item, as in the name of a file, is no reason to fail."""
    items = ["\udcff", "a"]
    data = result_format.dump_items(items)
    assert data is not None
    assert items == result_format.load_items(data)
