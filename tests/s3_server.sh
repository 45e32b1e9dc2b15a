#!/usr/bin/env bash
# A real S3 endpoint on loopback for the tests of the remote cache: moto's server, a Python package that is installed
# into a virtual environment on the first call: FLOW_S3_VENV, else ~/.cache/flow/s3-venv.
#   s3_server.sh install    only that
#   s3_server.sh PORT       serves until killed; prints "ready URL" once the bucket flow-cache is there
set -euo pipefail
port=${1:?install, or a port}
venv=${FLOW_S3_VENV:-$HOME/.cache/flow/s3-venv}
# One process installs; others wait. `.complete` is written last, so that half an environment is never used.
mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9
if ! [ -e "$venv/.complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'moto[server]==5.2.5' >&2
    touch "$venv/.complete"
fi
exec 9>&-
[ "$port" != install ] || exit 0
"$venv/bin/moto_server" -H 127.0.0.1 -p "$port" >&2 &
url=http://127.0.0.1:$port
for _ in $(seq 150); do
    if "$venv/bin/python" -c "import urllib.request as u; u.urlopen(u.Request('$url/flow-cache', method='PUT'), timeout=5)" 2>/dev/null; then
        echo "ready $url"
        wait
        exit
    fi
    sleep 0.2
done
echo "moto_server does not answer on port $port" >&2
exit 1
