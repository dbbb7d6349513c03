"""Ray: a dispatcher that gives chunks to remote workers, with values in the object store.

Decides where a chunk runs and how lost nodes are handled. Must not know what the caller does with
results.
"""
