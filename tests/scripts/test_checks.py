"""test.sh: what is wrong with format, lint, types or tests ends it with an error, and types are really looked at."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["ruff check .", "ruff format --check .", "mypy", "python -m pytest"]


def run_test_script(folder: Path, failing: str | None) -> tuple[int, list[str]]:
    """Its exit status and the tools that it runs, in a clone whose tools only say that they were called."""
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "test.sh").write_text((ROOT / "scripts" / "test.sh").read_text())
    (folder / "scripts" / "setup.sh").write_text("")
    for name in ("ruff", "mypy", "python"):
        fails = f'[[ "{name} $*" != "{failing}"* ]]' if failing else "true"
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{fails}\n')
        (tools / name).chmod(0o755)
    done = subprocess.run(["bash", str(folder / "scripts" / "test.sh")], capture_output=True)
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_all_of_it_is_run(tmp_path):
    status, calls = run_test_script(tmp_path, None)
    assert status == 0
    assert [call.startswith(step) for call, step in zip(calls, STEPS, strict=True)] == [True] * len(STEPS)


@pytest.mark.parametrize("failing", STEPS)
def test_what_fails_ends_it_with_an_error(tmp_path, failing):
    status, calls = run_test_script(tmp_path, failing)
    assert status != 0
    assert calls[-1].startswith(failing)


def test_the_projects_settings_find_a_wrong_type(tmp_path):
    """In a body without annotations, in a call of ours, and in a comment that hides nothing."""
    (tmp_path / "wrong.py").write_text(
        "from vision_reference.files import cache_file\n\n\n"
        "def unannotated():\n    return len(3)\n\n\n"
        "cache_file(1, b'')\n"
        "x = 1  # type: ignore[attr-defined]\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir=/dev/null"]
    done = subprocess.run(
        [*command, "--no-error-summary", str(tmp_path / "wrong.py")], capture_output=True, text=True, cwd=ROOT
    )
    found = [line.rpartition("[")[2] for line in done.stdout.splitlines() if "wrong.py" in line]
    assert found == ["arg-type]", "arg-type]", "unused-ignore]"], done.stdout + done.stderr
    assert done.returncode == 1
