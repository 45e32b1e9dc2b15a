"""Checks a server with litellm: litellm_client.py URL MODEL [GROUP...] (groups as in openai_client.py)."""

import json
import os
import sys

# Prices are not asked for: its list would be fetched over the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import jsonschema
import litellm

URL, MODEL = sys.argv[1].rstrip("/"), sys.argv[2]
KEY = os.environ.get("FLOW_TEST_KEY", "none")
groups: dict[str, list] = {"chat": [], "completions": [], "score": [], "key": []}
litellm.suppress_debug_info = True
SERVER = {"api_base": URL + "/v1", "api_key": KEY, "num_retries": 0, "max_retries": 0, "timeout": 120}
ASK = [{"role": "user", "content": "Tell me about the sea."}]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}


def check(group: str = "chat"):
    return lambda f: groups[group].append(f) or f


def chat(**more):
    asked = {"model": "openai/" + MODEL, "messages": ASK, "max_tokens": 24, "temperature": 0}
    return litellm.completion(**SERVER | asked | more)


def same(seen, expected, what: str = ""):
    assert seen == expected, f"{what} expected {expected!r}, seen {seen!r}"


def refused(kind, call, says: str):
    try:
        seen = call()
    except Exception as e:
        assert type(e) is kind and says in str(e), f"expected {kind.__name__} with {says!r}, seen {e!r}"
        return
    raise AssertionError(f"expected {kind.__name__}, seen {seen!r}")


@check()
def whole():
    answer = chat()
    [choice] = answer.choices
    assert choice.message.content and choice.message.role == "assistant", choice
    same((choice.finish_reason, answer.usage.completion_tokens), ("length", 24))
    same(answer.usage.total_tokens, answer.usage.prompt_tokens + 24)
    half = choice.message.content[10:14]
    stopped = chat(stop=half).choices[0]
    cut = choice.message.content.index(half)
    same((stopped.message.content, stopped.finish_reason), (choice.message.content[:cut], "stop"))


@check()
def stream():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    joined = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    same(joined, chat().choices[0].message.content)
    same([c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason], ["length"])
    same(chunks[-1].usage.completion_tokens, 24)
    same(litellm.stream_chunk_builder(chunks, messages=ASK).choices[0].message.content, joined, "put together:")


@check()
def logprobs():
    choice = chat(logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    same(b"".join(bytes(t.bytes) for t in tokens).decode(errors="replace"), choice.message.content)
    assert all(len(t.top_logprobs) == 3 and t.top_logprobs[0].token == t.token for t in tokens), tokens


@check()
def tools():
    function = {"name": "register", "description": "Register a pet.", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    more = {"tools": tools, "tool_choice": "required", "max_tokens": 100}
    choice = chat(**more).choices[0]
    [call] = choice.message.tool_calls
    same((choice.finish_reason, call.type, call.function.name), ("tool_calls", "function", "register"))
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    again = litellm.stream_chunk_builder(list(chat(**more, stream=True))).choices[0]
    same((again.finish_reason, again.message.tool_calls[0].function), ("tool_calls", call.function), "streamed:")
    refused(litellm.BadRequestError, lambda: chat(tools=tools, tool_choice="auto"), "template has no place for tools")


@check()
def json_schema():
    shape = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}
    made = chat(response_format=shape, max_tokens=100).choices[0].message.content
    jsonschema.validate(json.loads(made), SCHEMA)


@check()
def errors():
    endless = [{"role": "user", "content": "word " * 5000}]
    refused(litellm.ContextWindowExceededError, lambda: chat(messages=endless), "context")
    refused(litellm.BadRequestError, lambda: chat(n=99), "99")
    file = [{"type": "file", "file": {"file_id": "x"}}]
    refused(litellm.BadRequestError, lambda: chat(messages=[{"role": "user", "content": file}]), "`file`")
    refused(litellm.NotFoundError, lambda: litellm.embedding(model="openai/" + MODEL, input=["x"], **SERVER), "embeddings")


@check("completions")
def text_completion():
    model = "text-completion-openai/" + MODEL
    ask = {**SERVER, "model": model, "prompt": "The sea is", "max_tokens": 16, "temperature": 0}
    answer = litellm.text_completion(**ask)
    same((answer.choices[0].finish_reason, answer.usage.completion_tokens), ("length", 16))
    streamed = litellm.text_completion(**ask, stream=True)
    same("".join(c.choices[0].text or "" for c in streamed), answer.choices[0].text, "streamed:")
    refused(litellm.BadRequestError, lambda: litellm.text_completion(**ask, best_of=2), "best_of")


@check("key")
def key():
    assert chat(max_tokens=2).choices[0].message.content
    refused(litellm.AuthenticationError, lambda: chat(api_key="wrong"), "key")


def main() -> int:
    for name in sys.argv[3:] or ["chat", "completions"]:
        for f in groups[name]:
            title = f.__name__.replace("_", " ")
            try:
                f()
            except Exception as e:
                print(f"litellm: {title}: FAILED: {type(e).__name__}: {e}", flush=True)
                return 1
            print(f"litellm: {title}: ok", flush=True)
    return 0


sys.exit(main())
