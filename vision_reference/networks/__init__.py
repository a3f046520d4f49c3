"""Networks by name, their last layers, and the files that hold their weights.

Imports errors, files and the table of presets alone.
"""
