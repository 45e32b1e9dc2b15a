#!/usr/bin/env bash
# Checks a server with curl: curl_client.sh URL MODEL [GROUP...] (groups as in openai_client.py).
set -euo pipefail
url=$1 model=$2
shift 2
[ $# -gt 0 ] || set -- chat completions
auth=(-H "Authorization: Bearer ${FLOW_TEST_KEY:-none}")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

ok() { echo "curl: $1: ok"; }
fail() { echo "curl: $1: FAILED: ${*:2}"; exit 1; }
call() { curl -sS -N --max-time 120 "${auth[@]}" "$@"; }
# One value of the JSON on standard input; nothing if it is none.
field() {
    python3 -c 'import functools, json, sys
at = lambda value, key: value[int(key) if isinstance(value, list) else key]
print(functools.reduce(at, sys.argv[1].split("."), json.load(sys.stdin)))' "$1" 2>/dev/null || true
}
now() { echo "${EPOCHREALTIME/[.,]/}"; }

# refused NAME STATUS TEXT ARGS...: an error's status, kind of content, and message.
refused() {
    local seen
    seen=$(call -o "$dir/body" -w '%{http_code} %{content_type}' "${@:4}") || fail "$1" "curl says $?"
    [ "$seen" = "$2 application/json" ] || fail "$1" "expected $2 application/json, seen $seen: $(head -c 500 "$dir/body")"
    [[ $(field error.message <"$dir/body") == *$3* ]] || fail "$1" "no '$3' in the error: $(head -c 500 "$dir/body")"
    [ -n "$(field error.type <"$dir/body")" ] || fail "$1" "no type in the error: $(cat "$dir/body")"
}

# streamed NAME PATH FIELDS: lines come as they are made, and end with [DONE].
streamed() {
    # Times count from the server's first line, so that the start of curl does not matter.
    local begun=0 first=0 last=0 n=0 line end=''
    call -D "$dir/head" "$url$2" -H 'Content-Type: application/json' \
        -d "{\"model\": \"$model\", \"max_tokens\": 100, \"n\": 4, \"temperature\": 0, \"stream\": true, $3}" >"$dir/pipe" &
    local client=$!
    while IFS= read -r line; do
        last=$(now)
        [ "$begun" != 0 ] || begun=$last
        case $line in
            '') ;;
            'data: [DONE]') end=$line ;;
            'data: {'*'}')
                [ -z "$end" ] || fail "$1" "a line after [DONE]: $line"
                n=$((n + 1))
                # The tenth: what a client sees early of a stream of hundreds.
                [ $n -ne 10 ] || first=$last
                ;;
            *) fail "$1" "a line of another kind: $line" ;;
        esac
    done <"$dir/pipe"
    wait $client || fail "$1" "curl says $?"
    grep -qi '^content-type: text/event-stream' "$dir/head" || fail "$1" "$(cat "$dir/head")"
    [ -n "$end" ] || fail "$1" "no data: [DONE] at the end"
    [ $n -gt 50 ] && [ $(((first - begun) * 2)) -lt $((last - begun)) ] ||
        fail "$1" "of $n lines the tenth came after $((first - begun)) µs, the last after $((last - begun)) µs"
    ok "$1"
}

chat() {
    local c=$url/v1/chat/completions seen
    streamed stream /v1/chat/completions '"messages": [{"role": "user", "content": "Tell me about the sea."}]'

    [ "$(call "$url/health" | field status)" = ok ] || fail health "$(call -i "$url/health")"
    [ "$(call "$url/v1/models" | field data.0.id)" = "$model" ] || fail health "no $model in $(call "$url/v1/models")"
    ok health

    refused errors 400 JSON "$c" -d '{"messages": ['
    refused errors 400 JSON "$c" -d '["messages"]'
    refused errors 400 JSON "$c" -d ''
    refused errors 400 messages "$c" -d '{}'
    refused errors 400 JSON "$url/tokenize" -d '{'
    refused errors 404 nothing-here "$url/v1/nothing-here"
    refused errors 404 nobody "$url/v1/models/nobody"
    refused errors 400 '' "$url/v1/models/%ff"
    refused errors 404 embeddings "$url/v1/embeddings" -d '{}'
    ok errors

    refused methods 405 GET "$c"
    refused methods 405 DELETE -X DELETE "$url/v1/models"
    refused methods 405 POST "$url/metrics" -d ''
    # A method that is refused comes with those that are not.
    grep -qi '^allow:.*POST' <(call -i "$c") || fail methods "no Allow: $(call -i "$c")"
    for path in /health /v1/models /metrics; do
        seen=$(call -I "$url$path" -o "$dir/head" -w '%{http_code} %{size_download}')
        [ "$seen" = "200 0" ] || fail methods "HEAD $path: $seen"
    done
    seen=$(call -I "$c" -o /dev/null -w '%{http_code} %{size_download}')
    [ "$seen" = "405 0" ] || fail methods "HEAD of the chat: $seen"
    seen=$(call -X OPTIONS "$c" -D "$dir/head" -o /dev/null -w '%{http_code}')
    [[ $seen = 20[04] || $seen = 405 ]] || fail methods "OPTIONS: $seen"
    ! grep -qi '^access-control-allow-origin: \*' "$dir/head" || fail methods "any page may ask: $(cat "$dir/head")"
    ok methods

    # Before the test, so that its own numbers are there.
    call -D "$dir/head" "$url/metrics" >"$dir/metrics"
    grep -qi '^content-type: text/plain; version=0.0.4' "$dir/head" || fail metrics "$(cat "$dir/head")"
    if command -v promtool >/dev/null; then promtool check metrics <"$dir/metrics" || fail metrics "promtool says no"; fi
    seen=$(prometheus "$dir/metrics") || fail metrics "$seen"
    ok metrics

    refused_head 'long header' -H "X-Long: $(head -c 100000 /dev/zero | tr '\0' a)"
    local many=()
    for i in $(seq 200); do many+=(-H "X-$i: 1"); done
    refused_head 'many headers' "${many[@]}"
    refused_head 'long path' --url-query "q=$(head -c 100000 /dev/zero | tr '\0' a)"
    head -c 9000000 /dev/zero | tr '\0' ' ' >"$dir/big"
    # With its length told and without; no answer while it is still sent would be none at all.
    refused 'big bodies' 413 '' "$c" --data-binary "@$dir/big" -H Expect:
    refused 'big bodies' 413 '' "$c" --data-binary "@$dir/big" -H Expect: -H 'Transfer-Encoding: chunked'
    refused 'big bodies' 413 '' "$url/tokenize" --data-binary "@$dir/big" -H Expect:
    ok 'big bodies'

    for host in evil.example 127.0.0.1.evil.example:80 0.0.0.0; do
        refused host 403 "$host" "$url/v1/models" -H "Host: $host"
    done
    [ "$(call "$url/v1/models" -H "Host: localhost" | field object)" = list ] || fail host "localhost is refused"
    ok host
    for origin in https://evil.example null; do
        refused origin 403 "$origin" "$c" -d '{}' -H "Origin: $origin"
    done
    refused origin 400 messages "$c" -d '{}' -H "Origin: $url"
    ok origin
}

