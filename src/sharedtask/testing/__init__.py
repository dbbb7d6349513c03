"""A test kit: what every backend promises, fixtures that find leaks, hypothesis strategies.

The contract of a backend is a class. Its tests take the fixture ``backend``, a name::

    from sharedtask.testing import BackendContract, no_leaks  # noqa: F401

    class TestThread(BackendContract):
        @pytest.fixture
        def backend(self) -> str:
            return "thread"

The parts of the contract (``ResultsContract``, ``ErrorsContract`` ...) can be run on their own.
Needs pytest and hypothesis: ``pip install sharedtask[test]``.

The names are loaded when they are first used: workers that are asked for their ``resources`` have
no pytest to load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import BackendContract as BackendContract
    from .errors import ErrorsContract as ErrorsContract
    from .faults import FaultsContract as FaultsContract
    from .functions import FunctionsContract as FunctionsContract
    from .into import IntoContract as IntoContract
    from .leaks import assert_nothing_left as assert_nothing_left
    from .leaks import forget_publications as forget_publications
    from .leaks import no_leaks as no_leaks
    from .leaks import no_leaks_warm as no_leaks_warm
    from .leaks import unharmed as unharmed
    from .leaks import warm_up as warm_up
    from .locked import LockedContract as LockedContract
    from .options import OptionsContract as OptionsContract
    from .partitioned import PartitionedContract as PartitionedContract
    from .patience import Deadline as Deadline
    from .patience import slowness as slowness
    from .patience import until as until
    from .reduced import ReducedContract as ReducedContract
    from .resources import Belongings as Belongings
    from .results import ResultsContract as ResultsContract
    from .sharing import SharingContract as SharingContract
    from .strategies import DTYPES as DTYPES
    from .strategies import array_of as array_of
    from .strategies import arrays as arrays
    from .strategies import assert_same as assert_same
    from .strategies import nested_values as nested_values
    from .streams import StreamsContract as StreamsContract
    from .tasks import count_up as count_up
    from .tasks import counted as counted
    from .unmarked import UnmarkedContract as UnmarkedContract

_MODULES = {
    "contract": ("BackendContract",),
    "errors": ("ErrorsContract",),
    "faults": ("FaultsContract",),
    "functions": ("FunctionsContract",),
    "into": ("IntoContract",),
    "leaks": (
        "assert_nothing_left",
        "forget_publications",
        "no_leaks",
        "no_leaks_warm",
        "unharmed",
        "warm_up",
    ),
    "locked": ("LockedContract",),
    "options": ("OptionsContract",),
    "partitioned": ("PartitionedContract",),
    "patience": ("Deadline", "slowness", "until"),
    "reduced": ("ReducedContract",),
    "resources": ("Belongings",),
    "results": ("ResultsContract",),
    "sharing": ("SharingContract",),
    "strategies": ("DTYPES", "array_of", "arrays", "assert_same", "nested_values"),
    "streams": ("StreamsContract",),
    "tasks": ("count_up", "counted"),
    "unmarked": ("UnmarkedContract",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "DTYPES",
    "BackendContract",
    "Belongings",
    "Deadline",
    "ErrorsContract",
    "FaultsContract",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
