"""Writes vocabulary.json and kinds.json: what `tokenizers` and llama.cpp make of strings.json, by each pre-tokenizer.

    python3 -m venv venv && venv/bin/pip install numpy gguf tokenizers==0.23.3 xllamacpp==2026.10.11549
    venv/bin/python tests/golden/tokenizers/make.py

The vocabulary is a byte-level BPE that was trained without a pre-tokenizer, on the texts themselves too: its tokens reach
over words, digits and spaces, so that a piece cut at another place gives other ids. Some tokens have lost the merge that
makes them: only `ignore_merges` reaches those.
"""

import json
import socket
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import xllamacpp
from gguf import GGUFReader, GGUFWriter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

here = Path(__file__).parent
texts = json.loads((here / "strings.json").read_text())
TOKENS = 2000
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]

# As the published tokenizer.json files write them.
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST
QWEN_2 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST
QWEN_35 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex, trim=True):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim, "use_regex": use_regex}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


NFC = {"type": "NFC"}
# Name of llama.cpp: (normalizer, pre-tokenizer, ignore_merges).
KINDS = {
    "gpt-2": (None, byte_level(True), False),
    "smollm": (None, sequence({"type": "Digits", "individual_digits": True}, byte_level(True)), False),
    "llama-bpe": (None, sequence(split(LLAMA_3), byte_level(False)), True),
    "dbrx": (None, sequence(split(LLAMA_3), byte_level(False)), False),
    "qwen2": (NFC, sequence(split(QWEN_2), byte_level(False, False)), False),
    "qwen35": (NFC, sequence(split(QWEN_35), byte_level(False, False)), False),
    "tekken": (None, sequence(split(TEKKEN), byte_level(False)), True),
    "default": (
        None,
        sequence(*map(split, [r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"]), byte_level(False)),
        False,
    ),
}


def vocabulary():
    """Tokens in id order, merges, added tokens."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, min_frequency=2, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    corpus = (here / "../../../pipelines/data/corpus.txt").read_text()[:60_000]
    t.train_from_iterator([text.replace("<tool>", "").replace("</s>", "") for text in texts] * 2 + corpus.split(". "), trainer)
    model = json.loads(t.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    used = {half for pair in model["merges"] for half in pair}
    ends = [pair for pair in model["merges"] if "".join(pair) not in used and len("".join(pair)) <= 6]
    dropped = ends[::12]
    merges = [pair for pair in model["merges"] if pair not in dropped]
    added = [token(i, s, True) for i, s in enumerate(SPECIALS)] + [token(len(tokens), "<tool>", False)]
    return tokens + ["<tool>"], merges, added


def token(i, content, special):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}


def tokenizer_json(added, normalizer, pre, decoder, model):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": None, "decoder": decoder, "model": model}


def by_tokenizers(file):
    t = Tokenizer.from_str(json.dumps(file))
    return [t.encode(text, add_special_tokens=False).ids for text in texts]


def by_llama_cpp(keys, vocab):
    """Ids by the server's /tokenize over a tiny random model with these tokenizer keys."""
    with tempfile.TemporaryDirectory() as tmp:
        path = f"{tmp}/m.gguf"
        w = GGUFWriter(path, "llama")
        w.add_context_length(64), w.add_embedding_length(32), w.add_block_count(1), w.add_feed_forward_length(32)
        w.add_head_count(2), w.add_head_count_kv(2), w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(16), w.add_vocab_size(vocab)
        keys(w)
        shapes = {"attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_output": (32, 32), "ffn_gate": (32, 32),
                  "ffn_up": (32, 32), "ffn_down": (32, 32), "attn_norm": (32,), "ffn_norm": (32,)}
        w.add_tensor("token_embd.weight", np.zeros((vocab, 32), np.float32))
        w.add_tensor("output_norm.weight", np.ones(32, np.float32))
        for name, shape in shapes.items():
            w.add_tensor(f"blk.0.{name}.weight", np.ones(shape, np.float32))
        w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        p = xllamacpp.CommonParams()
        p.model.path, p.hostnames, p.port, p.n_ctx, p.n_gpu_layers, p.n_parallel, p.warmup = path, ["127.0.0.1"], port, 64, 0, 1, False
        p.cpuparams.n_threads, p.fit_params = 1, False
        server = xllamacpp.Server(p)
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                urllib.request.urlopen(url + "/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        ids = [ask(url, text) for text in texts]
        del server
        return ids


def ask(url, text):
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    request = urllib.request.Request(url + "/tokenize", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=20))["tokens"]


def byte_level_keys(pre, tokens, merges, types):
    def add(w):
        w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre(pre), w.add_token_list(tokens), w.add_token_types(types)
        w.add_token_merges([" ".join(pair) for pair in merges])
        w.add_bos_token_id(0), w.add_eos_token_id(0), w.add_add_bos_token(False)
    return add


def sentencepiece():
    """Keys and tokenizer.json of ../gguf/sentencepiece.gguf, the latter as Hugging Face's converter writes it."""
    fields = GGUFReader(here / "../gguf/sentencepiece.gguf").fields
    get = lambda name: fields[f"tokenizer.ggml.{name}"].contents()
    tokens, scores, types = get("tokens"), get("scores"), get("token_type")

    def keys(w):
        w.add_tokenizer_model("llama"), w.add_tokenizer_pre("default"), w.add_token_list(tokens), w.add_token_scores(scores)
        w.add_token_types(types), w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0), w.add_add_bos_token(False)

    ids = {t: i for i, t in enumerate(tokens)}
    merges = []
    for i, t in enumerate(tokens):
        cuts = [(t[:c], t[c:]) for c in range(1, len(t)) if t[:c] in ids and t[c:] in ids]
        merges += [(scores[i], pair) for pair in sorted(cuts, key=lambda c: (ids[c[0]], ids[c[1]]))]
    merges.sort(key=lambda m: m[0], reverse=True)
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": ids, "merges": [" ".join(m) for _, m in merges]}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                                                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    added = [token(i, tokens[i], True) for i in range(3)]
    return keys, len(tokens), tokenizer_json(added, normalizer, None, decoder, model)


def compared(name, file, keys, vocab):
    """Ids of `tokenizers`, and of llama.cpp by the text's number where they differ."""
    ids, theirs = by_tokenizers(file), by_llama_cpp(keys, vocab)
    differ = {str(i): b for i, (a, b) in enumerate(zip(ids, theirs)) if a != b}
    print(name, len(differ), "differ:", [texts[int(i)] for i in differ])
    return {"ids": ids, "llama.cpp": differ}


def line(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    tokens, merges, added = vocabulary()
    types = [1] * len(tokens)
    for t in added:
        types[t["id"]] = 3 if t["special"] else 4
    names = {t: i for i, t in enumerate(tokens)}
    (here / "vocabulary.json").write_text(line({"tokens": tokens, "merges": [" ".join(m) for m in merges], "added": added}) + "\n")
    kinds = {}
    for pre, (normalizer, pieces, ignore_merges) in KINDS.items():
        model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                 "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges, "vocab": names, "merges": merges}
        file = tokenizer_json(added, normalizer, pieces, byte_level(True), model)
        found = compared(pre, file, byte_level_keys(pre, tokens, merges, types), len(tokens))
        kinds[pre] = {"normalizer": normalizer, "pre_tokenizer": pieces, "ignore_merges": ignore_merges, **found}
    keys, size, file = sentencepiece()
    kinds["llama"] = {"tokenizer": file, **compared("llama", file, keys, size)}
    smollm2 = json.loads((here / "../models/smollm2-tokenizer.json").read_text())
    real = sorted(smollm2["model"]["vocab"], key=smollm2["model"]["vocab"].get)
    special = {t["id"] for t in smollm2["added_tokens"]}
    pairs = [m.split(" ") if isinstance(m, str) else m for m in smollm2["model"]["merges"]]
    keys = byte_level_keys("smollm", real, pairs, [3 if i in special else 1 for i in range(len(real))])
    kinds["smollm2"] = compared("smollm2", smollm2, keys, len(real))
    body = ",\n".join(f"{line(name)}:{line(kind)}" for name, kind in kinds.items())
    (here / "kinds.json").write_text("{\n" + body + "\n}\n")
