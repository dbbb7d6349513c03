"""What programs are made of: each module here yields the steps of one kind.

A kind is a module with ``steps(draw)``, a generator without end of pieces of source text. What the
first pieces define, later ones use; a program has some steps of one kind, or of several, in turns.
"""
