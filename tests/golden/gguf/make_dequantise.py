"""Writes dequantise.safetensors: random blocks of every type, and their values by the reference of the `gguf` package.

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
        for at in SCALES[ty]:
            scale = rng.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
            blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    out[f"{ty.name}.blocks"] = blocks.reshape(-1).copy()
    out[f"{ty.name}.values"] = dequantize(blocks, ty).astype(np.float32).reshape(-1).copy()
save_file(out, str(Path(__file__).with_name("dequantise.safetensors")))
