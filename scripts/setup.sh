#!/usr/bin/env bash
# Makes .venv (Python 3.10) with everything this project needs and installs the project into it in editable form.
#   bash scripts/setup.sh                  everything, DALI 1.34.0 included (6.5 GB on disk)
#   bash scripts/setup.sh --dali-cuda120   with DALI 2.4.0, built for CUDA 12, instead
#   bash scripts/setup.sh --no-dali        without NVIDIA DALI (1 GB less)
# The choice holds for later runs without a flag (--dali takes it back), so demo.sh and test.sh leave it as it is.
# Versions and hashes are locked in requirements/. A second run finds nothing to do and says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

choice=.venv/.dali
dali=$(cat "$choice" 2>/dev/null || echo dali)
for argument in "$@"; do
    case "$argument" in
        --dali | --dali-cuda120 | --no-dali) dali=${argument#--} ;;
        -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "setup: unknown argument '$argument'; allowed: --dali, --dali-cuda120, --no-dali, --help" >&2; exit 2 ;;
    esac
done
files=(requirements/python3.10.txt)
[ "$dali" = no-dali ] || files+=("requirements/python3.10-$dali.txt")

# The stamp names what was installed; it is written last, so an interrupted set-up is never taken for a whole one.
stamp=.venv/.installed
wanted=$(printf '%s\n' "$PWD" "${files[@]}"; cat .python-version pyproject.toml "${files[@]}" | sha256sum)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "setup: .venv is up to date"
    exit 0
fi

source scripts/lib/uv.sh
version=$(cat .python-version)
rm -f "$stamp"
if ! .venv/bin/python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
    echo "setup: making .venv with Python $version"
    if ! "$UV" venv --quiet --clear --python "$version" .venv; then
        echo "setup: Python $version was not found and could not be fetched (fairseq 0.12.2 runs on no newer one);" \
            "install it (e.g. 'pyenv install $version', 'apt-get install python$version python$version-venv'" \
            "or 'uv python install $version') and run again" >&2
        exit 1
    fi
fi
echo "setup: installing the locked packages (several GB the first time)"
# Compiled now: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each process would compile torch anew (6 s).
VIRTUAL_ENV=$PWD/.venv "$UV" pip sync --compile-bytecode --require-hashes "${files[@]}"
# --no-deps: every dependency is in the lock already.
VIRTUAL_ENV=$PWD/.venv "$UV" pip install --quiet --no-deps --editable .
echo "$dali" > "$choice"
printf '%s\n' "$wanted" > "$stamp"
echo "setup: done; activate it with: source .venv/bin/activate"