# A head that is too large is refused before it is read as a whole: a 4xx, whatever its body.
refused_head() {
    local seen
    seen=$(call -o /dev/null -w '%{http_code}' "${@:2}" "$url/health") || fail "$1" "curl says $?"
    [[ $seen = 4?? ]] || fail "$1" "expected 4xx, seen $seen"
    ok "$1"
}

# The text form that Prometheus reads: a type before its samples, names, numbers, histograms that add up.
prometheus() {
    awk '
        function bad(why) { print "line " NR ": " why ": " $0; failed = 1; exit 1 }
        BEGIN {
            word = "[a-zA-Z_:][a-zA-Z0-9_:]*"; label = "[a-zA-Z_][a-zA-Z0-9_]*=\"[^\"\\\\]*\""
            number = "[-+]?([0-9]+([.][0-9]+)?([eE][-+]?[0-9]+)?|Inf|NaN)"
            sample = "^" word "([{]" label "(," label ")*[}])? " number "$"
        }
        $0 ~ "^# HELP " word " ." { next }
        /^# TYPE / {
            if ($4 !~ /^(counter|gauge|histogram|summary|untyped)$/ || NF != 4) bad("no type")
            if ($3 in type) bad("a second type")
            if ($4 == "counter" && $3 !~ /_total$/) bad("a counter is called _total")
            type[$3] = $4; next
        }
        /^#/ || /^$/ { next }
        $0 !~ sample { bad("no sample") }
        {
            name = $1; sub(/[{].*/, "", name); base = name; sub(/_(bucket|sum|count)$/, "", base)
            if (!(name in type) && type[base] != "histogram") bad("a sample without a type")
            if ($1 in seen) bad("a second sample")
            seen[$1] = $2; samples++
            if (name == base "_bucket") { if ($2 < last[base]) bad("buckets do not add up"); last[base] = $2 }
        }
        END {
            if (failed) exit 1
            for (name in type) if (type[name] == "histogram") {
                all = seen[name "_bucket{le=\"+Inf\"}"]
                if (all == "" || all != seen[name "_count"]) { print name ": +Inf is not the count"; exit 1 }
                if (seen[name "_sum"] == "") { print name ": no sum"; exit 1 }
            }
            if (!samples) { print "no samples"; exit 1 }
        }' "$1"
}

completions() {
    local c=$url/v1/completions
    streamed 'completion stream' /v1/completions '"prompt": "The sea is"'
    refused 'completion errors' 400 JSON "$c" -d '{"prompt": '
    refused 'completion errors' 400 best_of "$c" -d '{"prompt": "x", "best_of": 2}'
    refused 'completion errors' 405 GET "$c"
    ok 'completion errors'
}

score() { :; }

key() {
    [ "$(call "$url/v1/models" | field object)" = list ] || fail key "the right one is refused"
    auth=()
    refused key 401 key "$url/v1/models"
    refused key 401 key "$url/v1/models" -H 'Authorization: Bearer wrong'
    refused key 401 key "$url/metrics" -H 'Authorization: Basic eDp5'
    [ "$(call "$url/health" | field status)" = ok ] || fail key "/health asks for it"
    ok key
}

mkfifo "$dir/pipe"
for group in "$@"; do
    case $group in chat | completions | score | key) $group ;; *) fail "$group" "no such group" ;; esac
done
