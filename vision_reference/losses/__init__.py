"""The arithmetic of what a student learns: from labels (`labels`), from a teacher (`kd`), from one that is named.

Imports `errors`, `user_functions`, and for the mark of "no logit" `soft_labels.codec`.
"""
