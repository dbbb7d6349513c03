"""Values that are published for workers, and reused by later calls.

Decides when a published value is current, and when its memory is released. Must not know of
backends or items.
"""
