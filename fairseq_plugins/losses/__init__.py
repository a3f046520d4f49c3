"""The arithmetic of word-level distillation, dense and fused. Imports torch alone, no fairseq."""
