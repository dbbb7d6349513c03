"""``sharedtask demo``: one real job, done in the usual ways and with the library.

It needs nothing but what the library itself needs; joblib takes part where it is installed.
"""

from .search import run

__all__ = ["run"]
