#!/usr/bin/env bash
# Sets up if needed, then lints, checks types and runs the tests.
#   bash scripts/test.sh                 everything
#   bash scripts/test.sh -k resume -x    arguments go to pytest
#   bash scripts/test.sh --cov           everything with a coverage report, which takes a third longer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;; esac

bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# One worker a core, one thread a worker: small models gain nothing from more threads, and results stay repeatable.
workers=$(env --unset OMP_NUM_THREADS nproc) # which would otherwise count threads instead of cores
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses "$workers" --dist worksteal --durations=15 "$@"
