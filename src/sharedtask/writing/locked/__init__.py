"""``Locked``: tasks read and write regions of an array under locks.

Decides who holds a region, and which are poisoned. Must not know how items reach a worker.
"""
