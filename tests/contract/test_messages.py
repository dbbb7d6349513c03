"""What is said where a thing cannot be done, and that it is said of the right thing."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from sharedtask import ArgumentError, JournalWarning, Shared, WorkerDiedError, parallel, zeros
from sharedtask.testing.tasks import by_pointer


class Model:
    """Its methods call the object otherwise than others do."""

    def __init__(self) -> None:
        self.weight = 10

    @parallel
    def score(this, x: int, y: int = 0) -> int:
        return this.weight + x + y

    @parallel
    def double(x: Any) -> Any:
        return 2 * x

    @parallel(shared=["m"])
    def look(me, m: Any, x: Any = 0) -> Any:
        return m


def test_method_whose_first_parameter_is_not_called_self(backend: Any) -> None:
    """What a method calls its object is its own affair."""
    score: Any = Model().score
    assert [11, 12] == score.with_options(backend=backend).map([1, 2])
    assert [16, 17] == score.with_options(backend=backend).map([1, 2], y=5)
    assert 11 == score.with_options(backend=backend).submit(1).result(60)
    double: Any = Model.double
    assert [2, 4] == double.with_options(backend=backend).map([1, 2])


@pytest.mark.parametrize("name", ["double", "look"])
def test_function_taken_from_an_object_by_mistake(name: str) -> None:
    """A function that has no room for the object is told from a method, with what to do."""
    task = getattr(Model(), name).with_options(backend="serial")
    with pytest.raises(ArgumentError, match=r"is taken from an object.*object self"):
        task.map([1, 2])


def shape_of(row: Any) -> Any:
    return row.shape, row.sum()


@pytest.mark.parametrize("kind", ["csr_array", "csr_matrix", "lil_array"])
def test_sparse_array_as_items(backend: Any, kind: str) -> None:
    """The items of a sparse array are its rows, as in a loop, though it does not say how many."""
    items = getattr(scipy.sparse, kind)(np.diag([1.0, 2.0, 3.0]))
    task = parallel(shape_of).with_options(backend=backend)
    wanted = [shape_of(row) for row in items]
    assert wanted == task.map(items)
    assert wanted == list(task.imap(items))


def remove_then(x: int, path: str, instead: bool) -> int:
    if x == 1:
        os.remove(path)
        if instead:
            Path(path).write_text("another file")
    return x


@pytest.mark.parametrize("instead", [False, True])
def test_journal_that_is_deleted_meanwhile(backend: Any, tmp_path: Path, instead: bool) -> None:
    """A journal that is deleted or replaced in mid run is told, once; the results are right."""
    path = str(tmp_path / "journal")
    task = parallel(remove_then).with_options(backend=backend, journal=path, chunksize=1)
    with pytest.warns(JournalWarning, match="was deleted or replaced while") as caught:
        assert [0, 1, 2] == task.map(range(3), path=path, instead=instead)
    assert 1 == len(caught)
    assert __file__ == caught[0].filename


def with_itself() -> Any:
    array = np.empty(3, object)
    array[:] = [array, {"a": [array]}, 5]
    return array


def knows_itself(x: int, array: Shared[Any]) -> Any:
    return array[0] is array, array[1]["a"][0] is array, array.flags.writeable


def give_array(x: int) -> Any:
    return with_itself()


def take_array(array: Any) -> Any:
    return array[0] is array and array[1]["a"][0] is array


def test_object_array_that_contains_itself(backend: Any) -> None:
    """An array of objects that contains itself does so wherever it arrives, as with pickle."""
    shared = parallel(knows_itself).with_options(backend=backend)
    value = with_itself()
    for _ in range(2):
        assert [(True, True, False)] == shared.map([1], array=value)
    value[2] = 6
    assert [(True, True, False)] == shared.map([1], array=value)
    (found,) = parallel(give_array).with_options(backend=backend).map([1])
    assert take_array(found)
    assert found.flags.writeable
    assert [True] == parallel(take_array).with_options(backend=backend).map([with_itself()])


# ---------------------------------------------------------------------------- read-only memory


def refuse(x: int, text: str, m: Shared[Any] = None) -> None:
    raise ValueError(text)


def refuse_alone(x: int, text: str) -> None:
    raise ValueError(text)


NUMPY = "assignment destination is read-only"


def notes_of(task: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError, match="read-only") as caught:
        task.map([1], **kwargs)
    return "\n".join(caught.value.__notes__)


def test_word_of_read_only_memory(backend: Any) -> None:
    """Read-only memory is spoken of where something is shared and was written, and only there."""
    task = parallel(refuse).with_options(backend=backend)
    assert "is Shared" in notes_of(task, m=[1], text=NUMPY)
    assert "is Shared" in notes_of(task, m=[1], text="cannot modify read-only memory")
    assert "Shared" not in notes_of(task, m=[1], text="the file is read-only")
    alone = parallel(refuse_alone).with_options(backend=backend)
    assert "Shared" not in notes_of(alone, text=NUMPY)


def crash(x: int, m: Shared[Any] = None) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def end(x: int, m: Shared[Any] = None) -> None:
    os._exit(3)


def crash_alone(x: int) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
def test_word_of_read_only_memory_at_a_crash(backend: Any) -> None:
    """A crash where nothing is shared says nothing of shared memory."""
    with pytest.raises(WorkerDiedError) as caught:
        parallel(crash_alone).with_options(backend=backend).map([1])
    assert "shared" not in f"{caught.value} {getattr(caught.value, '__notes__', '')}"
    with pytest.raises(WorkerDiedError) as caught:
        parallel(crash).with_options(backend=backend).map([1], m=np.ones(3))
    assert "'m' is read-only shared memory" in caught.value.__notes__[0]
    with pytest.raises(WorkerDiedError) as caught:
        parallel(end).with_options(backend=backend).map([1], m=np.ones(3))
    assert "read-only" not in f"{getattr(caught.value, '__notes__', '')}"


def add_natively(x: int, table: Any) -> None:
    by_pointer(table)[0] += 1


@pytest.mark.parametrize("backend", ["process", "ray"], indirect=True)
def test_word_of_read_only_memory_that_is_not_marked(backend: Any) -> None:
    """A crash in a call with a large unmarked array names it, and the cure."""
    born = zeros(3)
    with pytest.raises(WorkerDiedError) as caught:
        parallel(add_natively).with_options(backend=backend).map([1], table=np.zeros(200_000))
    assert caught.value.__notes__[0].startswith("'table' is read-only shared memory")
    with pytest.raises(WorkerDiedError) as caught:
        parallel(lambda x: add_natively(x, born)).with_options(backend=backend).map([1])
    assert "the function captures is read-only" in caught.value.__notes__[0]
    assert "mark it CopyOnWrite" in caught.value.__notes__[0]
