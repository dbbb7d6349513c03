"""Worker processes: a forkserver, a pool, one connection for each worker.

Decides who runs which chunk and what becomes of the dead. Must not know what the caller does with
results.
"""
