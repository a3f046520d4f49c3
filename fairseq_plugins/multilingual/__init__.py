"""One student, many language pairs: language tokens, routes from a sentence to its pair, options, validation.

Imports fairseq and `errors`, nothing else of the plugin: teachers and tasks stand above it.
"""
