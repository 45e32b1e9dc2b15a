"""Writes expected.json: what jinja2, as transformers sets it up, makes of the templates here.

    python3 -m venv venv && venv/bin/pip install transformers==5.24.0 jinja2==3.1.6
    venv/bin/python tests/golden/chat/make.py

The templates are our own, with the constructs of those that the families publish. Time is the one thing that differs by
intent: a template that asks whether there is a clock gets none, another that it is 26 July 2024.
"""

import datetime
import json
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

here = Path(__file__).parent
user = lambda text: {"role": "user", "content": text}
assistant = lambda text: {"role": "assistant", "content": text}
system = lambda text: {"role": "system", "content": text}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The <weather> & it's \"state\"", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "Größe"}, "at": {"type": ["number", "null"]}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "add", "parameters": {}, "description": "adds"}},
]
call = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "at": 1.5, "b": [True, None]}}}]}
CONVERSATIONS = [
    {"messages": [user("Hi")]},
    {"messages": [user("  Hi there \n\n")]},
    {"messages": [system("Be brief. "), user("Hi")]},
    {"messages": [user("One?"), assistant("1. "), user("Two?")]},
    {"messages": [system("You are <b>terse</b> & 'kind'."), user("Ünï 🙂"), assistant("\n\nOk."), user("x\ny"), assistant("z"), user("end")]},
    {"messages": [system("/no_think Sum up."), user("Go"), assistant("<think>\nhm\n</think>\n\nDone."), user("Again")]},
    {"messages": [system("Short. /system_override"), user("Go")]},
    {"messages": [user("Weather?")], "tools": TOOLS},
    {"messages": [system("Use tools."), user("Weather?"), call, {"role": "tool", "content": "rain", "tool_call_id": "call00001"}], "tools": TOOLS},
    {"messages": [user("A?"), call, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, assistant("<think>so</think>3"), user("B?")], "tools": TOOLS},
    {"messages": [user("twice"), user("in a row")]},
    {"messages": [user("half"), assistant("an answer")]},
]


def rendered(source, conversation):
    template = _compile_jinja_template(source)
    template.environment.globals.pop("strftime_now", None)
    values = {"messages": conversation["messages"], "tools": conversation.get("tools"), "documents": None, "add_generation_prompt": True,
              "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    if "strftime_now is defined" not in source:
        values["strftime_now"] = lambda form: datetime.datetime(2024, 7, 26).strftime(form)
    try:
        return template.render(**values)
    except (jinja2.TemplateError, TypeError) as e:
        return {"error": str(e)}


templates = {p.stem: [rendered(p.read_text(), c) for c in CONVERSATIONS] for p in sorted(here.glob("*.jinja"))}
for name, texts in templates.items():
    print(name, [t["error"] for t in texts if isinstance(t, dict)])
out = {"conversations": CONVERSATIONS, "templates": templates}
(here / "expected.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
