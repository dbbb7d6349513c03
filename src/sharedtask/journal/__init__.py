"""Results on disk, so that a call that was interrupted goes on where it ended.

Decides what counts as the same call and what was finished. Must not know which backend runs the
rest.
"""
