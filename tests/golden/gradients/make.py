#!/usr/bin/env python3
"""make.py: gradients of a small decoder with each option of a model's shape, by PyTorch in float64.

The decoder is written from the definitions, not from what it is to test. Parameters follow from a formula in integers that
`stages/tests/golden_gradients.rs` repeats, so that they are not stored; they are multiples of 2^-11, so that sums of |w| and
thus scales are exact in float32 in any order. No weight lies near where its code rounds, and no activation near where its
code does: batches are drawn until that holds. Needs: pip install torch numpy safetensors.
"""
import json
import math
import os

import numpy as np
import torch
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
F64 = torch.float64
SEQUENCES, SEQ, PADDED = 2, 12, 3
# Weights keep this distance from ties, relative to them; activations this one in units of a code.
WEIGHT_MARGIN, CODE_MARGIN = 1e-3, 5e-5
# Larger gradients are stored as each so-manieth element, with the sums of rows and of columns.
WHOLE, EACH = 4096, 7

BASE = dict(
    vocab=64, dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128, seq=SEQ, rope_theta=10000.0, norm_eps=1e-5,
    activation="silu", weights="float", sub_norm=False, tied=True,
)
LLAMA3 = dict(type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_seq=64.0)
FACTORS = dict(type="factors", divisors=[1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])
WIDE = dict(dim=128, heads=4, head_dim=32, mlp=128)
WIDEST = dict(dim=256, layers=1, heads=4, kv_heads=1, head_dim=64, mlp=256)
UNEVEN = dict(vocab=70, dim=72, head_dim=12, mlp=136)
FLOAT = dict(weights="absmean", activations="float")
CODES = dict(weights="absmean")
ALL = dict(
    qkv_bias=True, head_norm=True, rope_scaling=LLAMA3, no_rope=[0], group=64, sub_norm=True, ternary_embedding=True,
)
CASES = {
    "qwen2_bias": dict(qkv_bias=True, tied=False),
    "qwen3_head_norm": dict(head_norm=True, head_dim=32),
    "llama3_rope": dict(rope_scaling=LLAMA3),
    "linear_rope": dict(rope_scaling=dict(type="linear", factor=2.5), tied=False),
    "factors_rope": dict(rope_scaling=FACTORS, activation="relu2"),
    "smollm3_no_rope": dict(no_rope=[1]),
    "group_64_float": dict(FLOAT, group=64, sub_norm=True, tied=False),
    "group_128_a8": dict(CODES, **WIDE, group=128, sub_norm=True),
    "group_256_tied_ternary_embedding": dict(FLOAT, **WIDEST, group=256, ternary_embedding=True),
    "row_untied_ternary_head": dict(FLOAT, **UNEVEN, group="row", tied=False, ternary_head=True),
    "row_a8": dict(CODES, **UNEVEN, group="row", activation="relu2"),
    "tensor_f16_float": dict(FLOAT, scale="f16", tied=False, ternary_embedding=True, ternary_head=True, sub_norm=True),
    "tensor_f32_float": dict(FLOAT, ternary_embedding=True),
    "group_64_a4_hybrid": dict(CODES, group=64, sub_norm=True, a4="hybrid", bits=4),
    "all_a8_untied": dict(CODES, **ALL, tied=False, ternary_head=True),
    "all_float_tied": dict(FLOAT, **ALL),
    # `soft`: pressure and 1 / temperature of weights on their way to codes; a temperature of 0 (0.0 here) assigns codes.
    "soft_group_64": dict(FLOAT, group=64, ternary_embedding=True, soft=[0.7, 5.0]),
    "soft_row_cold_untied_head": dict(FLOAT, **UNEVEN, group="row", tied=False, ternary_head=True, soft=[1.0, 12.0]),
    "soft_tensor_a8": dict(CODES, sub_norm=True, soft=[0.4, 2.0]),
    "ramp_group_64": dict(FLOAT, group=64, ternary_embedding=True, soft=[0.6, 0.0]),
}
# Options that are of a step and not of a shape.
OF_STEP = ("bits", "soft")


