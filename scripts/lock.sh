#!/usr/bin/env bash
# Rewrites the hash-locked requirement files from pyproject.toml (maintainers only; users run setup.sh).
#   requirements/python3.10.txt               everything but DALI
#   requirements/python3.10-dali.txt          what DALI adds to it
#   requirements/python3.10-dali-cuda120.txt  what the newer DALI adds instead
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;; esac
source scripts/lib/uv.sh

compile=("$UV" pip compile --quiet pyproject.toml --python-version 3.10 --generate-hashes --no-emit-index-url
         --custom-compile-command "bash scripts/lock.sh" --extra translation --extra dev
         --extra timm --extra export --extra track --extra slurm --extra hub "$@")
"${compile[@]}" --output-file requirements/python3.10.txt
mapfile -t locked < <(grep -oE '^[A-Za-z0-9_.-]+==' requirements/python3.10.txt | tr -d '=')
for extra in dali dali-cuda120; do
    "${compile[@]}" --extra "$extra" --constraint requirements/python3.10.txt "${locked[@]/#/--no-emit-package=}" \
        --output-file "requirements/python3.10-$extra.txt"
done
grep -c '==' requirements/*.txt
