"""Worker processes where there is no fork: loky starts them, values are in mapped files.

Decides which worker runs which chunk, and when it is replaced. Must not know what the caller does
with results.
"""
