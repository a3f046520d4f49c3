"""`UserError`, also where this folder is the user-dir itself and so knows no package above it."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def _from_the_folder_above() -> type[SystemExit]:
    spec = importlib.util.spec_from_file_location(
        f"{__package__}_user_error", Path(__file__).resolve().parents[1] / "errors.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.UserError


try:
    from ..errors import UserError
except ImportError:
    UserError = _from_the_folder_above()  # type: ignore[assignment, misc]

__all__ = ["UserError"]
