"""A plugin of flow in Python's standard library: the kind `words.count`.

flow starts `python3 words.py describe` once to learn its kinds, and `python3 words.py run DIR` for each task.
"""
import collections
import json
import os
import sys

DESCRIPTION = {
    "kinds": [
        {
            "kind": "words.count",
            "revision": 1,  # raise it when the same inputs give other bytes
            "summary": "Counts the words of a text.",
            "inputs": [{"name": "text", "types": ["Text", "File"], "doc": "The text."}],
            "outputs": [{"name": "counts", "type": "Json", "doc": "Words and how often they stand there."}],
            "params": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "top": {"type": "integer", "minimum": 1, "default": 10, "description": "So many words, the most frequent first."},
                    "lower": {"type": "boolean", "default": True, "description": "Whether case is ignored."},
                },
            },
        }
    ]
}


def run(directory):
    with open(os.path.join(directory, "task.json")) as file:
        task = json.load(file)

    def tell(**event):
        with open(os.path.join(directory, "events.jsonl"), "a") as file:
            file.write(json.dumps(event) + "\n")

    source = next(i["path"] for i in task["inputs"] if i["port"] == "text")
    with open(source, encoding="utf-8") as file:
        text = file.read()
    words = (text.lower() if task["params"]["lower"] else text).split()
    tell(event="progress", done=len(words), total=len(words), unit="words")
    tell(event="metric", name="words", value=len(words))
    counts = sorted(collections.Counter(words).items(), key=lambda c: (-c[1], c[0]))[: task["params"]["top"]]
    with open(task["outputs"]["counts"], "w", encoding="utf-8") as file:
        json.dump(dict(counts), file, ensure_ascii=False, indent=1)
        file.write("\n")
    with open(os.path.join(directory, "result.json"), "w") as file:
        json.dump({"ok": True}, file)


if sys.argv[1] == "describe":
    json.dump(DESCRIPTION, sys.stdout)
else:
    run(sys.argv[2])