class Stream:
    """Numbers that are the same in every language: the high bits of a linear congruential generator."""

    def __init__(self, seed):
        self.state = seed

    def next(self, bits):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return self.state >> (64 - bits)


def shapes(c):
    """(name, shape, role) in the order of checkpoints."""
    q, kv = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
    yield "embed", (c["vocab"], c["dim"]), "embedding"
    for l in range(c["layers"]):
        norms = [("attn_norm", c["dim"])] + [("attn_sub_norm", q)] * c["sub_norm"]
        norms += [("mlp_norm", c["dim"])] + [("mlp_sub_norm", c["mlp"])] * c["sub_norm"]
        norms += [("q_norm", c["head_dim"]), ("k_norm", c["head_dim"])] * c.get("head_norm", False)
        for name, n in norms:
            yield f"layers.{l}.{name}", (n,), "norm"
        for name, out, width in [
            ("q", q, c["dim"]), ("k", kv, c["dim"]), ("v", kv, c["dim"]), ("o", c["dim"], q),
            ("gate", c["mlp"], c["dim"]), ("up", c["mlp"], c["dim"]), ("down", c["dim"], c["mlp"]),
        ]:
            yield f"layers.{l}.{name}", (out, width), "linear"
            if c.get("qkv_bias") and name in "qkv":
                yield f"layers.{l}.{name}_bias", (out,), "bias"
            if c["weights"] == "threshold":
                yield f"layers.{l}.{name}_scale", (out,), "scale"
    yield "norm", (c["dim"],), "norm"
    if not c["tied"]:
        yield "head", (c["vocab"], c["dim"]), "head"


def draw(stream, role):
    """A value: matrices leave out magnitudes near half their mean, where codes round."""
    while True:
        k = stream.next(10) - 512
        if role == "norm":
            return 1 + k / 2048
        if role == "scale":
            return 0.125 + k / 8192
        if role == "bias" or not 97 <= abs(k) <= 159:
            return k / 2048


def parameters(c, seed):
    """Each tensor has a stream of its own."""
    for i, (name, shape, role) in enumerate(shapes(c)):
        stream = Stream(seed * 1000 + i + 1)
        yield name, torch.tensor([draw(stream, role) for _ in range(math.prod(shape))], dtype=F64).reshape(shape)


def is_ternary(c, role):
    said = {"linear": True, "embedding": c.get("ternary_embedding", False), "head": c.get("ternary_head", False)}
    return c["weights"] == "absmean" and said.get(role, False)


def scales(c, w, exact=True):
    """The scale of each weight, in the arithmetic of float32, where the sums are exact; in a training they are not."""
    group = c.get("group", "tensor")
    per = {"tensor": w.numel(), "row": w.shape[1]}.get(group, group)
    sums = w.abs().reshape(-1, per).sum(1).numpy()
    assert not exact or (sums.astype(np.float32) == sums).all(), "a sum that float32 does not hold"
    s = np.maximum(sums.astype(np.float32) / np.float32(per), np.float32(1e-5))
    if group != "tensor" or c.get("scale") == "f16":
        s = s.astype(np.float16)
    return torch.tensor(s.astype(np.float64)).repeat_interleave(per).reshape(w.shape)


