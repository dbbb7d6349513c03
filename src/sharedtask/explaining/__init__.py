"""``explain``: how a value would be sent, its cost, and which parts cannot.

Decides how a value is described. Must not change it, publish it, or know of calls.
"""
