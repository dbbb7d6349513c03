import pytest

from sharedtask import parallel
from sharedtask.testing import BackendContract

pytestmark = pytest.mark.timeout(60)


class TestBackend(BackendContract):
    """The whole contract on every backend; ``backend`` is the fixture of conftest.py."""


def deep(x: int) -> int:
    return deeper(x)


def deeper(x: int) -> int:
    message = "down here"
    raise LookupError(message)


def test_traceback_shows_the_users_lines(backend: str) -> None:
    """The traceback of an error leads to the line of the user's function that raised it."""
    with pytest.raises(LookupError) as caught:
        parallel(deep).with_options(backend=backend).map([1])
    told = str(caught.value.__cause__) if backend == "process" else str(caught.getrepr())
    assert "in deep\n" in told or "deeper(x)" in told
    assert 'raise LookupError(message)' in told
    assert "sharedtask/backends" not in str(caught.value.__cause__ or "")
