"""What users hold: the decorator, the task, its calls, futures and progress.

Decides which items are run, when, and what comes of failures. Must not know how a backend runs
them.
"""
