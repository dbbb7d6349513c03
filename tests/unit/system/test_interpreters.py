"""Subinterpreters: the library belongs to the main interpreter, and says so."""

import subprocess
import sys

import pytest

IN_ONE = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
code = '''
try:
    from sharedtask import parallel
    print(parallel(abs).map([-1]))
except ImportError as error:
    print(error, flush=True)
'''
if sys.version_info >= (3, 13):
    made = interpreters.create(KIND)
    interpreters.exec(made, code)
else:
    made = interpreters.create(isolated=KIND == "isolated")
    interpreters.run_string(made, code)
interpreters.destroy(made)
"""


@pytest.mark.parametrize("kind", ["isolated", "legacy"])
def test_subinterpreter_is_refused_in_one_sentence(kind: str) -> None:
    """A map of a subinterpreter does not begin: the import says where to call it."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"KIND = {kind!r}\n{IN_ONE}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "" == ran.stderr
    assert ran.stdout.startswith("sharedtask cannot be used in a subinterpreter")
    assert "main interpreter" in ran.stdout
