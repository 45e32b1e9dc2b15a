#!/usr/bin/env python3
"""random_gguf.py SHAPE TYPE OUT.gguf: a random ternary model as a GGUF file that llama.cpp loads (for speed and memory only).

SHAPE: qwen3-1.7b (Qwen3 1.7B: embedding and tied head are ternary too), or mini, 2b (architecture `bitnet`: SubLN, A8, embedding
float16). TYPE: q2_0 (a float16 scale for every 64 weights) or tq2_0 (one for all weights of a matrix).
Needs: pip install numpy gguf.
"""
import sys
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from gguf.gguf_writer import TensorInfo

shape, kind, out = sys.argv[1:4]
qwen = shape == "qwen3-1.7b"
# dim, layers, heads, KV heads, head_dim, MLP, vocabulary
dim, layers, heads, kv, head_dim, mlp, vocab = {
    "qwen3-1.7b": (2048, 28, 16, 8, 128, 6144, 151936),
    "mini": (768, 12, 12, 12, 64, 3072, 32000),
    "2b": (2560, 30, 20, 5, 128, 6912, 32000),
}[shape]
rng = np.random.default_rng(0)
# Bytes of four codes of 0, 1 and 2.
valid = np.array([a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)], np.uint8)


def q2_0(rows, cols):
    """Blocks of 64: a float16 scale, then 16 bytes of codes."""
    blocks = np.empty((rows, cols // 64, 18), np.uint8)
    scale = (1.2 / cols**0.5 * (0.9 + 0.2 * rng.random((rows, cols // 64, 1)))).astype(np.float16)
    blocks[..., :2] = scale.view(np.uint8)
    blocks[..., 2:] = valid[rng.integers(0, 81, (rows, cols // 64, 16), dtype=np.uint8)]
    return blocks.reshape(rows, -1), 42


def tq2_0(rows, cols):
    """Blocks of 256: 64 bytes of codes, then a float16 scale."""
    blocks = np.empty((rows, cols // 256, 66), np.uint8)
    blocks[..., :64] = valid[rng.integers(0, 81, (rows, cols // 256, 64), dtype=np.uint8)]
    blocks[..., 64:] = np.array([1.2 / cols**0.5], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1), int(GGMLQuantizationType.TQ2_0)


w = GGUFWriter(out, "qwen3" if qwen else "bitnet", use_temp_file=False)


def ternary(name, rows, cols):
    # The package does not know every type: shape and id are written as they are.
    data, ty = (q2_0 if kind == "q2_0" else tq2_0)(rows, cols)
    w.tensors[-1][name] = TensorInfo(shape=(rows, cols), dtype=ty, nbytes=data.nbytes, tensor=data)


w.add_context_length(40960 if qwen else 4096); w.add_embedding_length(dim); w.add_block_count(layers); w.add_feed_forward_length(mlp)
w.add_head_count(heads); w.add_head_count_kv(kv); w.add_key_length(head_dim); w.add_value_length(head_dim)
w.add_layer_norm_rms_eps(1e-6 if qwen else 1e-5); w.add_rope_freq_base(1e6 if qwen else 1e4); w.add_vocab_size(vocab)
if not qwen:
    w.add_rope_dimension_count(head_dim); w.add_rope_scaling_type(RopeScalingType.LINEAR); w.add_rope_scaling_factor(1.0)
w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("gpt-2")
w.add_token_list(["t0", "t", "0"] + [f"t{i}" for i in range(1, vocab - 2)]); w.add_token_types([1] * vocab); w.add_token_merges(["t 0"])
w.add_bos_token_id(0); w.add_eos_token_id(0); w.add_add_bos_token(False)
one = lambda n: np.ones(n, np.float32)
if qwen:
    ternary("token_embd.weight", vocab, dim)
else:
    table = (rng.standard_normal((vocab, dim), dtype=np.float32) * 0.02).astype(np.float16)
    w.add_tensor("token_embd.weight", table, raw_dtype=GGMLQuantizationType.F16)
w.add_tensor("output_norm.weight", one(dim))
for l in range(layers):
    q, k = heads * head_dim, kv * head_dim
    for name, rows, cols in [("attn_q", q, dim), ("attn_k", k, dim), ("attn_v", k, dim), ("attn_output", dim, q),
                             ("ffn_gate", mlp, dim), ("ffn_up", mlp, dim), ("ffn_down", dim, mlp)]:
        ternary(f"blk.{l}.{name}.weight", rows, cols)
    norms = [("attn_norm", dim), ("ffn_norm", dim)]
    norms += [("attn_q_norm", head_dim), ("attn_k_norm", head_dim)] if qwen else [("attn_sub_norm", q), ("ffn_sub_norm", mlp)]
    for name, n in norms:
        w.add_tensor(f"blk.{l}.{name}.weight", one(n))
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
