# Sourced by the training scripts: where the clone and its environment lie, and help.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)

# Prints the comment at the script's head and ends, if that is what was asked for.
help_if_asked() {
    if [[ "${1:-}" =~ ^(-h|--help)$ ]]; then
        sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0"
        exit 0
    fi
    # shellcheck source=scripts/lib/venv.sh
    source "$root/scripts/lib/venv.sh"
}
