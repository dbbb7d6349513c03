"""CPython's own tests of executors, where this Python has them, run with ours."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.besides, pytest.mark.timeout(600)]

# What differs by design: docs/executor.md.
DIFFERS = (
    "test_killed_child",  # one death breaks the whole pool
    "test_traceback",  # the class of the remote traceback
    "test_saturation",  # processes of its own
    "test_ressources_gced_in_workers",  # an mp_context
    "test_idle_process_reuse_one",  # processes of its own
    "test_idle_process_reuse_multiple",
    "test_max_tasks_per_child",  # said as tasks_per_worker
    "test_max_tasks_per_child_defaults_to_spawn_context",
    "test_max_tasks_early_shutdown",
    "test_python_finalization_error",  # how it starts its threads
)

# The tests look for threads and processes that their executors leave: ours has none of its own.
PROGRAM = """
import sys
import unittest

import sharedtask
from test.test_concurrent_futures import executor, test_as_completed, test_init
from test.test_concurrent_futures import test_process_pool, test_shutdown, test_wait, util

DIFFERS = {differs!r}
Executor = sharedtask.Executor


class Ours(util.ExecutorMixin):
    executor_type = Executor


def as_ours(option, program):
    # These programs run without the environment, and so without its import path.
    program = program.replace("from concurrent.futures import", "from sharedtask import")
    found = f"import sys; sys.path[:] = {{sys.path!r}}\\n"
    return test_shutdown.of_python(option, found + program)


test_shutdown.of_python = test_shutdown.assert_python_ok
test_shutdown.assert_python_ok = as_ours

MIXINS = (
    test_process_pool.ProcessPoolExecutorTest,
    test_shutdown.ExecutorShutdownTest,
    test_wait.WaitTests,
    test_as_completed.AsCompletedTests,
)
CASES = [type(mixin.__name__, (mixin, Ours, unittest.TestCase), {{}}) for mixin in MIXINS]
for mixin in (test_init.InitializerMixin, test_init.FailingInitializerMixin):
    CASES.append(type(mixin.__name__, (mixin, unittest.TestCase), {{"executor_type": Executor}}))


def tests():
    for case in CASES:
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(case):
            if "all" in sys.argv or test._testMethodName not in DIFFERS:
                yield test


if __name__ == "__main__":
    unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(tests()))
"""


def test_executor_behaves_as_cpython_tests_it(tmp_path: Path) -> None:
    """Ours passes the tests that the executors of the standard library pass."""
    if importlib.util.find_spec("test.test_concurrent_futures.executor") is None:
        pytest.skip("this Python came without its tests, or has them in one module (before 3.12)")
    program = tmp_path / "own.py"
    program.write_text(PROGRAM.format(differs=DIFFERS))
    ran = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert re.search(r"^OK", ran.stderr, re.MULTILINE), ran.stderr
    found = re.search(r"^Ran (\d+) tests", ran.stderr, re.MULTILINE)
    assert found is not None
    assert int(found[1]) > 30
