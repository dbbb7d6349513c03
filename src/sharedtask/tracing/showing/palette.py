"""Phases: their order in a lane, their colours on light and on dark ground, their meanings.

The colours differ in brightness too, so that readers who see few colours tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from sharedtask.system.records import dataclass


@dataclass(frozen=True, slots=True)
class Shade:
    """A phase as it is drawn."""

    light: str
    dark: str
    meaning: str


PHASES: dict[str, Shade] = {
    "compute": Shade("#00857a", "#35b6a8", "the items' own code"),
    "lock": Shade("#d84315", "#ff8a65", "waits for locks of shared arrays"),
    "decode": Shade("#8e5ea2", "#bb8fce", "function and shared values attached and decoded"),
    "unpack": Shade("#c39bd3", "#d7bde2", "items decoded"),
    "set up": Shade("#795548", "#bcaaa4", "what a worker makes for itself"),
    "report": Shade("#4f9fd8", "#7cc4f5", "results encoded and sent"),
    "results": Shade("#2874a6", "#5dade2", "results decoded and put in place"),
    "check": Shade("#90a4ae", "#78909c", "arguments and shared values checked"),
    "compare": Shade("#607d8b", "#9fb4bf", "shared values compared with what is stored"),
    "encode": Shade("#b9770e", "#f5b041", "values, function and items pickled"),
    "store": Shade("#e59866", "#edbb99", "bytes written to shared memory"),
    "start": Shade("#d4ac0d", "#f7dc6f", "workers started"),
    "items": Shade("#c2185b", "#f06292", "the caller's iterator of items"),
    "dispatch": Shade("#283593", "#9fa8da", "chunks given to workers"),
    "caller": Shade("#ad1457", "#f48fb1", "the caller's code between two results"),
    "other": Shade("#bdbdbd", "#757575", "the rest"),
    "starved": Shade("#f5b7b1", "#8c4a4a", "no chunk there: the caller was busy"),
    "wait": Shade("#cfd8dc", "#455a64", "waited: for workers, or for work"),
    "idle": Shade("#eceff1", "#37474f", "no call was open"),
    "begin": Shade("#283593", "#9fa8da", "before the first item"),
    "straggler": Shade("#d84315", "#ff8a65", "one worker alone had work"),
    "outside": Shade("#eceff1", "#37474f", "no call was open"),
}
_UNKNOWN = Shade("#9e9e9e", "#9e9e9e", "")


def shade(phase: str) -> Shade:
    """How a phase is drawn; grey if it is not known."""
    return PHASES.get(phase, _UNKNOWN)


def css_class(phase: str) -> str:
    """The class of its marks in a page."""
    return "p-" + phase.replace(" ", "-")


def styles(phases: Iterable[str], *, dark: bool) -> str:
    """A rule for each phase."""
    rules = (f".{css_class(p)}{{--c:{shade(p).dark if dark else shade(p).light}}}" for p in phases)
    return "".join(rules)


def in_order(phases: Iterable[str]) -> list[str]:
    """Phases in the order in which a lane stacks them."""
    places = {phase: place for place, phase in enumerate(PHASES)}
    return sorted(set(phases), key=lambda phase: (places.get(phase, len(places)), phase))
