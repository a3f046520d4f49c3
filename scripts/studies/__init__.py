"""Studies: many trainings planned and run as one question, their statistics, and the page that answers it.

Imports `lib`, `nmt`.
"""
