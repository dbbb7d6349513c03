"""A test kit: what every backend promises, fixtures that find leaks, hypothesis strategies.

The contract of a backend is a class. Its tests take the fixture ``backend``, a name::

    from sharedtask.testing import BackendContract, no_leaks  # noqa: F401

    class TestThread(BackendContract):
        @pytest.fixture
        def backend(self) -> str:
            return "thread"

The parts of the contract (``ResultsContract``, ``ErrorsContract`` ...) can be run on their own.
Needs pytest and hypothesis: ``pip install sharedtask[test]``.
"""

from __future__ import annotations

from sharedtask.resources import Belongings

from .contract import BackendContract
from .errors import ErrorsContract
from .functions import FunctionsContract
from .into import IntoContract
from .leaks import (
    assert_nothing_left,
    forget_publications,
    no_leaks,
    no_leaks_warm,
    unharmed,
    warm_up,
)
from .locked import LockedContract
from .options import OptionsContract
from .partitioned import PartitionedContract
from .patience import Deadline, slowness, until
from .reduced import ReducedContract
from .results import ResultsContract
from .sharing import SharingContract
from .strategies import DTYPES, array_of, arrays, assert_same, nested_values
from .streams import StreamsContract
from .tasks import count_up, counted
from .unmarked import UnmarkedContract

__all__ = [
    "DTYPES",
    "BackendContract",
    "Belongings",
    "Deadline",
    "ErrorsContract",
    "FunctionsContract",
    "IntoContract",
    "LockedContract",
    "OptionsContract",
    "PartitionedContract",
    "ReducedContract",
    "ResultsContract",
    "SharingContract",
    "StreamsContract",
    "UnmarkedContract",
    "array_of",
    "arrays",
    "assert_nothing_left",
    "assert_same",
    "count_up",
    "counted",
    "forget_publications",
    "nested_values",
    "no_leaks",
    "no_leaks_warm",
    "slowness",
    "unharmed",
    "until",
    "warm_up",
]
