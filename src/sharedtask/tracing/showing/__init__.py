"""A run as a page: one file without a network, the same inline in a notebook, and as a picture.

``lanes`` decides what is drawn where, ``columns`` draws it, ``page`` puts it together. ``page.js``
draws the same again when the reader zooms.
"""

__all__: list[str] = []
