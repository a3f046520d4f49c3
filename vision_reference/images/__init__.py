"""From files to batches of images: folders, decoding, augmentation, order, loaders.

Knows nothing of soft labels; imports ``errors``, ``files``, ``machine`` and ``user_functions`` of what lies outside.
"""
