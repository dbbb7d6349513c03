"""Results on disk, so that an interrupted call can be resumed.

Decides which calls are the same and which items are finished. Must not know which backend runs the
rest.
"""
