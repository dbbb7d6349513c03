"""What every worker does: decode a chunk, call the function, write down the outcome.

Decides how an item is run and how its outcome is written down. Must not know which backend sent
it.
"""
