"""Files that are written as a whole or not at all."""

from __future__ import annotations

import os
import tempfile

__all__ = ["replaced"]


def replaced(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file beside its place, then move it there."""
    target = os.path.abspath(os.fspath(path))
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=os.path.dirname(target), prefix=".trace-", delete=False
    ) as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
