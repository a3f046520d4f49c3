"""Small facts that took long to find out, kept between runs under the user's cache folder."""

import hashlib
import json
import os
from pathlib import Path


def cache_file(kind: str, key: object) -> Path:
    """Where a fact of ``kind`` about ``key`` (anything JSON can express) is kept: one file per key, perhaps not there.

    Put into the key all that the fact depends on (paths, times of modification): a changed key is a new file.
    """
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lskd" / kind / f"{name}.json"
