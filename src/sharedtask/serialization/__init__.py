"""Python values as bytes, and back: one codec for every backend, with its kinds of values.

Decides how a value is sent and which parts cannot be. Must not know its store, nor the call.
"""
