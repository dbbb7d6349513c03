"""``Reduced``: tasks add up, and the caller's array gets the total.

Decides which contributions count when a worker dies. Must not know how items reach a worker.
"""
