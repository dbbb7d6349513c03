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

    def set_postfix_str(self, s: str, refresh: bool) -> object:
        """Show this text behind the rate, from the next time that it is drawn."""

    def close(self) -> object:
        """End the bar."""

    def refresh(self) -> object:
        """Draw it now."""


def open_bar(options: Options, task: str, total: int | None) -> Bar:
    """A bar in the terminal or the notebook cell, with the name of the task or ``desc``."""
    desc = task if options.desc is None else options.desc
    with undisturbed("tqdm.auto"):
        from tqdm.auto import tqdm

    bar: Bar = tqdm(total=total, desc=desc, unit="item", dynamic_ncols=True, leave=True)
    return bar


def show_busy(bar: Bar, chunks: int, workers: int) -> None:
    """Tell how many workers have one of so many chunks."""
    if workers > 1:
        bar.set_postfix_str(f"{min(chunks, workers)} of {workers} workers busy", refresh=False)


def skip(bar: Bar, n: int) -> None:
    """Count ``n`` items that were done before the bar, and do not affect its rate."""
    bar.n += n
    bar.initial += n
    bar.refresh()
