# Sourced by the shell scripts, with `root` set to the clone: puts the environment that setup.sh makes in front, and
# names one that was only half made. Without any, what is on PATH serves.
# shellcheck shell=bash
if [ -d "$root/.venv" ]; then
    if [ ! -e "$root/.venv/.installed" ] && ! "$root/.venv/bin/python" -c "import torch" 2>/dev/null; then
        echo "$(basename "$0"): $root/.venv is half made (set-up was interrupted or failed); run: bash scripts/setup.sh" >&2
        exit 2
    fi
    PATH="$root/.venv/bin:$PATH"
fi