class Model:
    """A decoder of the definitions; `margins` collects how far from ties it rounded."""

    def __init__(self, c, params, soft=None, exact=True):
        self.soft, self.exact = soft, exact
        self.c, self.p, self.margins = c, params, {"weight": math.inf, "code": math.inf}
        self.roles = {name: role for name, _, role in shapes(c)}

    def weight(self, name):
        w = self.p[name]
        if self.c["weights"] == "threshold" and self.roles[name] == "linear":
            codes = (w.sign() * (w.abs() > 0.7 * w.abs().mean())).detach()
            return self.p[name + "_scale"].unsqueeze(-1) * (codes + w - w.detach())
        if not is_ternary(self.c, self.roles[name]):
            return w
        s = scales(self.c, w.detach(), self.exact)
        apart = ((w.detach() / s).abs() - 0.5).abs().min().item() / 0.5
        self.margins["weight"] = min(self.margins["weight"], apart)
        pressure, inverse = self.soft or (1.0, 0.0)
        if inverse == 0.0:
            return w + pressure * (s * torch.clamp(torch.round(w / s), -1, 1) - w).detach()
        levels = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
        likely = (-(w.unsqueeze(-1) / s.unsqueeze(-1) - levels).pow(2) * inverse).softmax(-1)
        return (1 - pressure) * w + pressure * s * (likely * levels).sum(-1)

    def activation(self, x, bits):
        """What a linear of the blocks takes: a code for each token's absmax, with a straight-through gradient."""
        if self.c["weights"] == "float" or self.c.get("activations") == "float":
            return x
        qmax = {8: 127.0, 4: 7.0}[bits]
        step = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5) / qmax
        v = x.detach() / step
        self.margins["code"] = min(self.margins["code"], ((v - v.floor()) - 0.5).abs().min().item())
        return x + (torch.clamp(torch.round(v), -qmax, qmax) * step - x).detach()

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + float(np.float32(self.c["norm_eps"]))) * self.p[name]

    def linear(self, x, name):
        y = x @ self.weight(name).T
        return y + self.p[name + "_bias"] if name + "_bias" in self.p else y

    def frequencies(self):
        half = self.c["head_dim"] // 2
        f = self.c["rope_theta"] ** (-np.arange(half) / half)
        s = self.c.get("rope_scaling")
        if s is None:
            return f
        if s["type"] == "linear":
            return f / s["factor"]
        if s["type"] == "factors":
            return f / np.array(s["divisors"])
        wavelength = 2 * np.pi / f
        smooth = (s["original_seq"] / wavelength - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
        between = (1 - smooth) * f / s["factor"] + smooth * f
        long = wavelength > s["original_seq"] / s["low_freq_factor"]
        short = wavelength < s["original_seq"] / s["high_freq_factor"]
        return np.where(long, f / s["factor"], np.where(short, f, between))

    def rotate(self, x):
        """`[batch, seq, heads, head_dim]`; the pairs are those of the two halves."""
        angle = torch.tensor(np.outer(np.arange(x.shape[1]), self.frequencies()))[None, :, None]
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def attention(self, x, l, bits, inner, mask):
        c, name = self.c, f"layers.{l}."
        h = self.activation(self.norm(x, name + "attn_norm"), bits)
        q, k, v = (self.linear(h, name + n).unflatten(-1, (-1, c["head_dim"])) for n in "qkv")
        if c.get("head_norm"):
            q, k = self.norm(q, name + "q_norm"), self.norm(k, name + "k_norm")
        if l not in c.get("no_rope", []):
            q, k = self.rotate(q), self.rotate(k)
        k, v = (t.repeat_interleave(c["heads"] // c["kv_heads"], 2) for t in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(c["head_dim"])
        seen = torch.ones(SEQ, SEQ, dtype=torch.bool).tril()[None, None] & mask[:, None, None, :]
        o = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~seen, -math.inf).softmax(-1), v).flatten(2)
        o = self.norm(o, name + "attn_sub_norm") if c["sub_norm"] else o
        return self.linear(self.activation(o, inner), name + "o")

    def mlp(self, x, l, bits, inner):
        c, name = self.c, f"layers.{l}."
        h = self.activation(self.norm(x, name + "mlp_norm"), bits)
        gate = self.linear(h, name + "gate")
        act = gate.relu().pow(2) if c["activation"] == "relu2" else gate * gate.sigmoid()
        act = act * self.linear(h, name + "up")
        act = self.norm(act, name + "mlp_sub_norm") if c["sub_norm"] else act
        return self.linear(self.activation(act, inner), name + "down")

    def loss(self, ids, labels, mask, bits):
        inner = 8 if self.c.get("a4") == "hybrid" else bits
        x = self.weight("embed")[ids]
        for l in range(self.c["layers"]):
            x = x + self.attention(x, l, bits, inner, mask)
            x = x + self.mlp(x, l, bits, inner)
        logits = self.linear(self.norm(x, "norm"), "embed" if self.c["tied"] else "head")
        return torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0])


