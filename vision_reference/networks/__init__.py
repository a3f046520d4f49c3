"""Networks by name, their last layers, teachers made of them, and the files that hold their weights.

Imports `errors`, `files`, `user_functions`, and of images the table of presets, `images.presets`.
"""
