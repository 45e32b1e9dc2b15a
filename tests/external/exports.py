"""Whether others read what `flow convert` writes: stock llama.cpp the GGUF files, transformers the directories.

    exports.py FLOW LOGITS

FLOW is the binary, LOGITS the example `logits` of flow-lm. Models are the golden ones; exits 1 where one is not read, or says
something else than flow does: in transformers by more than 1e-3 in any logit (of the logits' root mean square where that is
above 1; 0.1 where activations are rounded, since one that lies between two codes changes all later ones), in llama.cpp in the most likely token of more than one prefix in ten, or by a KL above that of its own rounding of
activations.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
FAMILIES = ["tiny-llama3", "tiny-mistral", "tiny-smollm3", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3-ternary-g64", "tiny-qwen3-ternary-g128"]
flow, example = (os.path.abspath(p) for p in sys.argv[1:3])
draws = random.Random(7)
RANDOM = [draws.randrange(5, 4000) for _ in range(24)]
# A text for the model that was trained: what rounds its activations makes noise of noise.
TEXT = "My fellow citizens, in the past year we have seen that the people of the United States are able to do what"
IDS = RANDOM
failures = []


def convert(source, to, *args):
    subprocess.run([flow, "convert", source, to, *args], check=True, stderr=subprocess.DEVNULL)
    return to


def logits(model):
    said = subprocess.run([example, model, *map(str, IDS)], check=True, capture_output=True).stdout
    return np.array(json.loads(said), dtype=np.float64)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def llama_cpp(path, vocab):
    """Log-probabilities after each prefix, in a process of its own: the library's models stay in memory."""
    code = f"""
import json, sys, xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.n_gpu_layers, p.verbosity = {str(path)!r}, 256, 1, 0, -1
p.cpuparams.n_threads = 2
p.warmup = False
server, out = x.Server(p), []
for n in range(1, {len(IDS)} + 1):
    asked = {{"prompt": {IDS}[:n], "max_tokens": 1, "temperature": 0, "logprobs": {vocab}, "cache_prompt": False, "ignore_eos": True}}
    said = server.handle_completions(asked)
    said = json.loads(said) if isinstance(said, (str, bytes)) else said
    # Nothing is told of a token that is half a character.
    told = (said["choices"][0]["logprobs"] or {{"content": []}})["content"]
    out.append([[t["id"], t["logprob"]] for t in told[0]["top_logprobs"]] if told else [])
json.dump(out, open(sys.argv[1], "w"))
"""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        done = subprocess.run([sys.executable, "-c", code, out.name], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"llama.cpp: {done.stderr[-2000:]}")
        rows = np.full((len(IDS), vocab), -60.0)
        for row, said in zip(rows, json.load(open(out.name))):
            for token, logprob in said:
                row[token] = -60.0 if logprob is None else max(logprob, -60.0)
    return rows


def check(what, ok, figures):
    print(f"{'ok  ' if ok else 'FAIL'} {what}: {figures}", flush=True)
    if not ok:
        failures.append(what)


def against_llama_cpp(name, path, want, kl_allowed):
    got = llama_cpp(path, want.shape[1])
    # A prompt is read with its first token once: `add_bos` puts none before ids.
    told = got.max(-1) > -60
    got, want = got[told], want[told]
    same = (got.argmax(-1) == want.argmax(-1)).mean()
    kl = (np.exp(want) * (want - got)).sum(-1).mean()
    check(f"llama.cpp {name}", told.sum() > len(IDS) / 2 and same >= 0.9 and kl <= kl_allowed, f"top-1 {100 * same:.1f} % of {told.sum()}, KL {kl:.2e}")


def against_transformers(name, path, want, allowed):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        got = model(torch.tensor([IDS])).logits[0].double().numpy()
    # In units of the logits where these are large: codes of activations that lie between two differ with the last bit.
    apart = np.abs(got - want).max() / max(1.0, np.sqrt((want * want).mean()))
    tokenizer = AutoTokenizer.from_pretrained(path)
    same = (got.argmax(-1) == want.argmax(-1)).mean()
    text = tokenizer.decode(tokenizer("The year 1999, and ", add_special_tokens=False)["input_ids"])
    check(f"transformers {name} ({type(model).__name__})", apart < allowed and same >= 0.9 and "1999" in text, f"top-1 {100 * same:.1f} %, max |Δ| {np.abs(got - want).max():.2e}, {apart:.2e} of their size, logits up to {np.abs(want).max():.1f}")


def main():
    work = Path(tempfile.mkdtemp(prefix="flow-exports-"))
    sources = {name: GOLDEN / "families" / name / "model.gguf" for name in FAMILIES}
    sources["student"] = GOLDEN / "gguf" / "student-tq2_0.gguf"
    global IDS
    for name, source in sources.items():
        if name == "student":
            from tokenizers import Tokenizer

            IDS = Tokenizer.from_file(str(GOLDEN / "models" / "student-tokenizer-4096.json")).encode(TEXT).ids
        types = ["f16", "q8_0"]
        if "ternary" in name or name == "student":
            types += ["q2_0"]
        if name == "student":
            types += ["tq2_0", "tq1_0"]
        for ty in types:
            try:
                path = convert(source, work / f"{name}-{ty}.gguf", "--type", ty)
                against_llama_cpp(f"{name} {ty}", path, log_softmax(logits(path)), 5e-2 if name == "student" else 2e-2)
            except (RuntimeError, subprocess.CalledProcessError) as e:
                check(f"llama.cpp {name} {ty}", False, str(e)[-600:])
        try:
            against_transformers(name, convert(source, work / name, "--type", "float32"), logits(source), 0.1 if name == "student" else 1e-3)
        except Exception as e:  # noqa: BLE001: whatever it finds wrong
            check(f"transformers {name}", False, repr(e)[-600:])
    print(f"exports: {len(failures)} failures" if failures else "exports: ok")
    return 1 if failures else 0


sys.exit(main())
