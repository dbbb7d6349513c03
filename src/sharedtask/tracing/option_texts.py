"""The options of calls as texts: made once for options that many calls have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.options import Options

from .sizes import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OptionTexts"]

_DEFAULTS = Options()


class OptionTexts:
    """Those of the last options that were asked for are kept."""

    def __init__(self) -> None:
        self._last: tuple[Options, Mapping[str, str]] = _DEFAULTS, {}

    def of(self, options: Options) -> Mapping[str, str]:
        """The options that are not the defaults."""
        known, texts = self._last
        if known is not options:
            texts = _texts_of(options)
            self._last = options, texts
        return texts


def _texts_of(options: Options) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in Options.__dataclass_fields__:
        value = getattr(options, name)
        if value != getattr(_DEFAULTS, name):
            found[name] = describe(value)
    return found
