"""One student, many language pairs: language tokens, routes from a sentence to its pair, options, validation.

Imports fairseq, `errors` and `files`, nothing else of the plugin: teachers and tasks stand above it.
"""
