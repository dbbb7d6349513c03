"""joblib's own tests of ``Parallel``, from its wheel, with our backend among their parameters."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

REGISTER = "from sharedtask.joblib import register; register()\n"
# What differs by design: docs/scikit-learn.md.
DIFFERS = (
    "test_error_capture",  # a KeyboardInterrupt of a call; what joblib's own backends have inside
    "test_auto_memmap_on_arrays_from_generator",  # files of joblib
    "test_memmapping_leaks",  # files of joblib
)
# Programs and waits: they take most of the time.
SLOW = ("unpicklable_functions_in_args", "nested", "deadlock", "returns_fastest_first")


def with_our_backend(text: str) -> str:
    """The tests, with our backend in the place of joblib's processes."""
    changed = text.replace('PROCESS_BACKENDS = ["multiprocessing", "loky"]', _OURS)
    assert changed != text
    text = re.sub(r"^RETURN_GENERATOR_BACKENDS =", REGISTER + r"\g<0>", changed, flags=re.MULTILINE)
    text = text.replace('TEMPLATE_NO_MAIN = """\\\n', 'TEMPLATE_NO_MAIN = """\\\n' + REGISTER)
    return text.replace("from ._openmp", "from joblib.test._openmp")


_OURS = 'PROCESS_BACKENDS = ["sharedtask"]'


def test_parallel_behaves_as_its_authors_test_it(tmp_path: Path) -> None:
    """Our backend passes the tests that joblib's own process backends pass."""
    found = importlib.util.find_spec("joblib.test.test_parallel")
    if found is None or found.origin is None:
        pytest.skip("this joblib came without its tests")
    (tmp_path / "test_own.py").write_text(with_our_backend(Path(found.origin).read_text()))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    left_out = " or ".join((*DIFFERS, *SLOW))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own.py"]
    ran = subprocess.run(
        [*command, "-k", f"sharedtask and not ({left_out})"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == ran.returncode, ran.stdout
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > 50
