"""The signature of a task and its annotations, checked at the definition.

Decides which parameter has which role. Must not know the values of a call.
"""
