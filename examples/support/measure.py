"""Time and memory of a piece of work: that of ``sharedtask demo``."""

from sharedtask.cli.measure import Cost, measure, memory, watching

__all__ = ["Cost", "measure", "memory", "watching"]
