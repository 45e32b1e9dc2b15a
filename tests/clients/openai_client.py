"""Checks a server with OpenAI's own client: openai_client.py URL MODEL [GROUP...]

Groups are chat and completions (both, if none is named), score, for a server that scores prompts, and key, for one that
asks for the key in FLOW_TEST_KEY and lets few requests wait. One line a check; the first failure ends it.
"""

import asyncio
import json
import os
import re
import sys
import time
import traceback
import urllib.request
from typing import Annotated, Literal

import jsonschema
import openai
from pydantic import BaseModel, ConfigDict, Field

URL, MODEL = sys.argv[1].rstrip("/"), sys.argv[2]
KEY = os.environ.get("FLOW_TEST_KEY", "none")
# Refusals and failures are looked at, not tried again.
client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0, timeout=120)
groups: dict[str, list] = {"chat": [], "completions": [], "score": [], "key": []}
ASK = [{"role": "user", "content": "Tell me about the sea."}]
PROMPT = "The sea is"


class Part(BaseModel):
    """Every value has bounds, so that any model comes to an end of it."""

    model_config = ConfigDict(extra="forbid")


class Owner(Part):
    name: Annotated[str, Field(max_length=6)]


class Pet(Part):
    kind: Literal["cat", "dog"]
    age: Annotated[int, Field(ge=0, le=99)]
    owner: Owner


