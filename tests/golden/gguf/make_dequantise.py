"""Writes dequantise.safetensors: random blocks of every type, and their values by the reference of the `gguf` package.

`gguf` 0.19.0 has no reference of Q1_0 and does not know Q2_0: their values are computed here by their definitions.

    python3 -m venv venv && venv/bin/pip install gguf numpy safetensors
    venv/bin/python tests/golden/gguf/make_dequantise.py
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize
from safetensors.numpy import save_file

# Where float16 scales stand in a block; every other byte is random.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.TQ1_0: [52], T.TQ2_0: [64],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.IQ4_NL: [0], T.IQ4_XS: [0], T.MXFP4: [],
}
# Types of a float16 scale and codes in the order of the weights, lowest bits first: weights of a block, bits, code to factor.
BY_DEFINITION = {
    "Q1_0": (128, 1, lambda q: 2 * q - 1),
    "Q2_0": (64, 2, lambda q: q - 1),
    "Q2_0_G128": (128, 2, lambda q: q - 1),
}
VALUES = 512

rng = np.random.default_rng(20260101)
out = {}
for ty in [T.F32, T.F16, T.BF16, *SCALES]:
    if ty not in SCALES:
        floats = rng.standard_normal(VALUES).astype(np.float32)
        words = {T.F32: floats, T.F16: floats.astype(np.float16), T.BF16: (floats.view(np.uint32) >> 16).astype(np.uint16)}[ty]
        blocks = words.view(np.uint8).reshape(1, -1)
    else:
        weights, size = GGML_QUANT_SIZES[ty]
        blocks = rng.integers(0, 256, (VALUES // weights, size), dtype=np.uint8)
        if ty in (T.TQ1_0, T.TQ2_0):  # codes 0, 1, 2 only, as a quantiser writes them
            codes = rng.integers(-1, 2, (VALUES // weights, weights)).astype(np.float32)
            from gguf.quants import quantize
            blocks = quantize(codes, ty).reshape(-1, size).copy()
        if ty == T.MXFP4:  # exponents of weights, and the two smallest, which make subnormal floats
            blocks[:, 0] = rng.integers(110, 130, len(blocks))
            blocks[:2, 0] = [0, 1]
        for at in SCALES[ty]:
            scale = rng.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
            blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    out[f"{ty.name}.blocks"] = blocks.reshape(-1).copy()
    out[f"{ty.name}.values"] = dequantize(blocks, ty).astype(np.float32).reshape(-1).copy()
for name, (weights, bits, factor) in BY_DEFINITION.items():
    scale = rng.uniform(-0.1, 0.1, (VALUES // weights, 1)).astype(np.float16)
    codes = rng.integers(0, 256, (len(scale), weights * bits // 8), dtype=np.uint8)
    fields = (codes[:, :, None] >> np.arange(0, 8, bits, dtype=np.uint8)) & (2**bits - 1)
    values = factor(fields.reshape(len(scale), weights).astype(np.float32)) * scale.astype(np.float32)
    out[f"{name}.blocks"] = np.concatenate([scale.view(np.uint8), codes], axis=1).reshape(-1)
    out[f"{name}.values"] = values.reshape(-1)
save_file(out, str(Path(__file__).with_name("dequantise.safetensors")))