def batch(c, seed):
    """Ids and labels `[sequences, seq]`; the end of the last sequence is padding, each fifth row has no label."""
    stream = Stream(seed)
    ids = torch.tensor([stream.next(31) % c["vocab"] for _ in range(SEQUENCES * SEQ)])
    labels = torch.tensor([stream.next(31) % c["vocab"] for _ in range(SEQUENCES * SEQ)])
    mask = torch.arange(SEQUENCES * SEQ) < SEQUENCES * SEQ - PADDED
    labels[~mask | (torch.arange(SEQUENCES * SEQ) % 5 == 4)] = -1
    return [t.reshape(SEQUENCES, SEQ) for t in (ids, labels, mask)]


def central_differences(model, inputs, grads):
    """PyTorch's gradients against differences of the loss, where rounding leaves it smooth: the worst, relative to the
    largest gradient of the tensor, and how many coordinates were tried."""
    c, worst, tried = model.c, 0.0, 0
    if c["weights"] != "float" and c.get("activations") != "float":
        return None
    for name, p in model.p.items():
        if is_ternary(c, model.roles[name]):
            continue
        flat, grad = p.detach().view(-1), grads[name].view(-1)
        for i in {0, flat.numel() - 1, int(grad.abs().argmax()), flat.numel() // 3}:
            was, sides = flat[i].item(), []
            for h in (1e-5, -1e-5):
                flat[i] = was + h
                with torch.no_grad():
                    sides.append(model.loss(*inputs).item())
            flat[i] = was
            difference = (sides[0] - sides[1]) / 2e-5
            worst = max(worst, abs(difference - grad[i].item()) / grad.abs().max().item())
            tried += 1
    return {"coordinates": tried, "worst": worst}


def run(c, params, bits, seed, soft):
    model = Model(c, {name: p.requires_grad_() for name, p in params.items()}, soft)
    inputs = (*batch(c, seed), bits)
    loss = model.loss(*inputs)
    return model, inputs, loss


def stored(name, grad):
    g = grad.numpy()
    if g.size <= WHOLE:
        return {name: g.astype(np.float32)}
    sums = {f"{name}.rows": g.sum(1), f"{name}.columns": g.sum(0)}
    return {k: v.astype(np.float32) for k, v in {f"{name}.each": g.reshape(-1)[::EACH], **sums}.items()}


def make(number, options):
    bits, soft = options.get("bits", 8), options.get("soft")
    c = {**BASE, **{k: v for k, v in options.items() if k not in OF_STEP}}
    seed = number + 1
    while True:
        params = dict(parameters(c, seed))
        model, _, _ = run(c, params, bits, 1, soft)
        if model.margins["weight"] >= WEIGHT_MARGIN:
            break
        seed += 100
    batch_seed = 1
    while True:
        model, inputs, loss = run(c, params, bits, batch_seed, soft)
        if model.margins["code"] >= CODE_MARGIN:
            break
        batch_seed += 1
    loss.backward()
    grads = {name: p.grad for name, p in params.items()}
    of_soft = {"soft": {"pressure": soft[0], "inv_temperature": soft[1]}} if soft else {}
    about = {"config": c, "bits": bits, **of_soft, "seed": seed, "batch_seed": batch_seed, "loss": loss.item()}
    margins = {k: v for k, v in model.margins.items() if v < math.inf}
    about.update(margins=margins, central_differences=central_differences(model, inputs, grads))
    return about, {k: v for name, g in grads.items() for k, v in stored(name, g).items()}


# Whole trainings: what each tensor's optimizer makes of the gradients, step after step.
ADAMW = dict(lr=3e-3, betas=[0.9, 0.95], eps=1e-8, decay=0.1)
MUON = dict(lr=0.02, momentum=0.95, decay=0.1, coefficients=[3.4445, -4.7750, 2.0315], iterations=5)
CLIP, STEPS = 1.0, 8
TRAININGS = {
    "muon_absmean": (dict(FLOAT, sub_norm=True, tied=False), "muon"),
    "muon_float": (dict(weights="float"), "muon"),
    "adamw_threshold": (dict(weights="threshold", activations="float", sub_norm=True), "adamw"),
    "muon_threshold": (dict(weights="threshold", activations="float"), "muon"),
}


def orthogonal(u):
    """Newton–Schulz steps of K. Jordan and others on the matrix itself."""
    x, (a, b, c) = u / (u.norm() + 1e-7), MUON["coefficients"]
    x = x.T if u.shape[0] > u.shape[1] else x
    for _ in range(MUON["iterations"]):
        g = x @ x.T
        x = a * x + (b * g + c * g @ g) @ x
    return x.T if u.shape[0] > u.shape[1] else x


def train(c, optimizer, seed):
    params = {name: p.requires_grad_() for name, p in parameters(c, seed)}
    model = Model(c, params, exact=False)
    state = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in params.items()}
    history = []
    for step in range(1, STEPS + 1):
        loss = model.loss(*batch(c, step), 8)
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values()))))
        norm = torch.stack([g.pow(2).sum() for g in grads.values()]).sum().sqrt()
        history.append([loss.item(), norm.item()])
        with torch.no_grad():
            for name, p in params.items():
                g, role, (m, v) = grads[name] * min(1.0, CLIP / (norm.item() + 1e-6)), model.roles[name], state[name]
                if optimizer == "muon" and role == "linear":
                    m.mul_(MUON["momentum"]).add_(g)
                    update = orthogonal(g + MUON["momentum"] * m) * math.sqrt(max(1.0, p.shape[0] / p.shape[1]))
                    p.mul_(1 - MUON["lr"] * MUON["decay"]).sub_(MUON["lr"] * update)
                    continue
                b1, b2 = ADAMW["betas"]
                p.mul_(1 - ADAMW["lr"] * ADAMW["decay"] * (role in ("linear", "head")))
                m.mul_(b1).add_((1 - b1) * g)
                v.mul_(b2).add_((1 - b2) * g * g)
                p.sub_(ADAMW["lr"] * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + ADAMW["eps"]))
    return history, {name: p.detach() for name, p in params.items()}


