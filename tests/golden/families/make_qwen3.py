#!/usr/bin/env python3
"""make_qwen3.py: writes tiny-qwen3/expected.safetensors again, from the files as they are stored.

The weights were rounded to bfloat16 when they were saved, and what was recorded with them came from the unrounded ones:
transformers itself differs from that by up to 0.013 over the stored files. Needs: pip install torch transformers safetensors.
"""
import os
import numpy as np, torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tiny-qwen3")
expected = load_file(os.path.join(here, "expected.safetensors"))
model = AutoModelForCausalLM.from_pretrained(here, dtype=torch.float32)
ids, mask = (torch.tensor(expected[n].astype(np.int64)) for n in ("input_ids", "attention_mask"))
with torch.no_grad():
    logits = model(ids, attention_mask=mask).logits
expected["logits"] = logits.numpy()[:, expected["rows"]].copy()
expected["logsumexp"] = torch.logsumexp(logits, -1).numpy()
expected["argmax"] = logits.numpy().argmax(-1).astype(np.int32)
save_file(expected, os.path.join(here, "expected.safetensors"))
