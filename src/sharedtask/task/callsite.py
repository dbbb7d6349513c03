"""The line of the user's call, to which warnings from any thread are attributed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from sharedtask.system.records import dataclass
from sharedtask.system.tracebacks import frame_of_user

if TYPE_CHECKING:
    from sharedtask.options import Options

__all__ = ["Callsite", "callsite_of"]


@dataclass(frozen=True, slots=True)
class Callsite:
    """A line of the user's code. Its frame is not kept: that would keep its variables."""

    filename: str
    line: int
    variables: dict[str, Any]  # of its module

    @classmethod
    def here(cls) -> Callsite:
        """The nearest line on the stack that is not ours."""
        frame = frame_of_user()
        return cls(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)

    def warn(self, warning: Warning) -> None:
        """Warn as ``warnings.warn`` does in that line.

        Raises:
            Warning: A filter makes it an error.
        """
        warnings.warn_explicit(
            warning,
            type(warning),
            self.filename,
            self.line,
            self.variables.get("__name__") or "<unknown>",
            self.variables.setdefault("__warningregistry__", {}),
        )


def callsite_of(options: Options) -> Callsite | None:
    """The line for warnings about changes, if the call checks for them."""
    return Callsite.here() if options.strict == "auto" else None
