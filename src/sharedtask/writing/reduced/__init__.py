"""``Reduced``: tasks add up, and the caller's array gets the total.

Decides what is counted when a worker dies. Must not know how items reach a worker.
"""