SCHEMA = Pet.model_json_schema()
FORMAT = {"type": "json_schema", "json_schema": {"name": "pet", "strict": True, "schema": SCHEMA}}
TOOLS = [
    {"type": "function", "function": {"name": "register", "description": "Register a pet.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "description": "What time it is."}},
]
NAMED = {"type": "function", "function": {"name": "register"}}


def check(group: str = "chat"):
    return lambda f: groups[group].append(f) or f


def chat(**more):
    return client.chat.completions.create(**{"model": MODEL, "messages": ASK, "max_tokens": 24, "temperature": 0} | more)


def complete(**more):
    return client.completions.create(**{"model": MODEL, "prompt": PROMPT, "max_tokens": 16, "temperature": 0} | more)


def text(answer, i: int = 0) -> str:
    return answer.choices[i].message.content


def deltas(stream, i: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in stream for c in chunk.choices if c.index == i)


def same(seen, expected, what: str = ""):
    assert seen == expected, f"{what} expected {expected!r}, seen {seen!r}"


def refused(kind, call, param=None, code=None, says: str = ""):
    try:
        seen = call()
    except openai.APIError as e:
        assert type(e) is kind, f"expected {kind.__name__}, seen {e!r}"
        same((e.param, e.code), (param, code), f"param and code of {e}:")
        assert e.type and says in e.message, f"{says!r} is not in {e.message!r}"
        return e
    raise AssertionError(f"expected {kind.__name__}, seen {seen!r}")


def plain(path: str, body=None) -> str:
    """What is no part of OpenAI's API, without its client."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def ids(prompt: str, special: bool = True) -> list[int]:
    return json.loads(plain("/tokenize", {"content": prompt, "add_special": special}))["tokens"]


def brief() -> dict:
    """Against white space that stands alone: small models do not come out of it within their context."""
    return {"max_tokens": openai.omit, "logit_bias": {i: -100 for space in " \n\t" for i in ids(space, False)}}


def healthy():
    """Answers, and nothing of what was given up still runs."""
    same(json.loads(plain("/health"))["status"], "ok")
    until = time.monotonic() + 10
    while running := re.search(r"flow_sequences_running [1-9]\d*", plain("/metrics")):
        assert time.monotonic() < until, f"after 10 s still {running[0]}"
        time.sleep(0.05)
    assert text(chat(max_tokens=2))


@check()
def models():
    [model] = client.models.list().data
    same((model.id, model.object, type(model.created)), (MODEL, "model", int))
    same(client.models.retrieve(MODEL), model)
    refused(openai.NotFoundError, lambda: client.models.retrieve("nobody"), code="model_not_found", says="nobody")


@check()
def whole():
    answer = chat()
    [choice] = answer.choices
    same((answer.object, answer.model, choice.index, choice.message.role), ("chat.completion", MODEL, 0, "assistant"))
    assert answer.id.startswith("chatcmpl-") and abs(answer.created - time.time()) < 300, answer
    assert choice.message.content and choice.message.tool_calls is choice.message.refusal is choice.logprobs is None, choice
    same((choice.finish_reason, answer.usage.completion_tokens), ("length", 24))
    same(answer.usage.total_tokens, answer.usage.prompt_tokens + 24)
    same(chat(max_tokens=openai.omit, max_completion_tokens=5).usage.completion_tokens, 5, "max_completion_tokens:")
    parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    same(text(chat(messages=parts)), text(answer), "content in parts:")


@check()
def stop():
    full = text(chat())
    for stop in full[8:12], ["\0", full[5:11]]:
        choice = chat(stop=stop).choices[0]
        word = stop if isinstance(stop, str) else stop[1]
        same((choice.message.content, choice.finish_reason), (full[: full.index(word)], "stop"), f"stop {stop!r}:")
        same(deltas(chat(stop=stop, stream=True)), choice.message.content, "streamed:")


@check()
def stream():
    full = chat()
    *chunks, last = chat(stream=True, stream_options={"include_usage": True})
    same((last.choices, last.usage.total_tokens), ([], full.usage.total_tokens), "last chunk:")
    same((chunks[0].object, chunks[0].choices[0].delta.role), ("chat.completion.chunk", "assistant"))
    same(deltas(chunks), text(full), "joined:")
    same({(c.id, c.created, c.model, c.usage) for c in chunks}, {(last.id, last.created, MODEL, None)}, "of every chunk:")
    same([c.choices[0].finish_reason for c in chunks], [None] * (len(chunks) - 1) + ["length"])
    assert len(chunks) > 10, f"{len(chunks)} chunks for 24 tokens"
    assert all(c.choices and c.usage is None for c in chat(stream=True)), "usage that was not asked for"


@check()
def cached():
    """What was read before is not read again, however the answer ends."""
    more = {"messages": [{"role": "user", "content": "All the ships of the sea " * 12}], "max_tokens": 8}
    full = chat(**more)
    for more["stop"] in None, text(full)[2:4]:
        usage = chat(**more).usage
        cached = usage.prompt_tokens_details.cached_tokens
        assert 0 < cached < usage.prompt_tokens, f"stop {more['stop']!r}: {usage}"


@check()
def seed():
    first, again, other = (text(chat(temperature=1, seed=s)) for s in (7, 7, 8))
    same(again, first, "the same seed:")
    assert other != first, f"another seed gives the same: {first!r}"


@check()
def several():
    more = {"n": 3, "temperature": 1, "seed": 7}
    answer = chat(**more)
    same([c.index for c in answer.choices], [0, 1, 2])
    texts = [text(answer, i) for i in range(3)]
    assert len(set(texts)) == 3, f"three answers are alike: {texts}"
    same(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
    chunks = list(chat(**more, stream=True))
    same([deltas(chunks, i) for i in range(3)], texts, "streamed:")
    order = [c.index for chunk in chunks for c in chunk.choices]
    assert sum(a != b for a, b in zip(order, order[1:])) > 10, f"one after the other: {order}"
    same(sorted(c.index for chunk in chunks for c in chunk.choices if c.finish_reason), [0, 1, 2], "finish_reason:")


@check()
def logprobs():
    more = {"logprobs": True, "top_logprobs": 4}
    choice = chat(**more).choices[0]
    tokens = choice.logprobs.content
    same(len(tokens), 24)
    same(b"".join(bytes(t.bytes) for t in tokens).decode(errors="replace"), choice.message.content, "bytes:")
    for t in tokens:
        values = [top.logprob for top in t.top_logprobs]
        assert len(values) == 4 and values == sorted(values, reverse=True) and values[0] <= 0, t
        same((t.token, t.logprob), (t.top_logprobs[0].token, values[0]), "the likeliest token at temperature 0:")
    chunks = [c for chunk in chat(**more, stream=True) for c in chunk.choices]
    same([t for c in chunks if c.logprobs for t in c.logprobs.content], tokens, "streamed:")
    bare = chat(logprobs=True).choices[0].logprobs.content
    assert all(t.top_logprobs == [] for t in bare), "alternatives that were not asked for"


@check()
def logit_bias():
    first = text(chat(max_tokens=1))
    [token] = ids(first, False)
    other = text(chat(max_tokens=1, logit_bias={token: -100}))
    assert other != first, f"-100 leaves {first!r}"
    [token] = ids(other, False)
    same(text(chat(max_tokens=3, logit_bias={token: 100})), other * 3, "+100:")


@check()
def json_object():
    # The ids make any model close the object that it has opened.
    bias = {i: 100 for part in ("{}", "{", "}") for i in ids(part, False)}
    for more in {"logit_bias": bias}, {"logit_bias": bias, "stream": True}:
        answer = chat(response_format={"type": "json_object"}, **more)
        seen = deltas(answer) if "stream" in more else text(answer)
        assert isinstance(json.loads(seen), dict), seen


@check()
def json_schema():
    for temperature in 0, 1:
        more = brief() | {"response_format": FORMAT, "temperature": temperature, "seed": 5}
        answer = chat(**more)
        same(answer.choices[0].finish_reason, "stop")
        jsonschema.validate(json.loads(text(answer)), SCHEMA)
        same(deltas(chat(**more, stream=True)), text(answer), "streamed:")
    more = brief() | {"model": MODEL, "messages": ASK, "response_format": Pet, "temperature": 0}
    pet = client.chat.completions.parse(**more).choices[0].message.parsed
    assert isinstance(pet, Pet), pet
    with client.chat.completions.stream(**more) as events:
        for _ in events:
            pass
        same(events.get_final_completion().choices[0].message.parsed, pet, "streamed:")


@check()
def tools():
    for choice in "required", NAMED:
        more = brief() | {"tools": TOOLS, "tool_choice": choice}
        [made] = chat(**more).choices
        [call] = made.message.tool_calls
        same((made.finish_reason, made.message.content, call.type), ("tool_calls", None, "function"))
        valid(call.function, choice)
        chunks = [c for chunk in chat(**more, stream=True) for c in chunk.choices]
        parts = [t for c in chunks for t in c.delta.tool_calls or []]
        assert parts[0].id and {p.index for p in parts} == {0}, parts
        same(chunks[-1].finish_reason, "tool_calls", "streamed:")
        joined = {k: "".join(getattr(p.function, k) or "" for p in parts) for k in ("name", "arguments")}
        same(joined, {"name": call.function.name, "arguments": call.function.arguments}, "streamed:")
    more = brief() | {"tools": [openai.pydantic_function_tool(Pet)], "tool_choice": "required", "temperature": 0}
    [call] = client.chat.completions.parse(model=MODEL, messages=ASK, **more).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Pet), call
    plainly = chat(tools=TOOLS, tool_choice="none").choices[0]
    assert plainly.message.content and not plainly.message.tool_calls, plainly
    said = {"role": "assistant", "tool_calls": [call.model_dump(include={"id", "type", "function"})], "content": None}
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    assert text(chat(messages=[*ASK, said, result], max_tokens=4)), "no answer to a tool's result"
    says = "template has no place for tools"
    for more in {}, {"tool_choice": "auto"}:
        refused(openai.BadRequestError, lambda: chat(tools=TOOLS, **more), "tools", says=says)
    refused(openai.BadRequestError, lambda: chat(tool_choice="required"), "tool_choice", says="tools")


def valid(function, choice):
    if function.name == "register":
        jsonschema.validate(json.loads(function.arguments), SCHEMA)
    else:
        same((choice, function.name, json.loads(function.arguments)), ("required", "now", {}))


@check()
def errors():
    bad, missing = openai.BadRequestError, openai.NotFoundError
    endless = [{"role": "user", "content": "word " * 5000}]
    refused(bad, lambda: chat(messages=endless), "messages", "context_length_exceeded", "context")
    refused(bad, lambda: chat(n=99), "n", says="99")
    refused(bad, lambda: chat(messages=[]), "messages")
    refused(bad, lambda: chat(messages=[{"role": "boss", "content": "x"}]), "messages[0].role", says="boss")
    refused(bad, lambda: chat(temperature="hot"), "temperature")
    refused(bad, lambda: chat(top_p=1.5), "top_p")
    refused(bad, lambda: chat(logprobs=True, top_logprobs=21), "top_logprobs", says="21")
    refused(bad, lambda: chat(logit_bias={"99999999": 1}), "logit_bias")
    refused(bad, lambda: chat(response_format={"type": "xml"}), "response_format", says="xml")
    refused(bad, lambda: chat(extra_body={"suffix": "."}), "suffix", says="suffix")
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    refused(bad, lambda: chat(messages=[{"role": "user", "content": image}]), "messages[0].content", says="image_url")
    refused(bad, lambda: client.post("/chat/completions", content=b'{"messages": [', cast_to=object), says="JSON")
    refused(missing, lambda: client.embeddings.create(model=MODEL, input="x"), says="embeddings")
    refused(missing, lambda: client.images.generate(model=MODEL, prompt="x"), says="images")
    refused(missing, lambda: client.responses.create(model=MODEL, input="x"), says="/v1/responses")


@check()
def concurrent():
    alone = [text(chat(temperature=1, seed=s)) for s in range(8)]

    async def together():
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key=KEY, max_retries=0) as many:
            one = lambda s: many.chat.completions.create(model=MODEL, messages=ASK, max_tokens=24, temperature=1, seed=s)
            return [text(a) for a in await asyncio.gather(*map(one, range(8)))]

    same(asyncio.run(together()), alone)
    healthy()


@check()
def cancel():
    with chat(stream=True, max_tokens=100, n=8) as stream:
        for _ in zip(range(3), stream):
            pass
    healthy()


@check()
def timeout():
    hasty = client.with_options(timeout=0.02)
    try:
        seen = hasty.chat.completions.create(model=MODEL, messages=ASK, max_tokens=100, n=8)
        raise AssertionError(f"no timeout, but {seen}")
    except openai.APITimeoutError:
        healthy()


@check("completions")
def completion_whole():
    answer = complete(max_tokens=openai.omit)
    [choice] = answer.choices
    same((answer.object, answer.model, choice.index, choice.logprobs), ("text_completion", MODEL, 0, None))
    assert answer.id.startswith("cmpl-") and choice.text, answer
    same((choice.finish_reason, answer.usage.completion_tokens), ("length", 16), "16 tokens where none are asked for:")
    same(answer.usage.total_tokens, answer.usage.prompt_tokens + 16)
    same(answer.usage.prompt_tokens, len(ids(PROMPT)))
    stopped = complete(stop=choice.text[8:12]).choices[0]
    same((stopped.text, stopped.finish_reason), (choice.text[: choice.text.index(choice.text[8:12])], "stop"), "stop:")
    same(complete(temperature=1, seed=3).choices, complete(temperature=1, seed=3).choices, "seed:")


@check("completions")
def completion_stream():
    full = complete()
    *chunks, last = complete(stream=True, stream_options={"include_usage": True})
    same((last.choices, last.usage.total_tokens), ([], full.usage.total_tokens), "last chunk:")
    same("".join(c.choices[0].text for c in chunks), full.choices[0].text, "joined:")
    same({(c.id, c.object, c.usage) for c in chunks}, {(last.id, "text_completion", None)})
    same((chunks[0].choices[0].finish_reason, chunks[-1].choices[0].finish_reason), (None, "length"))
    echoed = complete(stream=True, echo=True)
    same("".join(c.choices[0].text for c in echoed), PROMPT + full.choices[0].text, "echo:")


def aligned(choice, top: int):
    """Lists side by side: tokens make up the text, and offsets count its characters."""
    l = choice.logprobs
    same("".join(l.tokens), choice.text, "tokens:")
    same(l.text_offset, [len("".join(l.tokens[:i])) for i in range(len(l.tokens))], "text_offset:")
    same(len(l.token_logprobs), len(l.tokens))
    assert all(isinstance(p, float | int) and p <= 0 for p in l.token_logprobs[1:]), l.token_logprobs
    for token, own, tops in list(zip(l.tokens, l.token_logprobs, l.top_logprobs or []))[1:]:
        # Several tokens may have the same text, so there may be fewer entries.
        assert 1 <= len(tops) <= top + 1 and all(p <= 0 for p in tops.values()), tops
        assert token in tops and max(tops.values()) >= own, (token, own, tops)


@check("completions")
def completion_logprobs():
    full = complete().choices[0].text
    bare = complete(logprobs=3).choices[0]
    same(bare.text, full)
    aligned(bare, 3)
    same(bare.logprobs.text_offset[0], 0)
    chunks = [c.choices[0].logprobs for c in complete(stream=True, logprobs=3)]
    for field in "tokens", "token_logprobs", "text_offset":
        same([x for l in chunks if l for x in getattr(l, field)], getattr(bare.logprobs, field), f"streamed {field}:")


@check("score")
def echo():
    full = complete().choices[0].text
    for prompt in PROMPT, "Käse – ☕ is":
        choice = complete(prompt=prompt, logprobs=3, echo=True).choices[0]
        assert choice.text.startswith(prompt), choice
        l = choice.logprobs
        same(len(l.tokens), len(ids(prompt)) + 16, "tokens:")
        assert l.token_logprobs[0] is None or l.token_logprobs[0] <= 0, l.token_logprobs[0]
        for token, offset in zip(l.tokens, l.text_offset):
            # The bytes of a character may be told apart; those tokens have no text of their own.
            whole = token.isascii() and "bytes:" not in token
            assert not whole or choice.text.startswith(token, offset), (prompt, token, offset)
        if prompt is PROMPT:
            same(choice.text, PROMPT + full)
            aligned(choice, 3)
            said = complete(logprobs=3).choices[0].logprobs
            same(l.token_logprobs[-16:], said.token_logprobs, "after an echo:")
            chunks = [c.choices[0] for c in complete(stream=True, logprobs=3, echo=True)]
            same("".join(c.text for c in chunks), choice.text, "streamed:")
            same([x for c in chunks if c.logprobs for x in c.logprobs.text_offset], l.text_offset, "streamed offsets:")


@check("score")
def score():
    """How evaluations score a text: nothing is added to it."""
    said = complete(logprobs=2).choices[0]
    scored = complete(prompt=PROMPT + said.text, logprobs=2, echo=True, max_tokens=0).choices[0]
    same((scored.text, scored.finish_reason), (PROMPT + said.text, "length"))
    aligned(scored, 2)
    # Read at once or said one by one: rounded differently, and no more than that, if the tokens are the same.
    if scored.logprobs.tokens[-16:] == said.logprobs.tokens:
        pairs = zip(scored.logprobs.token_logprobs[-16:], said.logprobs.token_logprobs)
        assert all(abs(a - b) < 0.05 for a, b in pairs), (scored.logprobs, said.logprobs)
    bare = complete(prompt=[ids(PROMPT), ids("Once")], logprobs=0, echo=True, max_tokens=0)
    same([len(c.logprobs.tokens) for c in bare.choices], [len(ids(PROMPT)), len(ids("Once"))], "tokens of two prompts:")
    same(bare.usage.completion_tokens, 0)


@check("completions")
def prompts():
    other = "Once upon a"
    alone = [complete(prompt=p).choices[0].text for p in (PROMPT, other)]
    same([(c.index, c.text) for c in complete(prompt=[PROMPT, other]).choices], list(enumerate(alone)), "two prompts:")
    same(complete(prompt=ids(PROMPT)).choices[0].text, alone[0], "ids:")
    same([c.text for c in complete(prompt=[ids(PROMPT), ids(other)]).choices], alone, "two lists of ids:")
    answer = complete(prompt=[PROMPT, other], n=2)
    same([(c.index, c.text) for c in answer.choices], list(enumerate([alone[0]] * 2 + [alone[1]] * 2)), "twice two:")
    same((answer.usage.prompt_tokens, answer.usage.completion_tokens), (len(ids(PROMPT)) + len(ids(other)), 64), "usage:")
    two = complete(n=2, temperature=1, seed=3).choices
    assert two[0].text != two[1].text, f"two answers are alike: {two}"
    chunks = list(complete(prompt=[PROMPT, other], stream=True))
    joined = ["".join(c.text for chunk in chunks for c in chunk.choices if c.index == i) for i in range(2)]
    same(joined, alone, "streamed:")


@check("completions")
def completion_errors():
    bad = openai.BadRequestError
    refused(bad, lambda: complete(suffix="."), "suffix", says="suffix")
    refused(bad, lambda: complete(best_of=2), "best_of", says="best_of")
    refused(bad, lambda: complete(n=99), "n", says="99")
    refused(bad, lambda: complete(logprobs=21), "logprobs", says="21")
    refused(bad, lambda: complete(prompt=[99999999]), "prompt")
    refused(bad, lambda: complete(prompt=[]), "prompt")
    refused(bad, lambda: complete(prompt={"text": "x"}), "prompt")
    refused(bad, lambda: complete(prompt="word " * 5000), "prompt", "context_length_exceeded", "context")
    with complete(stream=True, max_tokens=100, n=8) as stream:
        next(iter(stream))
    healthy()


@check("key")
def key():
    assert text(chat(max_tokens=2)) and client.models.list().data
    for wrong in "wrong", KEY + "x":
        other = client.with_options(api_key=wrong)
        refused(openai.AuthenticationError, other.models.list, code="invalid_api_key", says="key")


@check("key")
def busy():
    """More requests than may wait: some are told to come again, and do if the client is let."""

    async def all_of(retries: int, n: int = 6):
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key=KEY, max_retries=retries) as many:
            one = lambda _: many.chat.completions.create(model=MODEL, messages=ASK, max_tokens=100, n=8, temperature=0)
            return await asyncio.gather(*map(one, range(n)), return_exceptions=True)

    seen = asyncio.run(all_of(0))
    late = [e for e in seen if isinstance(e, openai.RateLimitError)]
    assert late and len(late) < len(seen), seen
    assert all(int(e.response.headers["retry-after"]) >= 1 for e in late), late
    assert all(isinstance(e, openai.types.chat.ChatCompletion) for e in asyncio.run(all_of(9))), "not all came through"


def main() -> int:
    for name in sys.argv[3:] or ["chat", "completions"]:
        for f in groups[name]:
            title = f.__name__.replace("_", " ")
            try:
                f()
            except Exception as e:
                where = traceback.extract_tb(e.__traceback__)[1]
                print(f"openai: {title}: FAILED at line {where.lineno}: {type(e).__name__}: {e}", flush=True)
                return 1
            print(f"openai: {title}: ok", flush=True)
    return 0


sys.exit(main())
