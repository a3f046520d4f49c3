"""Knowledge distillation for machine translation inside stock fairseq: `fairseq-train --user-dir fairseq_plugins`.

Importing the package registers the criterion and applies the cure of `inference_only`; fairseq imports `tasks/` by
itself. Without fairseq installed only the modules that need none (the arithmetic) can be used.
"""

from importlib.util import find_spec

if find_spec("fairseq") is not None:
    from . import inference_only  # noqa: F401
    from .criterions import label_smoothed_kd_cross_entropy  # noqa: F401
