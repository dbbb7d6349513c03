"""``Locked``: tasks read and write regions of an array under locks.

Decides who holds which region, and what is poisoned. Must not know how items reach a worker.
"""
