"""From files to batches of images: folders, decoding, augmentation, order, loaders. Knows nothing of soft labels.

Imports `errors`, `files`, `machine`, `progress`, `user_functions`.
"""
