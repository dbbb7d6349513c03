"""What to do about the time and the bytes of a run: one small rule for each habit that costs.

A rule is a function of the records. It yields an ``Advice`` with the figure that led to it, or
nothing.
"""

from .advice import Advice
from .rules import advise

__all__ = ["Advice", "advise"]
