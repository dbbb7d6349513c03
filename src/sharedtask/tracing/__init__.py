"""``trace``: what calls did, by time and by bytes.

Decides what is recorded of a run, and how it is told. Must not run tasks, publish values, or be
imported before a user asks for a trace.
"""
