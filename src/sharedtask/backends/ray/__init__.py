"""Ray: a dispatcher that keeps chunks with remote workers, values in the object store.

Decides where a chunk runs and what becomes of lost nodes. Must not know what the caller does with
results.
"""
