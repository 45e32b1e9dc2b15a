#!/usr/bin/env bash
# Runs clients that others wrote against `flow serve`: run.sh BINARY CHATMODEL BASEMODEL
#
# The clients are installed once, in the versions named here, into FLOW_CLIENTS_CACHE or ~/.cache/flow/clients.
set -euo pipefail
[ $# -eq 3 ] || { sed -n '2,4p' "$0" | cut -c 3-; exit 2; }
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
binary=$(realpath "$1") chat=$2 base=$3
here=$(cd "$(dirname "$0")" && pwd)
cache=${FLOW_CLIENTS_CACHE:-$HOME/.cache/flow/clients}
# What is installed is named after what was asked for, so that another version never meets an old folder.
home=$cache/$(cat "$here"/{requirements.txt,package.json,package-lock.json} | sha256sum | cut -c 1-16)
python=$home/venv/bin/python

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
    cp "$here"/package.json "$here"/package-lock.json "$home"
    (cd "$home" && PATH=$home/venv/bin:$PATH npm ci --silent --no-audit --no-fund --ignore-scripts >&2)
    touch "$home/.complete"
    exec 9>&-
}
install

dir=$(mktemp -d)
servers=()
# Servers are asked to end, and have to.
stop() {
    local status=0 pid
    for pid in "${servers[@]}"; do
        kill -TERM "$pid" 2>/dev/null || true
        wait "$pid" || { status=$?; echo "a server ended with $status" >&2; }
    done
    servers=()
    return $status
}
trap 'stop || true; rm -rf "$dir"' EXIT

# serve NAME MODEL ARGS...: starts a server on a free port; its address is then in $url.
serve() {
    local line='' name=$1
    mkfifo "$dir/$name.out"
    "$binary" serve "$2" --name "$name" --port 0 "${@:3}" >"$dir/$name.out" 2>"$dir/$name.err" &
    servers+=($!)
    read -r -t 120 line <"$dir/$name.out" || { cat "$dir/$name.err" >&2; exit 1; }
    url=${line#"$name on "} url=${url%/v1}
    [[ $url == http://127.0.0.1:* ]] || { echo "$name said: $line" >&2; exit 1; }
}

# check URL MODEL GROUP...: all clients. What a person has set up for others is not meant here.
check() {
    local -x NO_PROXY='*' no_proxy='*'
    "$python" "$here/openai_client.py" "$@"
    "$python" "$here/litellm_client.py" "$@"
    # Packages are found beside the script.
    "$home/venv/bin/node" "$home/ai_client.mjs" "$@"
    "$here/curl_client.sh" "$@"
}
cp "$here/ai_client.mjs" "$home"

serve chat "$chat"
check "$url" chat chat completions
serve base "$base" --score
check "$url" base chat completions score
export FLOW_TEST_KEY=a-key-for-tests
serve keyed "$base" --api-key-env FLOW_TEST_KEY --slots 1 --queue 1
check "$url" keyed key
stop
echo "clients: ok"
