"""Bytes in shared memory: mappings, segments, the pages that were written, what still fits.

Decides where bytes lie and who has changed them. Must not know what the bytes mean.
"""
