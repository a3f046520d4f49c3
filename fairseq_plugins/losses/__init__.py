"""The arithmetic of word-level distillation: its types (`soft_labels`), the definition (`word_level`), and the same
loss from decoder features in chunks (`fused`).

Imports torch alone, no fairseq and nothing else of the plugin, so that it can be used and measured without them.
"""
