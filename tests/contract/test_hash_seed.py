"""Hashes of strings in workers: those of the caller where it began with a seed."""

from collections.abc import Callable

import pytest
from budget import with_long

pytestmark = pytest.mark.timeout(100)

PROGRAM = """
import logging, os, sys
import numpy as np
from sharedtask import Shared, parallel

os.environ.update({"PYTHONHASHSEED": sys.argv[2]} if sys.argv[2:] else {})

@parallel(backend=sys.argv[1], workers=1)
def find(word, table: Shared[dict]):
    return int(table["places"][hash(word) % 1000])

places = np.zeros(1000, int)
for place, word in enumerate(("one", "two", "three"), 1):
    places[hash(word) % 1000] = place
if sys.argv[1] == "ray":
    import ray
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
             logging_level=logging.ERROR, object_store_memory=100 << 20)
print(find.map(["one", "two", "three"], table={"places": places}))
"""


@pytest.mark.parametrize("backend", with_long(["process", "ray"], "ray"))
def test_seed_is_handed_on(backend: str, script: Callable[..., object]) -> None:
    """A table that the caller has built by its hashes is right in the workers."""
    ran = script(PROGRAM, backend, PYTHONHASHSEED="7")
    assert 0 == ran.end(90)  # type: ignore[attr-defined]
    assert "[1, 2, 3]\n" == ran.out  # type: ignore[attr-defined]


def test_seed_that_the_program_sets_is_not_its_own(run: Callable[..., str]) -> None:
    """Workers have the seed that the caller began with, not one that it has set since."""
    assert "[1, 2, 3]\n" == run(PROGRAM, "process", "8", PYTHONHASHSEED="7")
