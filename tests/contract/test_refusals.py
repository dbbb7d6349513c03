"""Refused writes: told whatever the words, with the name and the cure."""

import struct
from typing import Any

import numpy as np
import pytest

from sharedtask import Shared, parallel
from sharedtask.backends.worker.refusals import readonly_advice

pytestmark = pytest.mark.timeout(60)

WORDS: list[Exception] = [
    ValueError("assignment destination is read-only"),
    ValueError("buffer source array is read-only"),
    ValueError("Assignment destination is a view.  Do you want to .copy() array first?"),
    TypeError("cannot modify read-only memory"),
    TypeError("Array must be C-contiguous and writable"),
    type("TypingError", (Exception,), {"__module__": "numba.core.errors"})(
        "Cannot modify readonly array of type: readonly array(float64, 1d, C)"
    ),
    type("error", (Exception,), {"__module__": "cv2"})(
        "img marked as output argument, but provided NumPy array marked as readonly"
    ),
]
OTHERS: list[Exception] = [
    OSError("Read-only file system"),
    ValueError("the file is read-only"),
    AttributeError("attribute 'x' of 'y' objects is not writable"),
    KeyError("read-only memory"),
]


@pytest.mark.parametrize("error", WORDS, ids=str)
def test_refusal_is_explained(error: Exception) -> None:
    """The note names the parameter, and the cures for results and for scratch."""
    readonly_advice(error, "score", ["table"])
    (note,) = error.__notes__
    for word in ("'table' of score()", "Partitioned", "Reduced", "map_into", "CopyOnWrite"):
        assert word in note


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_error_is_left_alone(error: Exception) -> None:
    """A read-only file, or attribute, is another matter."""
    readonly_advice(error, "score", ["table"])
    assert not hasattr(error, "__notes__")


def draw(_x: int, table: Shared[Any]) -> None:
    np.random.default_rng(0).random(out=table)


def read(_x: int, table: Shared[Any]) -> None:
    with open("/dev/zero", "rb", buffering=0) as file:
        file.readinto(table)


def pack(_x: int, table: Shared[Any]) -> None:
    struct.pack_into("d", table, 0, 1.0)


def switch(_x: int, table: Shared[Any]) -> None:
    table.flags.writeable = True


def view(_x: int, table: Shared[Any]) -> None:
    seen: Any = memoryview(table)
    seen[0] = 1.0


@pytest.mark.parametrize("write", [draw, read, pack, switch, view])
@pytest.mark.parametrize("where", ["serial", "process"])
def test_real_refusal_is_explained(write: Any, where: Any) -> None:
    """So it is as these say it themselves."""
    with pytest.raises((ValueError, TypeError, BufferError)) as caught:
        parallel(write).with_options(backend=where).map([1], table=np.zeros(4))
    assert "'table'" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize("where", ["process"])
def test_captured_array_is_named(where: Any) -> None:
    """An array that the function captures is read-only in workers, and named."""
    weights = np.zeros(1 << 18)

    def write(i: int) -> None:
        weights[i] = 1

    with pytest.raises(ValueError, match="read-only") as caught:
        parallel(write).with_options(backend=where).map([1])
    assert "'weights' (captured)" in " ".join(caught.value.__notes__)


@parallel(workers=1)
def careless(_item: int, table: Shared[Any]) -> None:
    table["numbers"] -= 1


def test_advice_is_given_once_for_a_shared_value(backend: Any) -> None:
    """A Shared value that contains a large array is not told of as unmarked as well."""
    with pytest.raises(ValueError, match="read-only") as caught:
        careless.with_options(backend=backend).map([0], table={"numbers": np.ones(300_000)})
    advice = [note for note in caught.value.__notes__ if "read-only in a task" in note]
    assert ["'table' of careless() is Shared"] == [note.partition(",")[0] for note in advice]
