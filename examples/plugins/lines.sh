#!/usr/bin/env bash
# A plugin of flow in Bash: the kind `lines.sort`. `lines.sh describe` prints its kinds, `lines.sh run DIR` runs a task.
set -euo pipefail

# field FILE KEY: the text of a key; task.json has one key a line.
field() { sed -n "s/^ *\"$2\": \"\(.*\)\",\{0,1\}$/\1/p" "$1" | head -n 1; }

case $1 in
describe)
    cat <<'JSON'
{"kinds": [{
  "kind": "lines.sort", "revision": 1, "summary": "Sorts the lines of a text.",
  "inputs": [{"name": "text", "types": ["Text", "File"]}],
  "outputs": [{"name": "sorted", "type": "Text"}],
  "params": {"properties": {"order": {"enum": ["up", "down"], "default": "up", "description": "Direction."}}}
}]}
JSON
    ;;
run)
    task=$2/task.json
    [ "$(field "$task" order)" = down ] && reverse=-r || reverse=
    # shellcheck disable=SC2086
    LC_ALL=C sort $reverse "$(field "$task" path)" >"$(field "$task" sorted)"
    echo '{"ok": true}' >"$2/result.json"
    ;;
esac
