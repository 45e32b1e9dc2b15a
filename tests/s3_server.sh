#!/usr/bin/env bash
# A real S3 endpoint on loopback for the tests of the remote cache: moto's server, a Python package that is installed
# into a folder of its own on the first call.
#   s3_server.sh PORT    serves until killed; prints "ready URL" once the bucket flow-cache is there
set -euo pipefail
port=${1:?port}
venv=${FLOW_TOOLS_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/flow-tests/s3}
if ! [ -x "$venv/bin/moto_server" ]; then
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet 'moto[server]' >&2
fi
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
