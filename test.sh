#!/usr/bin/env bash
# Runs all tests; the last line is how many passed, failed and were skipped (for want of an adapter, a teacher or a server: what for
# is said before it). Arguments go to `cargo test`, such as a test's name.
set -uo pipefail
cd "$(dirname "$0")"

log=$(mktemp)
trap 'rm -f "$log" "$log.rest"' EXIT
# What runs beside would not hear of an interruption.
trap 'rm -f "$log" "$log.rest"; kill 0' INT
tests() { cargo test --release --workspace --locked --no-fail-fast "$@" 2>&1; }
if [ $# -gt 0 ]; then
    tests "$@" | tee "$log"
    status=${PIPESTATUS[0]}
else
    # Two halves side by side, once all is built: cargo runs one binary after the other, and the last test of each leaves cores idle.
    # The second half is shown when the first is over.
    tests --no-run | tee "$log"
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || { echo "cargo test failed ($status)"; exit "$status"; }
    {
        tests --test '[q-z]*' --lib --bins
        half=$?
        tests --doc || half=$?
        exit "$half"
    } >"$log.rest" &
    rest=$!
    tests --test '[!q-z]*' | tee -a "$log"
    status=${PIPESTATUS[0]}
    wait "$rest" || status=$?
    tee -a "$log" <"$log.rest"
fi

sum() { awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ "^" word) n += $(i - 1) } END { print n + 0 }' "$log"; }
# One line for each test and reason, however often it said so.
reasons() { grep -o 'SKIPPED .*' "$log" | sort -u; }
[ "$status" -eq 0 ] || echo "cargo test failed ($status)"
reasons | sed 's/^SKIPPED [^ ]*: //' | sort | uniq -c | sed 's/^ */skipped: /'
echo "$(sum passed) tests passed, $(sum failed) failed, $(reasons | wc -l) skipped"
exit "$status"
