"""The contract on a system that is played: test_windows.py runs this file in a process of its own.

It cannot use conftest.py, whose own tools need what that system lacks.
"""

import os

import pytest

from sharedtask.testing import BackendContract

os.environ.setdefault("SHAREDTASK_WORKERS", "2")


class TestBackend(BackendContract):
    """On the backends that such a system has."""

    @pytest.fixture(params=["serial", "thread", "process"])
    def backend(self, request: pytest.FixtureRequest) -> str:
        """Each in turn."""
        name: str = request.param
        return name
