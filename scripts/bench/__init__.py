"""Benchmarks: one command for each thing that has to be fast, measured side by side with a named baseline.

Imports `demo`, `nmt.lib`.
"""
