"""Knowledge distillation for machine translation inside stock fairseq: `fairseq-train --user-dir fairseq_plugins`.

fairseq imports `tasks/` of a user-dir by itself, which registers tasks and criterion and applies the workaround of
`inference_only`. What needs no fairseq (`losses`) loads without it.
"""
