#!/usr/bin/env python3
"""random_gguf.py OUT.gguf [LAYERS]: a random ternary model of the shape of Qwen3 1.7B in Q2_0, groups of 64, embedding and tied
head too, as a GGUF file that llama.cpp loads (for speed and memory only).

Needs: pip install numpy gguf.
"""
import sys
import numpy as np
from gguf import GGUFWriter

layers = int(sys.argv[2]) if len(sys.argv) > 2 else 28
dim, heads, kv, head_dim, mlp, vocab = 2048, 16, 8, 128, 6144, 151936
Q2_0 = 42
rng = np.random.default_rng(0)
# Bytes of four codes of 0, 1 and 2.
valid = np.array([a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)], np.uint8)


def q2_0(rows, cols):
    """Rows of blocks of 64: a float16 scale, then 16 bytes of codes."""
    blocks = np.empty((rows, cols // 64, 18), np.uint8)
    scale = (1.2 / cols**0.5 * (0.9 + 0.2 * rng.random((rows, cols // 64, 1)))).astype(np.float16)
    blocks[..., :2] = scale.view(np.uint8)
    blocks[..., 2:] = valid[rng.integers(0, 81, (rows, cols // 64, 16), dtype=np.uint8)]
    return blocks.reshape(rows, -1)


class Writer(GGUFWriter):
    """Tensors of a type that the package does not know: their shape and id are written as they are."""

    def add_q2_0(self, name, rows, cols):
        from gguf.gguf_writer import TensorInfo
        data = q2_0(rows, cols)
        self.tensors[-1][name] = TensorInfo(shape=(rows, cols), dtype=Q2_0, nbytes=data.nbytes, tensor=data)


w = Writer(sys.argv[1], "qwen3", use_temp_file=False)
w.add_context_length(40960); w.add_embedding_length(dim); w.add_block_count(layers); w.add_feed_forward_length(mlp)
w.add_head_count(heads); w.add_head_count_kv(kv); w.add_key_length(head_dim); w.add_value_length(head_dim)
w.add_layer_norm_rms_eps(1e-6); w.add_rope_freq_base(1e6); w.add_vocab_size(vocab)
w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("gpt-2")
w.add_token_list(["t0", "t", "0"] + [f"t{i}" for i in range(1, vocab - 2)]); w.add_token_types([1] * vocab); w.add_token_merges(["t 0"])
w.add_bos_token_id(0); w.add_eos_token_id(0); w.add_add_bos_token(False)
one = lambda n: np.ones(n, np.float32)
w.add_q2_0("token_embd.weight", vocab, dim); w.add_tensor("output_norm.weight", one(dim))
for l in range(layers):
    q, k = heads * head_dim, kv * head_dim
    for name, rows, cols in [("attn_q", q, dim), ("attn_k", k, dim), ("attn_v", k, dim), ("attn_output", dim, q),
                             ("ffn_gate", mlp, dim), ("ffn_up", mlp, dim), ("ffn_down", dim, mlp)]:
        w.add_q2_0(f"blk.{l}.{name}.weight", rows, cols)
    for name, n in [("attn_norm", dim), ("ffn_norm", dim), ("attn_q_norm", head_dim), ("attn_k_norm", head_dim)]:
        w.add_tensor(f"blk.{l}.{name}.weight", one(n))
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
