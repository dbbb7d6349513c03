"""Modules and flags of POSIX systems: on other systems the modules are None and the flags are 0.

So the library can be imported everywhere; the serial and thread backends need none of them.
"""

from __future__ import annotations

import os

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

# Whether memory and locks are shared by descriptors.
IS_POSIX: bool = bool(fcntl)

O_CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)
O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
O_NOCTTY: int = getattr(os, "O_NOCTTY", 0)

__all__ = ["IS_POSIX", "O_CLOEXEC", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "fcntl", "resource"]
