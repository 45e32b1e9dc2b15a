#!/usr/bin/env bash
# Runs all tests; the last line is how many passed. Arguments go to `cargo test`, such as a test's name.
set -uo pipefail
cd "$(dirname "$0")"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --release --workspace --locked --no-fail-fast "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

sum() { awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ "^" word) n += $(i - 1) } END { print n + 0 }' "$log"; }
passed=$(sum passed) failed=$(sum failed)
if [ "$status" -ne 0 ]; then
    echo "cargo test failed ($status)"
    echo "$passed tests passed, $failed failed"
    exit "$status"
fi
echo "$passed tests passed"
