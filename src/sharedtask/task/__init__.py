"""The interface of users: the decorator, the task, its calls, futures and progress.

Decides which items are run, when, and how failures are handled. Must not know how a backend runs
them.
"""
