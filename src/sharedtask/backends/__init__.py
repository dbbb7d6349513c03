"""The backends that run tasks: serial, thread, process, ray, behind one small interface.

Each decides how chunks reach workers and reports come back. Must not know how items are chosen or
retried.
"""
