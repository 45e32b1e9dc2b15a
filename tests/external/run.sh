#!/usr/bin/env bash
# Whether llama.cpp and transformers read what `flow convert` writes: run.sh BINARY LOGITS
#
# LOGITS is the example of flow-lm. The packages are installed once, in the versions named here, into FLOW_EXTERNAL_CACHE or
# ~/.cache/flow/external; FLOW_EXTERNAL_PYTHON names an interpreter that has them already.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,5p' "$0" | cut -c 3-; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
cache=${FLOW_EXTERNAL_CACHE:-$HOME/.cache/flow/external}
home=$cache/$(sha256sum <"$here/requirements.txt" | cut -c 1-16)
python=${FLOW_EXTERNAL_PYTHON:-$home/venv/bin/python}

# One process installs; others wait. `.complete` is written last, so that half a folder is never used.
install() {
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    [ ! -e "$home/.complete" ] || { exec 9>&-; return; }
    rm -rf "$home"
    mkdir -p "$home"
    python3 -m venv "$home/venv" >&2
    "$python" -m pip install -q --disable-pip-version-check -r "$here/requirements.txt" >&2
    touch "$home/.complete"
    exec 9>&-
}
[ -n "${FLOW_EXTERNAL_PYTHON:-}" ] || install
exec "$python" "$here/exports.py" "$1" "$2"
