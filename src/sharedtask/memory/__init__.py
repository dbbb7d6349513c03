"""Bytes in shared memory: mappings, segments, dirty pages, capacity.

Decides where bytes are stored and whether they changed. Must not know what they mean.
"""
