#!/usr/bin/env bash
# Rewrites the hash-locked requirement files from pyproject.toml (maintainers only; users run setup.sh).
#   requirements.txt               everything but DALI
#   requirements-dali.txt          what DALI adds to it
#   requirements-dali-cuda120.txt  what the newer DALI adds instead
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib/uv.sh

compile=("$UV" pip compile --quiet pyproject.toml --python-version 3.10 --generate-hashes --no-emit-index-url
         --custom-compile-command "bash scripts/lock.sh" --extra translation --extra dev "$@")
"${compile[@]}" --output-file requirements.txt
mapfile -t locked < <(grep -oE '^[A-Za-z0-9_.-]+==' requirements.txt | tr -d '=')
for extra in dali dali-cuda120; do
    "${compile[@]}" --extra "$extra" --constraint requirements.txt "${locked[@]/#/--no-emit-package=}" \
        --output-file "requirements-$extra.txt"
done
grep -c '==' requirements*.txt
