"""What the command line shows: ``sharedtask demo`` and ``sharedtask bench``.

The demo does one real job in the usual ways and with the library, bench measures what a call costs.
Both need nothing but what the library itself needs; joblib takes part where it is installed.
"""

from .search import run

__all__ = ["run"]
