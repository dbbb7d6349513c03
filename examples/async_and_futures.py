"""Futures, ``await`` and ``async for`` use the same workers and one shared value together.

The shared value is a table of monthly temperatures of 400 invented weather stations over 50 years.
"""

import asyncio
from concurrent.futures import as_completed

import numpy as np

from sharedtask import Shared, parallel

STATIONS, MONTHS = 400, 600


@parallel
def warming(station: int, table: Shared[np.ndarray]) -> tuple[int, float]:
    """Degrees per decade at one station, by a straight line through its months."""
    return station, float(np.polyfit(np.arange(MONTHS) / 120, table[station], 1)[0])


rng = np.random.default_rng(3)
season = 10 * np.sin(np.arange(MONTHS) * 2 * np.pi / 12)
trend = rng.normal(0.2, 0.1, (STATIONS, 1)) * np.arange(MONTHS) / 120
table = season + trend + rng.normal(0, 1, (STATIONS, MONTHS))

# Futures of the standard library: as_completed, wait, callbacks and the rest work with them.
futures = [warming.submit(station, table=table) for station in range(8)]
for future in as_completed(futures):
    station, slope = future.result()
    print(f"future   station {station:3}  {slope:+.2f} degrees per decade")


async def average() -> float:
    """The whole map, awaited: the event loop stays free."""
    slopes = await warming.amap(range(STATIONS), table=table)
    return float(np.mean([slope for _, slope in slopes]))


async def first_hot() -> int:
    """The first station that warms by more than 0.4 degrees; leaving the loop ends the stream."""
    async for station, slope in warming.aimap(range(STATIONS), table=table):
        if slope > 0.4:
            return station
    return -1


async def main() -> None:
    mean, hot = await asyncio.gather(average(), first_hot())
    print(f"await    all {STATIONS} stations  {mean:+.2f} degrees per decade")
    print(f"stream   station {hot} is the first above +0.40")


asyncio.run(main())