def trainings():
    said = {}
    for number, (name, (options, optimizer)) in enumerate(TRAININGS.items()):
        c, seed = {**BASE, **options}, 500 + number
        history, final = train(c, optimizer, seed)
        save_file({k: v for n, p in final.items() for k, v in stored(n, p).items()}, os.path.join(HERE, f"trained_{name}.safetensors"))
        said[name] = {"config": c, "optimizer": optimizer, "seed": seed, "history": history}
        print(name, [round(loss, 4) for loss, _ in history], flush=True)
    about = {"sequences": SEQUENCES, "seq": SEQ, "padded": PADDED, "each": EACH, "clip": CLIP, "adamw": ADAMW, "muon": MUON, "cases": said}
    with open(os.path.join(HERE, "trainings.json"), "w") as f:
        json.dump(about, f, indent=1)
        f.write("\n")


def main():
    trainings()
    cases = {}
    for number, (name, options) in enumerate(CASES.items()):
        cases[name], tensors = make(number, options)
        save_file(tensors, os.path.join(HERE, f"{name}.safetensors"))
        print(name, {k: v for k, v in cases[name].items() if k != "config"}, flush=True)
    about = {"sequences": SEQUENCES, "seq": SEQ, "padded": PADDED, "each": EACH, "cases": cases}
    with open(os.path.join(HERE, "cases.json"), "w") as f:
        json.dump(about, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
