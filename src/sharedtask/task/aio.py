"""Maps in a coroutine: each step that blocks runs in a thread, and the event loop goes on."""

from __future__ import annotations

import contextvars
import itertools
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from sharedtask.system import critical_sections
from sharedtask.system.loading import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


# On processes and threads a call ends some milliseconds after it was stopped.
_END_SECONDS = 1.0


async def in_thread(
    function: Callable[..., Any], *args: Any, stop: Callable[[], object] | None = None
) -> Any:
    """Run a blocking call in a thread of its own: the loop's own few threads may all be blocked.

    If it is cancelled, it calls ``stop``, and raises when the blocking call has ended: then nothing
    uses the caller's arrays any more. It does not wait long for items that cannot be stopped. A
    coroutine that is closed cannot wait.
    """
    with undisturbed("asyncio"):  # loaded by its users already; for others it takes 10 ms
        import asyncio

    future: Future[tuple[Any, BaseException | None]] = Future()
    future.set_running_or_notify_cancel()  # its awaiter may be cancelled; the call goes on

    def work() -> None:
        try:
            future.set_result((function(*args), None))
        except BaseException as error:  # noqa: BLE001  handed over, whatever it is
            future.set_result((None, error))  # asyncio would refuse a StopIteration as exception

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="sharedtask-await", daemon=True).start()
    waited = asyncio.wrap_future(future)
    try:
        value, error = await asyncio.shield(waited)
    except BaseException as error:
        if stop is not None:
            stop()
            if isinstance(error, asyncio.CancelledError):
                await asyncio.wait([waited], timeout=_END_SECONDS)
        raise
    if error is not None:
        raise error
    return value


class Steps:
    """A generator that one thread at a time advances or closes."""

    def __init__(self, stream: Generator[Any, None, None]) -> None:
        self._stream = stream
        self._lock = critical_sections.object_lock()

    def step(self) -> list[Any]:
        """The next result in a list; an empty one at the end."""
        with self._lock:
            return list(itertools.islice(self._stream, 1))

    def close(self) -> None:
        """Close the generator when the current step is over."""
        with self._lock:
            self._stream.close()
