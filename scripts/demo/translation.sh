#!/usr/bin/env bash
# Translation demo on built-in data, on a CPU: two experts (English to German, English to Russian), one multilingual
# student distilled from them, one on labels alone, and their BLEU. About 4 minutes on two cores.
#   bash scripts/demo/translation.sh            go on where an earlier demo stopped
#   bash scripts/demo/translation.sh --fresh    start over
# Results: results/demo/translation/summary.{json,md}; the log of each training beside its checkpoints.
set -euo pipefail
case "${1:-}" in
    "" | --fresh) ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "demo: unknown argument '$1'; allowed: --fresh, --help" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ -d .venv/bin ] && PATH="$PWD/.venv/bin:$PATH"
exec python scripts/demo/translation.py "$@"
