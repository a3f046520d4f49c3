"""Teachers of a student: experts that run along, and stored outputs of experts.

Imports `losses`, `multilingual`, `inference_only`, `errors`, `files`.
"""
