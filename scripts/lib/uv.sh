# Sourced from the repository's root: sets UV to a uv executable, fetching a pinned one with pip where there is none.
UV=$(command -v uv || true)
if [ -z "$UV" ]; then
    UV=$PWD/.uv/bin/uv
    if [ ! -x "$UV" ]; then
        python=$(command -v python3 || command -v python || true)
        if [ -z "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
            echo "setup: neither uv nor a Python with pip was found; install uv, or python3 with pip, and run again" >&2
            exit 1
        fi
        echo "setup: fetching uv with pip into .uv/"
        # --target leaves the user's Python alone; the other directory name keeps a half-done fetch from passing for uv.
        rm -rf .uv .uv.partial
        if ! "$python" -m pip install --quiet --disable-pip-version-check --target .uv.partial "uv==0.13.9" \
                2> .uv.log; then
            cat .uv.log >&2
            echo "setup: pip could not fetch uv (see above); check the network, or install uv yourself" >&2
            exit 1
        fi
        rm -f .uv.log
        mv .uv.partial .uv
    fi
fi
