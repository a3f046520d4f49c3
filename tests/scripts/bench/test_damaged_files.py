"""The benchmark of damaged files on a few small ones."""

import numpy as np
import pytest
from PIL import Image

from scripts.bench import damaged_files


def test_whole_files_pass_and_holes_do_not(tmp_path, capsys, monkeypatch):
    generator = np.random.default_rng(0)
    for number in range(3):
        (tmp_path / "cat").mkdir(exist_ok=True)
        noise = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "cat" / f"{number}.jpg")
    command = ["damaged_files.py", "--data-path", str(tmp_path), "--size", "300"]
    monkeypatch.setattr("sys.argv", command)
    damaged_files.main()
    lines = capsys.readouterr().out.splitlines()
    assert "| nothing | 0 |" in lines
    assert "| 300 zeros | 3 |" in lines
    monkeypatch.setattr("sys.argv", [*command[:3], "--images", "0"])
    with pytest.raises(damaged_files.UserError, match="must be at least 1"):
        damaged_files.main()
