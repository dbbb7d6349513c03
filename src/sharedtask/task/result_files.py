"""Results as files: each is pickled by its worker, and its path is sent instead."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterable, Sized
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from sharedtask.errors import SerializationError, TaskTimeoutError, WorkerDiedError
from sharedtask.serialization import codec, functions
from sharedtask.serialization.unpicklable import culprit

if TYPE_CHECKING:
    from collections.abc import Callable


class Numbered(NamedTuple):
    """An item with its position in the input, which names the file of its result."""

    place: int
    item: Any


def numbered(items: Iterable[Any]) -> Iterable[Numbered]:
    """Number the items, and keep their length, if any, for the progress bar."""
    found = map(Numbered._make, enumerate(items))
    return list(found) if isinstance(items, Sized) else found


def name_the_item(outcome: object) -> None:
    """Replace the numbered item in an error by the caller's own item."""
    if not isinstance(outcome, (WorkerDiedError, TaskTimeoutError)):
        return
    held = outcome.item
    if isinstance(held, Numbered):
        outcome.item = held.item
        outcome.args = tuple(held.item if field is held else field for field in outcome.args)


def clean_up(folder: str, error: BaseException) -> None:
    """After an error: remove an empty folder, or name one with results."""
    try:
        os.rmdir(folder)
    except OSError:
        with contextlib.suppress(Exception):  # a class may forbid new attributes
            error.add_note(f"The results so far are in {folder}")


class Saver:
    """Calls a function for a ``Numbered`` item, saves its result, and returns the path.

    ``bound`` is the number of arguments before the item: 1 if there is a ``self``.
    """

    def __init__(self, function: Callable[..., Any], task: str, folder: str, bound: int) -> None:
        self._function = function
        self._task = task
        self._folder = folder
        self._bound = bound

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        before, held, after = args[: self._bound], args[self._bound], args[self._bound + 1 :]
        value = self._function(*before, held.item, *after, **kwargs)
        path = os.path.join(self._folder, f"{held.place:06}.pkl")
        save(value, path, self._task)
        return path

    def __reduce__(self) -> Any:
        # The function is sent as it would be without this class: by name if it has one.
        portable = functions.portable(self._function).value
        return _saver, (portable, self._task, self._folder, self._bound)


def _saver(function: Any, task: str, folder: str, bound: int) -> Saver:
    if isinstance(function, functions.NamedFunction):
        function = function.load()
    return Saver(function, task, folder, bound)


def save(value: Any, path: str, task: str) -> None:
    """Write ``value`` to ``path`` atomically.

    Raises:
        SerializationError: ``value`` cannot be pickled; the text names the part.
        OSError: The file cannot be written.
    """
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            _dump(value, file, task)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _dump(value: Any, file: IO[bytes], task: str) -> None:
    try:
        # Directly into the file, without a second copy in memory.
        codec.dump(pickle.Pickler(file, codec.PROTOCOL), value)
    except (MemoryError, OSError):
        raise
    except Exception:  # noqa: BLE001  such as classes of __main__, which a worker must send along
        file.seek(0)
        file.truncate()
        file.write(_encoded(value, task))


def _encoded(value: Any, task: str) -> bytes:
    try:
        return codec.encode_inband(value)
    except MemoryError:
        raise
    except Exception as error:
        msg = f"{task}(): a result cannot be pickled: {culprit(value, 'result')}. ({error})"
        raise SerializationError(msg) from error
