"""The command line, and what its ``demo`` and ``bench`` measure.

Decides what is printed of names, journals, traces and costs. Must not decide anything that a
program without a terminal would miss.
"""
