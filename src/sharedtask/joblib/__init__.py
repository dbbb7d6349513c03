"""A backend of joblib: runs joblib's users, such as scikit-learn, on the library's workers.

    from sharedtask.joblib import register

    register()
    with joblib.parallel_config(backend="sharedtask", n_jobs=4):
        search.fit(X, y)

joblib stays optional: nothing else imports this package.
"""

from __future__ import annotations

from sharedtask.errors import BackendUnavailableError

try:
    from .registering import register
except ModuleNotFoundError as _error:
    if _error.name != "joblib":
        raise
    _msg = "sharedtask.joblib needs a package that is not installed: pip install joblib"
    raise BackendUnavailableError(_msg) from _error

__all__ = ["register"]
