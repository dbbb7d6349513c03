"""``explain``: how a value would travel, what it costs, and which parts cannot.

Decides what is said of a value. Must not change it, publish it, or know of calls.
"""
