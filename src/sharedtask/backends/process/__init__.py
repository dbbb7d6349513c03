"""Worker processes: a forkserver, a pool, one connection for each worker.

Decides which worker runs which chunk, and how chunks of dead workers are handled. Must not know
what the caller does with results.
"""
