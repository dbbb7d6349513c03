"""What PyInstaller needs to know: it finds this package by its entry point ``pyinstaller40``.

A frozen program has no Python to start. It starts itself, and the hook that runs before the user's
script makes it a forkserver then. A program without the hook is refused, since its script would
start it again without end.
"""

from __future__ import annotations

from pathlib import Path


def hook_directories() -> list[str]:
    """The folders with hooks.

    Examples:
        >>> from sharedtask.system.freezing import hook_directories
        >>> len(hook_directories())
        1
    """
    return [str(Path(__file__).parent / "hooks")]
