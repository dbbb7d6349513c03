"""The whole contract of a backend."""

from __future__ import annotations

from .errors import ErrorsContract
from .faults import FaultsContract
from .functions import FunctionsContract
from .into import IntoContract
from .options import OptionsContract
from .partitioned import PartitionedContract
from .reduced import ReducedContract
from .results import ResultsContract
from .sharing import SharingContract
from .streams import StreamsContract
from .unmarked import UnmarkedContract


class BackendContract(
    ResultsContract,
    ErrorsContract,
    SharingContract,
    UnmarkedContract,
    PartitionedContract,
    ReducedContract,
    IntoContract,
    FunctionsContract,
    StreamsContract,
    OptionsContract,
    FaultsContract,
):
    """All promises of a backend."""
