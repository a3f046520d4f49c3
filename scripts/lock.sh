#!/usr/bin/env bash
# Rewrites the two hash-locked requirement files from pyproject.toml (maintainers only; users run setup.sh).
#   requirements.txt       everything but DALI
#   requirements-dali.txt  what DALI adds to it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib/uv.sh

compile=("$UV" pip compile --quiet pyproject.toml --python-version 3.10 --generate-hashes --no-emit-index-url
         --custom-compile-command "bash scripts/lock.sh" --extra translation --extra dev "$@")
"${compile[@]}" --output-file requirements.txt
mapfile -t locked < <(grep -oE '^[A-Za-z0-9_.-]+==' requirements.txt | tr -d '=')
"${compile[@]}" --extra dali --constraint requirements.txt "${locked[@]/#/--no-emit-package=}" \
    --output-file requirements-dali.txt
grep -c '==' requirements.txt requirements-dali.txt
