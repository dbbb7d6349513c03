"""One item kills its worker, one hangs, one raises: all other results still arrive.

With ``return_exceptions=True`` the error of an item takes the place of its result. Without it,
the call raises the first error, which names its item.
"""

import os
import signal
import time

import numpy as np

from sharedtask import Shared, TaskTimeoutError, WorkerDiedError, parallel


@parallel(return_exceptions=True, timeout=1.0)
def visit(room: int, house: Shared[np.ndarray]) -> float:
    """The mean of a room; three rooms are dangerous."""
    if room == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    if room == 7:
        time.sleep(3600)
    if room == 11:
        message = "no such room"
        raise ValueError(message)
    return float(house[room].mean())


house = np.arange(16 * 1000.0).reshape(16, 1000)
results = visit.map(range(16), house=house)

print("item  result")
for item, result in enumerate(results):
    if isinstance(result, BaseException):
        print(f"{item:4}  {type(result).__name__}: {result}")
    else:
        print(f"{item:4}  {result:.1f}")

arrived = sum(isinstance(result, float) for result in results)
print(f"\n{arrived} of {len(results)} items arrived")

death, hang = results[3], results[7]
if isinstance(death, WorkerDiedError) and isinstance(hang, TaskTimeoutError):
    print(f"item {death.index} died by signal {death.signal}; item {hang.index} ran out of time")

calm = visit.with_options(return_exceptions=False)
print(f"and the pool is healthy: {calm.map([0, 1, 2], house=house)}")

try:
    calm.map([10, 11, 12], house=house)
except ValueError as error:
    print(f"an exception arrives as itself: {error!r}")
    print(*error.__notes__, sep="\n")
