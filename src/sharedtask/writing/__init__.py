"""Parameters that tasks write: blocks of an array, totals, regions under locks.

Each package decides for one role of a parameter. Must not know how items reach a worker.
"""
