"""The progress bar: tqdm's, drawn by the caller, counting items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sharedtask.system.loading import undisturbed

if TYPE_CHECKING:
    from sharedtask.options import Options


class Bar(Protocol):
    """Shows finished items: ``n`` of them, ``initial`` of which took no time."""

    n: Any
    initial: Any

    def update(self, n: int) -> object:
        """``n`` more items are done."""

    def close(self) -> object:
        """End the bar."""

    def refresh(self) -> object:
        """Draw it now."""


def open_bar(options: Options, total: int | None) -> Bar:
    """A bar in the terminal or the notebook cell."""
    with undisturbed("tqdm.auto"):
        from tqdm.auto import tqdm

    bar: Bar = tqdm(total=total, desc=options.desc, unit="item", dynamic_ncols=True, leave=True)
    return bar


def skip(bar: Bar, n: int) -> None:
    """Count ``n`` items that were done before the bar, and do not affect its rate."""
    bar.n += n
    bar.initial += n
    bar.refresh()
