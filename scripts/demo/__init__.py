"""The demo on built-in real data: images (scanned digits) and translation (phrases of the Unicode CLDR).

Imports `study`, `studies`, `lib`.
"""
