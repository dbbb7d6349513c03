"""Python values as bytes, and back: one codec for every backend, with its kinds of values.

Decides how a value travels and what in it cannot. Must not know who stores it, nor for which call.
"""
