#!/usr/bin/env bash
# Which of the functions behind the doors the property tests of others' files reach, and how often: `tests/fuzz/coverage.sh [CASES]`.
# Needs the compiler's own tools (`rustup component add llvm-tools`). A function that is not reached ends it with an error.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=$(dirname "$(rustc --print target-libdir)")/bin
[ -x "$tools/llvm-cov" ] || { echo "coverage: no llvm-cov: rustup component add llvm-tools" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CARGO_TARGET_DIR=${FLOW_COVERAGE_TARGET:-$PWD/target/coverage} CARGO_PROFILE_RELEASE_STRIP=false
export RUSTFLAGS="-C instrument-coverage" LLVM_PROFILE_FILE="$work/%p.profraw" PROPTEST_CASES=${1:-1000}
binary=$(cargo test --release --locked --workspace --test fuzz --no-run 2>&1 | tee /dev/stderr | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
rm -f "$work"/*.profraw
"$binary" --quiet >/dev/null
"$tools/llvm-profdata" merge -sparse "$work"/*.profraw -o "$work/all"
"$tools/llvm-cov" export --format=text --skip-expansions --instr-profile="$work/all" "$binary" >"$work/json"
# Functions that are only reached with a file that says what it is: what they are called in the source, and in which file.
names='
gguf/read.rs check_table
gguf/read.rs other_parts
gguf/model.rs load
gguf/packed.rs rows
gguf/packed.rs shared_scale
gguf/quant/mod.rs dequantise
gguf/tokenizer.rs json
gguf/roles.rs of
format/hf.rs read_directory
format/hf.rs config_of
format/safetensors.rs floats
format/finite.rs check
format/ternary.rs masters
tokenizer/fidelity.rs of
tokenizer/mod.rs wrap
lm/src/chat.rs render
shape/scoring.rs generate
shape/openai.rs drawn
hosted/rows.rs rows_of
engine/src/walk.rs places
plan/link.rs link
engine/src/document.rs at_bytes
'
python3 - "$work/json" "$names" <<'P'
import json, sys
functions = json.load(open(sys.argv[1]))["data"][0]["functions"]
missing = 0
for line in sys.argv[2].split("\n"):
    if not line: continue
    place, name = line.split()
    of = [f for f in functions if any(place in x for x in f["filenames"]) and (f"{len(name)}{name}" in f["name"])]
    count = sum(f["count"] for f in of)
    missing += not count
    print(f"{place:32} {name:16} {count:>10}" if of else f"{place:32} {name:16} {'no such':>10}")
sys.exit(f"coverage: {missing} functions are not reached" if missing else 0)
P
