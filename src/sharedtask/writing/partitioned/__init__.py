"""``Partitioned``: each item gets its own block of an array.

Decides which block an index names and that no two overlap. Must not know how items reach a worker.
"""
