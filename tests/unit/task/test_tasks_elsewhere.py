"""Tasks in the hands of other pools: they pickle as the function without its decorator would."""

from __future__ import annotations

from typing import Any

import pytest

SCRIPT = """
import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from sharedtask import parallel

@parallel
def cube(x, factor=1):
    return x ** 3 * factor

class Model:
    def __init__(self, by):
        self.by = by

    @parallel
    def scaled(self, x):
        return self.by * x

    @staticmethod
    @parallel
    def halved(x):
        return x / 2

    @parallel
    @classmethod
    def named(cls, x):
        return f"{cls.__name__} {x}"

def plain(x):
    return -x

negated = parallel(plain)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    tasks = [cube, Model(3).scaled, Model.halved, Model.named, negated]
    tasks.append(cube.with_options(retries=1))
    with ProcessPoolExecutor(2, mp_context=context) as executor, context.Pool(2) as pool:
        for task in tasks:
            wanted = [task(x) for x in range(4)]
            assert wanted == list(executor.map(task, range(4))) == pool.map(task, range(4)), task
    assert pickle.loads(pickle.dumps(cube)) is cube
    assert [0, 1, 8] == pickle.loads(pickle.dumps(cube.with_options(workers=2))).map(range(3))
    print("all right")
"""


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_task_of_a_script_goes_to_other_pools(start: str, script: Any) -> None:
    """ProcessPoolExecutor and multiprocessing's Pool run tasks, methods too, of the script."""
    ran = script(SCRIPT, start)
    ran.wait_for("all right")
    assert 0 == ran.process.wait(60)


IN_MAIN = """
import cloudpickle, pickle
from scipy.optimize import differential_evolution
from sharedtask import parallel

@parallel
def bowl(x):
    return float((x ** 2).sum())

if __name__ == "__main__":
    found = differential_evolution(
        bowl, [(-1, 2)] * 2, workers=2, updating="deferred", maxiter=3, popsize=4, polish=False
    )
    sent = cloudpickle.dumps(bowl)
    del bowl  # as in a process that does not have the script
    import numpy as np
    assert 5.0 == pickle.loads(sent)(np.array([1.0, 2.0]))
    print(f"found {found.fun < 10}")
"""


def test_scipy_and_cloudpickle_take_a_task_of_a_script(script: Any) -> None:
    """``workers=`` sends it by name; cloudpickle by value, for processes without the script."""
    pytest.importorskip("scipy")
    ran = script(IN_MAIN)
    ran.wait_for("found True")
    assert 0 == ran.process.wait(60)
