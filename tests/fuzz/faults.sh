#!/usr/bin/env bash
# Puts faults that earlier versions had back into a copy of the tree, one in each of four readers, and demands that the property
# test of each finds its own within a minute: `tests/fuzz/faults.sh`. One build serves all.
#
# gguf: a tensor that ends beyond the file; safetensors: a configuration of any number of layers; tokenizer: a decoder that is no
# JSON, at which the library panics; yaml: a place within a character.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
copy=$(mktemp -d)
trap 'git worktree remove --force "$copy/tree" 2>/dev/null; rm -rf "$copy"' EXIT
git worktree add --detach --quiet "$copy/tree" HEAD
cd "$copy/tree"
for patch in "$root"/tests/fuzz/faults/*.patch; do git apply "$patch"; done
# Its own: cargo would take libraries with faults for those of the tree.
export CARGO_TARGET_DIR=${FLOW_FAULTS_TARGET:-$root/target/faults}
cargo test --release --locked --workspace --test fuzz --no-run
missed=0
for patch in "$root"/tests/fuzz/faults/*.patch; do
    name=$(basename "$patch" .patch)
    began=$SECONDS
    if PROPTEST_CASES=1000000 timeout -s KILL 60 cargo test --release --locked --workspace --test fuzz -- --exact "$name" >"$copy/log" 2>&1; then
        status=0
    else
        status=$?
    fi
    # 137: the minute was over.
    if [ "$status" -eq 0 ] || [ "$status" -eq 137 ]; then
        echo "faults: $name: NOT found within $((SECONDS - began)) s"
        missed=$((missed + 1))
    else
        echo "faults: $name: found after $((SECONDS - began)) s: $(grep -aoE 'panicked at [^ ]*|signal: [^)]*|memory allocation of [0-9]* bytes failed' "$copy/log" | tail -n 1)"
    fi
done
exit "$missed"
