"""The arithmetic of what a student learns: from labels (`labels`), from a teacher (`kd`), from one that is named.

Imports torch, `errors`, `user_functions`, and of `soft_labels` the codec, whose mark for "no logit" losses must know.
"""
