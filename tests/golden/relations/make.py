#!/usr/bin/env python3
"""make.py: attention relations (MiniLMv2, arXiv 2012.15828) and their gradient, by PyTorch in float64.

Written from the paper's definition, not from what it is to test: relations of all real positions with each other, heads apart,
the KL of the teacher's softmax to the student's. Autograd gives the gradient; differences of the loss check it.
Needs: pip install torch numpy safetensors.
"""
import json
import math
import os

import numpy as np
import torch
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
F64 = torch.float64
# sequences, rows of one, relation heads, floats of a head of student and of teacher, real rows of each sequence ("holes": as a
# pattern with gaps), spread of the values: scores are about its square.
CASES = {
    "equal_widths": dict(sequences=2, q_len=24, heads=4, d=[16, 16], real=[24, 24], spread=1.0),
    # Keys of a student with three heads of 64 and of a teacher with wider ones.
    "other_widths": dict(sequences=2, q_len=40, heads=3, d=[64, 80], real=[40, 40], spread=0.6),
    "padded": dict(sequences=4, q_len=19, heads=2, d=[10, 7], real=[19, 11, 1, "holes"], spread=1.5),
}


def relations(x, heads, real):
    """ln p `[sequences, heads, rows, rows]` of `x [sequences, rows, width]`; columns that are not real are −inf."""
    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = x @ x.transpose(-1, -2) / math.sqrt(x.shape[-1])
    return scores.masked_fill(~real[:, None, None, :], -math.inf).log_softmax(-1)


def kl(x_s, x_t, heads, real):
    """`[sequences, rows]`: Σ over heads and columns of p_t (ln p_t − ln p_s); 0 for rows that are not real."""
    student, teacher = relations(x_s, heads, real), relations(x_t, heads, real)
    terms = torch.where(real[:, None, None, :], teacher.exp() * (teacher - student), 0.0)
    return torch.where(real, terms.sum((1, 3)), 0.0)


def real_rows(c):
    rows = np.arange(c["q_len"])
    return torch.tensor(np.stack([rows % 3 != 1 if n == "holes" else rows < n for n in c["real"]]))


def central_differences(loss, x, grad):
    """The worst of autograd's gradients against differences of the loss, relative to the largest."""
    flat, worst = x.detach().view(-1), 0.0
    for i in range(0, flat.numel(), 37):
        was, sides = flat[i].item(), []
        for h in (1e-5, -1e-5):
            flat[i] = was + h
            with torch.no_grad():
                sides.append(loss().item())
        flat[i] = was
        worst = max(worst, abs((sides[0] - sides[1]) / 2e-5 - grad.view(-1)[i].item()))
    return worst / grad.abs().max().item()


def make(seed, c):
    rng = np.random.default_rng(seed)
    shape = (c["sequences"], c["q_len"])
    x = [(rng.standard_normal((*shape, c["heads"] * d)) * c["spread"]).astype(np.float32) for d in c["d"]]
    weights = rng.uniform(0.0, 2.0 / (c["heads"] * math.prod(shape)), shape).astype(np.float32)
    real = real_rows(c)
    x_s, x_t, w = (torch.tensor(v, dtype=F64) for v in (*x, weights))
    # What is not real has no weight in the definition either, so that its values cannot matter.
    x_s.requires_grad_()
    loss = lambda: (w * kl(x_s, x_t, c["heads"], real)).sum()
    total = loss()
    total.backward()
    worst = central_differences(loss, x_s, x_s.grad)
    assert worst < 1e-6, worst
    assert not x_s.grad[~real].any(), "a row that is not real has a gradient"
    tensors = {
        "x_s": x[0], "x_t": x[1], "mask": real.numpy().astype(np.uint8), "weights": weights,
        "kl": kl(x_s, x_t, c["heads"], real).detach().numpy(), "dx": x_s.grad.numpy().astype(np.float32),
    }
    about = dict(sequences=c["sequences"], q_len=c["q_len"], heads=c["heads"], d=c["d"], loss=total.item())
    return dict(about, central_differences=worst), tensors


def main():
    cases, tensors = {}, {}
    for number, (name, c) in enumerate(CASES.items()):
        cases[name], of_case = make(number + 1, c)
        tensors.update({f"{name}.{key}": value for key, value in of_case.items()})
        print(name, cases[name])
    save_file(tensors, os.path.join(HERE, "relations.safetensors"))
    with open(os.path.join(HERE, "cases.json"), "w") as f:
        json.dump(cases, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
