"""Prints the language pairs of a prepared folder, such as en-de,en-ru (the training scripts ask for them)."""

import json
import sys
from pathlib import Path

print(",".join(json.loads((Path(sys.argv[1]) / "manifest.json").read_text(encoding="utf-8"))["pairs"]))
