"""Teachers of a student: experts that run along, and stored outputs of experts.

Imports `losses`, `multilingual`, `errors`, never tasks or criterions.
"""
