"""Whether this is the main interpreter of its process: a subinterpreter cannot have the library."""

from __future__ import annotations

import _thread
import importlib
from typing import Any


def refuse_subinterpreter() -> None:
    """Refuse to be imported by a subinterpreter.

    Raises:
        ImportError: This is one; the text says where to import the library.
    """
    if not _is_main():
        raise ImportError(_REFUSED)


def _is_main() -> bool:
    known = getattr(_thread, "_is_main_interpreter", None)
    if known is not None:
        return bool(known())
    try:  # Python 3.11
        interpreters: Any = importlib.import_module("_xxsubinterpreters")
    except ImportError:  # a build without subinterpreters
        return True
    return bool(interpreters.get_current() == interpreters.get_main())


_REFUSED = (
    "sharedtask cannot be used in a subinterpreter, nor can numpy, which it needs: their state is"
    " that of the whole process. Call it from the main interpreter, where backend='process' uses"
    " all cores (under mod_wsgi: WSGIApplicationGroup %{GLOBAL})."
)
