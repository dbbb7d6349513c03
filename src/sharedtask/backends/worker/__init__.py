"""The steps of every worker: decode a chunk, call the function, record the outcome.

Decides how an item is run and how its outcome is recorded. Must not know which backend sent it.
"""
