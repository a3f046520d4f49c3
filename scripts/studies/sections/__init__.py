"""The page of a study, section by section, computed from its results; ``outline.py`` puts them in order.

Imports `studies`, `lib`.
"""
