#!/usr/bin/env bash
# Sets up if needed, then runs the whole story on built-in data, on a CPU: image students, then translation students.
#   bash scripts/demo.sh            go on where an earlier demo stopped
#   bash scripts/demo.sh --fresh    start over
# Results: results/demo/{vision,translation}/summary.{json,md} and a page for each, report.html
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    "" | --fresh) ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "demo: unknown argument '$1'; allowed: --fresh, --help" >&2; exit 2 ;;
esac

bash scripts/setup.sh
echo "demo 1/2: images (scanned digits), about 3 minutes on two cores"
.venv/bin/python scripts/demo/images.py "$@"
echo
echo "demo 2/2: translation (phrases of the Unicode CLDR), about 4 minutes on two cores"
.venv/bin/python scripts/demo/translation.py "$@"
