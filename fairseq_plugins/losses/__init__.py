"""The arithmetic of word-level distillation: its types (`soft_labels`), the definition (`word_level`), the same loss
from decoder features in chunks (`fused`), and other losses by name (`kd`).

Imports torch alone, no fairseq and nothing else of the plugin, so that it can be used and measured without them.
"""
