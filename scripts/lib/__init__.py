"""What recipes, demos and studies share: the runner of jobs, the alpha x T table, shell functions.

Imports no other room of scripts.
"""
