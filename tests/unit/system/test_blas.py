import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sharedtask import Shared, parallel, shutdown
from sharedtask.system.cpus import available_cpus

pytestmark = pytest.mark.timeout(60)

threadpoolctl = pytest.importorskip("threadpoolctl", reason="it counts the BLAS threads")

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Workers that are started within a test, without the variables of the surroundings."""
    shutdown()
    for name in (*VARIABLES, "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    yield
    shutdown()


def threads(_x: int) -> list[int]:
    np.ones((50, 50)) @ np.ones((50, 50))
    time.sleep(0.02)
    return [info["num_threads"] for info in threadpoolctl.threadpool_info()]


def variables(_x: int) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in VARIABLES}


def product(_x: int, rows: Shared[Any]) -> int:
    rows @ rows
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_worker_has_its_share_of_the_cores(workers: int) -> None:
    """BLAS in a worker uses the cores divided by the workers, at least one."""
    share = max(available_cpus() // workers, 1)
    task = parallel(threads).with_options(backend="process", workers=workers, chunksize=1)
    for found in task.map(range(8)):
        assert found
        assert {share} == set(found)


@pytest.mark.skipif(available_cpus() != 2, reason="the numbers are those of 2 cores")
def test_two_workers_on_two_cores() -> None:
    """Two workers on two cores have one BLAS thread each, and no more threads than that."""
    task = parallel(threads).with_options(backend="process", workers=2, chunksize=1)
    assert {1} == {n for found in task.map(range(6)) for n in found}
    rows = np.ones((600, 600))
    product_task = parallel(product).with_options(backend="process", workers=2, chunksize=1)
    assert {1} == set(product_task.map(range(4), rows=rows))


def test_share_follows_the_call() -> None:
    """A call with fewer workers gives each of them more threads, in the same pool."""
    task = parallel(threads).with_options(backend="process", chunksize=1)
    for workers in (2, 1, 2, 1):
        share = max(available_cpus() // workers, 1)
        found = task.with_options(workers=workers).map(range(4))
        assert {share} == {n for each in found for n in each}


@pytest.mark.parametrize("name", VARIABLES)
def test_users_variable_is_honoured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that the user has set reaches the workers as it is."""
    monkeypatch.setenv(name, "3")
    task = parallel(variables).with_options(backend="process", chunksize=1)
    assert {"3"} == {found[name] for found in task.map(range(4))}


def test_users_openblas_threads_count(run: Callable[..., str]) -> None:
    """With OPENBLAS_NUM_THREADS set by the user, that is how many threads a worker has."""
    out = run(
        """
import numpy as np
import threadpoolctl
from sharedtask import parallel
def threads(x):
    infos = threadpoolctl.threadpool_info()
    return [i["num_threads"] for i in infos if i["internal_api"] == "openblas"]
print(sorted({n for found in parallel(threads).map(range(6)) for n in found}))
""",
        OPENBLAS_NUM_THREADS="2",
        OMP_NUM_THREADS="2",
    )
    assert "[2]\n" == out


def test_caller_keeps_his_threads() -> None:
    """Nothing changes in the caller's process."""
    before = [info["num_threads"] for info in threadpoolctl.threadpool_info()]
    environment = dict(os.environ)
    parallel(threads).with_options(backend="process").map(range(4))
    assert before == [info["num_threads"] for info in threadpoolctl.threadpool_info()]
    assert environment == dict(os.environ)
