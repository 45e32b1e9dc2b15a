"""Compares with llama.cpp's server over the same GGUF files; the standard library alone.

peer.py greedy FLOW LLAMA PROMPTS.jsonl [COUNT [TOKENS]]
    llama.cpp's greedy text, and along it what flow (started with --score) finds most likely: how many tokens are equal, and
    how far behind (nats) those are that are not.
peer.py kl FLOW LLAMA_MODEL LLAMA_OTHER TEXT [CONTEXT [WINDOWS]]
    KL(other || model) and top-1 agreement over the second half of each window, as `flow eval MODEL --against OTHER` tells them,
    from the whole distributions that two of llama.cpp's servers give. FLOW serves either model, for the tokens.

FLOW and the others are addresses such as http://127.0.0.1:8080. One line of JSON.
"""

import json
import math
import sys
import urllib.request


def ask(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=600) as answer:
        return json.load(answer)


def greedy(flow: str, llama: str, prompts: str, count="40", tokens="48"):
    lines = [json.loads(line)["prompt"] for line in open(prompts, encoding="utf-8") if line.strip()]
    step = max(1, len(lines) // int(count))
    equal, all_tokens, behinds = 0, 0, []
    for prompt in lines[::step][: int(count)]:
        ids = ask(flow + "/tokenize", {"content": prompt, "add_special": True})["tokens"]
        said = ask(llama + "/completion", {"prompt": ids, "n_predict": int(tokens), "temperature": 0, "top_k": 1, "return_tokens": True,
                                           "cache_prompt": False, "samplers": ["top_k"]})["tokens"]
        both = (ids + said)[:128] if len(ids) < 128 else []
        if len(both) <= len(ids):
            continue
        scored = ask(flow + "/v1/completions", {"prompt": both, "max_tokens": 0, "echo": True, "logprobs": 1})["choices"][0]["logprobs"]
        for own, top in list(zip(scored["token_logprobs"], scored["top_logprobs"]))[len(ids):]:
            # The token itself is among them where it is not the likeliest.
            behind = max(top.values()) - own
            equal += behind <= 0
            all_tokens += 1
            behinds.append(behind)
    behinds.sort(reverse=True)
    print(json.dumps({"tokens": all_tokens, "equal": round(equal / all_tokens, 4), "nats_behind": [round(b, 4) for b in behinds[:5]],
                      "above_a_quarter": sum(b > 0.25 for b in behinds)}))


def distribution(llama: str, ids: list) -> dict:
    answer = ask(llama + "/completion", {"prompt": ids, "n_predict": 1, "n_probs": 1 << 16, "temperature": 0, "cache_prompt": True})
    return {t["id"]: t["logprob"] for t in answer["completion_probabilities"][0]["top_logprobs"]}


def kl(flow: str, model: str, other: str, text: str, context="128", windows="6"):
    context = int(context)
    ids = ask(flow + "/tokenize", {"content": open(text, encoding="utf-8").read()})["tokens"]
    total, same, n, nats = 0.0, 0, 0, [0.0, 0.0]
    for start in range(0, min(len(ids) // context, int(windows)) * context, context):
        window = ids[start:start + context]
        for at in range(context // 2 + 1, context):
            q, p = distribution(model, window[:at]), distribution(other, window[:at])
            total += sum(math.exp(l) * (l - q[i]) for i, l in p.items() if l > -60)
            same += max(q, key=q.get) == max(p, key=p.get)
            nats = [nats[0] - q[window[at]], nats[1] - p[window[at]]]
            n += 1
    print(json.dumps({"tokens": n, "kl": round(total / n, 6), "top1_agreement": round(same / n, 4),
                      "perplexity_ratio": round(math.exp((nats[0] - nats[1]) / n), 4)}))


if __name__ == "__main__":
    {"greedy": greedy, "kl": kl}[sys.argv[1]](*sys.argv[2:])
