"""What stock fairseq 0.12.2 needs beside today's torch, and to read checkpoints of people one need not trust.

- `fast_path`: the workaround without which a loaded Transformer cannot translate on torch 2.
- `reading`: every checkpoint that fairseq reads goes through `checkpoints` (weights only, an allow-list, checksums),
  options that fairseq would run as Python are taken as values (`literals`), and models are rebuilt within bounds
  (`building`).

`--user-dir fairseq_plugins` applies both by itself. This folder also serves alone, for translating with a student on
stock tasks: `fairseq-generate --user-dir fairseq_plugins/inference_only --task translation_multi_simple_epoch ...`.
It imports fairseq and the `errors` of the folder above, nothing else of the plugin.
"""

from . import fast_path, reading

if not hasattr(reading.checkpoint_utils, "_read_safely"):  # this folder may be loaded under two names
    reading.checkpoint_utils._read_safely = True
    fast_path.switch_off()
    reading.install()
