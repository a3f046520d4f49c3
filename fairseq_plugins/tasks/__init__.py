"""Tasks that bring a teacher along. fairseq imports every module in here by itself, and with it all it must know.

Imports `criterions`, `teachers`, `multilingual`, `losses`, `inference_only`, `saving`, `errors`.
"""

from .. import inference_only  # noqa: F401  the workaround without which a loaded model cannot run
from ..criterions import label_smoothed_kd_cross_entropy  # noqa: F401  registers the criterion
from ..saving import save_in_one_step

save_in_one_step()
