//! Every case of `numerics/manifest.json` through our kernels, on the CPU and on an adapter.

mod common;

use common::{Golden, cases, devices};
use flow_lm::config::{ModelConfig, Preset};
use flow_lm::graph::NewtonSchulz;
use flow_lm::graph::{Graph, Hold};
use flow_shaders::device::{Device, Session};
use flow_shaders::kernel::Kernel;
use flow_shaders::kernels::{act_quant, attention, gated, gemm, hyper, kd_loss, rmsnorm, rope, ternary, ternary_gemm};
use flow_shaders::program::{BufferId, ListId, Program};

/// One list of operations with its inputs.
struct Bench {
    program: Program,
    list: ListId,
    inputs: Vec<(BufferId, Vec<u32>)>,
}

impl Bench {
    fn new() -> Self {
        let mut program = Program::default();
        let list = program.list("case");
        Self { program, list, inputs: Vec::new() }
    }
    fn words(&mut self, words: Vec<u32>) -> BufferId {
        let id = self.program.persistent(format!("input {}", self.inputs.len()), words.len());
        self.inputs.push((id, words));
        id
    }
    fn floats(&mut self, values: &[f32]) -> BufferId {
        self.words(bytemuck::pod_collect_to_vec(values))
    }
    fn zeros(&mut self, n: usize) -> BufferId {
        self.words(vec![0; n])
    }
    /// Holds what would be NaN if a kernel read it or left it alone.
    fn out(&mut self, n: usize) -> BufferId {
        self.words(vec![0x7fc0_0000; n])
    }
    fn hyper(&mut self, values: &[(usize, f32)]) -> BufferId {
        let mut h = vec![0f32; hyper::LEN];
        values.iter().for_each(|(i, v)| h[*i] = *v);
        self.floats(&h)
    }
    fn op<P: bytemuck::Pod>(&mut self, kernel: &'static Kernel, buffers: &[BufferId], params: &P) {
        self.program.push(self.list, kernel, buffers, params);
    }
    fn run(self, device: &Device) -> Session {
        let mut session = device.load(self.program).unwrap();
        for (id, words) in &self.inputs {
            session.write(*id, words).unwrap();
        }
        session.run(self.list).unwrap();
        session
    }
}

/// A case on a device: what went wrong, and the worst difference in units of what is allowed.
struct Check<'a> {
    golden: &'a Golden,
    device: &'a Device,
    rtol: f64,
    atol: f64,
    worst: (f64, String),
    relative: f64,
    wrong: Vec<String>,
}

impl Check<'_> {
    fn close(&mut self, name: &str, got: &[f32], want: &[f32]) {
        self.close_f64(name, got, &want.iter().map(|w| f64::from(*w)).collect::<Vec<_>>());
    }
    fn close_f64(&mut self, name: &str, got: &[f32], want: &[f64]) {
        if got.len() != want.len() {
            return self.wrong.push(format!("{name}: {} values, expected {}", got.len(), want.len()));
        }
        let largest = want.iter().fold(0f64, |m, w| m.max(w.abs()));
        let mut first = None;
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*g) - w).abs();
            let allowed = self.atol + self.rtol * w.abs();
            let share = if error == 0.0 { 0.0 } else { error / allowed };
            if share > self.worst.0 {
                self.worst = (share, name.to_owned());
            }
            self.relative = self.relative.max(if error == 0.0 { 0.0 } else { error / largest });
            if (error.is_nan() || error > allowed) && first.is_none() {
                first = Some(format!("{name}[{i}]: {g} against {w}, allowed {allowed:e}"));
            }
        }
        self.wrong.extend(first);
    }
    /// Integers; `near(i)` says where a difference of one is a tie.
    fn equal(&mut self, name: &str, got: &[i32], want: &[i32], near: impl Fn(usize) -> bool) {
        if got.len() != want.len() {
            return self.wrong.push(format!("{name}: {} values, expected {}", got.len(), want.len()));
        }
        let bad = |i: &usize| got[*i] != want[*i] && !((got[*i] - want[*i]).abs() == 1 && near(*i));
        if let Some(i) = (0..got.len()).find(bad) {
            self.wrong.push(format!("{name}[{i}]: {} against {}", got[i], want[i]));
        }
    }
    fn number(&self, key: &str) -> Option<f64> {
        self.golden.about[key].as_f64()
    }
    fn matrix(&self, name: &str) -> (usize, usize) {
        let shape = self.golden.shape(name);
        (shape[0], shape[1..].iter().product())
    }
}

/// 2-bit codes as −1, 0, +1; the padding of every row must hold code 1 (zero).
fn unpack_ternary(words: &[u32], rows: usize, cols: usize) -> Vec<i32> {
    let per_row = ternary::packed_words(cols);
    let code = |r: usize, c: usize| {
        let (i, p, j) = (c / 16, c % 16 / 4, c % 4);
        ((words[r * per_row + i] >> (8 * j + 2 * p)) & 3) as i32 - 1
    };
    assert!((0..rows).all(|r| (cols..per_row * 16).all(|c| code(r, c) == 0)), "padding of packed codes");
    (0..rows * cols).map(|i| code(i / cols, i % cols)).collect()
}

fn unpack_bytes(words: &[u32], rows: usize, cols: usize, per_row: usize) -> Vec<i32> {
    let code = |r: usize, c: usize| i32::from((words[r * per_row + c / 4] >> (8 * (c % 4))) as u8 as i8);
    assert!((0..rows).all(|r| (cols..per_row * 4).all(|c| code(r, c) == 0)), "padding of packed activations");
    (0..rows * cols).map(|i| code(i / cols, i % cols)).collect()
}

struct Ternary {
    shape: ternary::Shape,
    codes: BufferId,
    scale: BufferId,
}

fn ternarise(b: &mut Bench, w: &[f32], (rows, cols): (usize, usize), rule: u32) -> Ternary {
    let shape = ternary::Shape { rows: rows as u32, cols: cols as u32, rule };
    let (w, partial, mean) = (b.floats(w), b.out(rows), b.out(1));
    let (codes, scale) = (b.out(rows * ternary::packed_words(cols)), b.out(rows));
    b.op(&ternary::ROW_ABS_SUM, &[w, partial], &shape);
    b.op(&ternary::ABS_MEAN, &[partial, mean], &shape);
    b.op(&ternary::TERNARISE, &[w, mean, codes, scale], &shape);
    Ternary { shape, codes, scale }
}

fn ternary_absmean(c: &mut Check) {
    let ((rows, cols), w) = (c.matrix("w"), c.golden.f32("w"));
    let mut b = Bench::new();
    let t = ternarise(&mut b, &w, (rows, cols), 0);
    let mut s = b.run(c.device);
    let got = unpack_ternary(&s.read(t.codes).unwrap(), rows, cols);
    let want: Vec<i32> = c.golden.u8("q").iter().map(|q| i32::from(*q as i8)).collect();
    let scale = c.golden.f64("scale_f64");
    c.equal("q", &got, &want, |i| ((f64::from(w[i]) / scale[0]).abs() - 0.5).abs() <= 1e-5);
    let steps = s.read_f32(t.scale).unwrap();
    c.close_f64("scale", &steps, &vec![scale[0]; rows]);
    // Where a code is a tie that went the other way its value differs by a whole scale: `q` above has judged it.
    let out: Vec<f32> = got.iter().enumerate().map(|(i, q)| *q as f32 * steps[i / cols]).collect();
    let wanted = c.golden.f32("dequant");
    let agree: Vec<usize> = (0..got.len()).filter(|i| got[*i] == want[*i]).collect();
    let pick = |v: &[f32]| agree.iter().map(|i| v[*i]).collect::<Vec<_>>();
    c.close("dequant", &pick(&out), &pick(&wanted));
}

fn ternary_threshold(c: &mut Check) {
    let ((rows, cols), w) = (c.matrix("w"), c.golden.f32("w"));
    let mut b = Bench::new();
    let t = ternarise(&mut b, &w, (rows, cols), 1);
    let mut s = b.run(c.device);
    let want: Vec<i32> = c.golden.u8("q").iter().map(|q| i32::from(*q as i8)).collect();
    c.equal("q", &unpack_ternary(&s.read(t.codes).unwrap(), rows, cols), &want, |_| false);
    c.equal("scale", &s.read_f32(t.scale).unwrap().iter().map(|s| *s as i32).collect::<Vec<_>>(), &vec![1; rows], |_| false);
}

struct Quant {
    q: BufferId,
    scales: BufferId,
    words: usize,
}

fn quantise(b: &mut Bench, x: BufferId, (rows, cols): (usize, usize), bits: u64) -> Quant {
    let words = 4 * ternary::packed_words(cols);
    let shape = act_quant::Shape { rows: rows as u32, cols: cols as u32, words: words as u32 };
    let h = b.hyper(&[(hyper::QMAX, if bits == 4 { 7.0 } else { 127.0 })]);
    let (q, scales) = (b.out(rows * words), b.out(2 * rows));
    b.op(&act_quant::ACT_QUANT, &[x, h, q, scales], &shape);
    Quant { q, scales, words }
}

fn act(c: &mut Check, bits: u64) {
    let (rows, cols) = c.matrix("x");
    let mut b = Bench::new();
    let x = b.floats(&c.golden.f32("x"));
    let quant = quantise(&mut b, x, (rows, cols), bits);
    let mut s = b.run(c.device);
    let q = unpack_bytes(&s.read(quant.q).unwrap(), rows, cols, quant.words);
    let scales: Vec<act_quant::RowScale> = bytemuck::pod_collect_to_vec(&s.read(quant.scales).unwrap());
    let step: Vec<f32> = scales.iter().map(|s| s.step).collect();
    c.equal("q", &q, &c.golden.i32("q"), |_| false);
    let sums: Vec<i32> = q.chunks(cols).map(|r| r.iter().sum()).collect();
    c.equal("qsum", &scales.iter().map(|s| s.sum).collect::<Vec<_>>(), &sums, |_| false);
    c.close_f64("step", &step, &c.golden.f64("step_f64"));
    if c.golden.has("dequant") {
        let out: Vec<f32> = q.iter().enumerate().map(|(i, q)| *q as f32 * step[i / cols]).collect();
        c.close("dequant", &out, &c.golden.f32("dequant"));
    }
}

/// BitLinear with either rule, behind RMSNorm where the case has its weight `g`.
fn bitlinear(c: &mut Check) {
    let ((rows, cols), (outs, _)) = (c.matrix("x"), c.matrix("w"));
    let (learned, normed) = (c.golden.has("scale"), c.golden.has("g"));
    let (m, n, k) = (rows as u32, outs as u32, cols as u32);
    let mut b = Bench::new();
    let x = b.floats(&c.golden.f32("x"));
    let t = ternarise(&mut b, &c.golden.f32("w"), (outs, cols), u32::from(learned));
    let scale = if learned { b.floats(&c.golden.f32("scale")) } else { t.scale };
    let norm_shape = rmsnorm::Shape { rows: m, cols: k, eps: c.number("eps").unwrap_or(1e-5) as f32, add: 0 };
    let norm = normed.then(|| (b.floats(&c.golden.f32("g")), b.out(rows * cols), b.out(rows)));
    if let Some((g, h, rstd)) = norm {
        b.op(&rmsnorm::RMSNORM, &[x, g, h, rstd], &norm_shape);
    }
    let quant = quantise(&mut b, norm.map_or(x, |n| n.1), (rows, cols), c.golden.about["bits"].as_u64().expect("bits"));
    let (y, dh, dw) = (b.out(rows * outs), b.out(rows * cols), b.out(outs * cols));
    let shape = ternary_gemm::Shape { rows: m, outs: n, cols: k, add: 0 };
    b.op(&ternary_gemm::TERNARY_GEMM, &[quant.q, quant.scales, t.codes, scale, y], &shape);
    let dy = b.floats(&c.golden.f32("dy"));
    b.op(&gemm::GEMM_NN_TERNARY, &[dy, t.codes, scale, dh], &gemm::Shape { m, n: k, k: n, add: 0, symmetric: 0 });
    b.op(&gemm::GEMM_TN_Q8, &[dy, quant.q, quant.scales, dw], &gemm::Shape { m: n, n: k, k: m, add: 0, symmetric: 0 });
    let dscale = b.zeros(outs);
    if learned {
        b.op(&ternary::THRESHOLD_GRAD, &[t.codes, scale, dw, dscale], &t.shape);
    }
    let (mut dx, dg) = (dh, b.zeros(cols));
    if let Some((g, _, rstd)) = norm {
        dx = b.zeros(rows * cols);
        b.op(&rmsnorm::RMSNORM_GRAD_X, &[x, g, rstd, dh, dx], &norm_shape);
        b.op(&rmsnorm::RMSNORM_GRAD_G, &[x, rstd, dh, dg], &norm_shape);
    }
    let mut s = b.run(c.device);
    let all = [("y", y), ("dx", dx), ("dw", dw), ("dscale", dscale), ("dg", dg)];
    for (name, id) in all.into_iter().filter(|(name, _)| c.golden.has(name)) {
        c.close(name, &s.read_f32(id).unwrap(), &c.golden.f32(name));
    }
}

/// `[B, H, T, D]` of the goldens to our rows `[B·T, H·D]`.
fn to_rows(x: &[f32], shape: &[usize]) -> Vec<f32> {
    let &[batch, heads, len, dim] = shape else { panic!("shape {shape:?}") };
    let mut out = Vec::with_capacity(x.len());
    for (b, t, h) in (0..batch).flat_map(|b| (0..len).flat_map(move |t| (0..heads).map(move |h| (b, t, h)))) {
        let at = ((b * heads + h) * len + t) * dim;
        out.extend_from_slice(&x[at..at + dim]);
    }
    out
}

fn rotary(c: &mut Check) {
    let shape = c.golden.shape("x");
    let &[batch, heads, len, dim] = shape.as_slice() else { panic!("shape {shape:?}") };
    let theta = c.number("theta").unwrap_or(10_000.0);
    let config = ModelConfig { head_dim: dim, rope_theta: theta, layers: 1, ..Preset::Poc.config() };
    let table = Graph::new(config, len, Hold::Packed).rope_table();
    let mut b = Bench::new();
    let pos = b.words((0..batch * len).map(|r| (r % len) as u32).collect());
    let table = b.floats(&table);
    let rows = |name: &str| to_rows(&c.golden.f32(name), &shape);
    let (y, dx) = (b.floats(&rows("x")), b.floats(&rows("dy")));
    let params = rope::Shape { rows: (batch * len) as u32, heads: heads as u32, head_dim: dim as u32, inverse: 0 };
    b.op(&rope::ROPE, &[pos, table, y], &params);
    b.op(&rope::ROPE, &[pos, table, dx], &rope::Shape { inverse: 1, ..params });
    let (want_y, want_dx) = (rows("y"), rows("dx"));
    let mut s = b.run(c.device);
    c.close("y", &s.read_f32(y).unwrap(), &want_y);
    c.close("dx", &s.read_f32(dx).unwrap(), &want_dx);
}

fn attend(c: &mut Check) {
    let (q_shape, k_shape) = (c.golden.shape("q"), c.golden.shape("k"));
    let &[batch, heads, len, dim] = q_shape.as_slice() else { panic!("shape {q_shape:?}") };
    let (kv_heads, rows) = (k_shape[1], batch * len);
    let get = |name: &str| to_rows(&c.golden.f32(name), &c.golden.shape(name));
    let shape = attention::Shape {
        rows: rows as u32,
        q_len: len as u32,
        kv_len: len as u32,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: dim as u32,
        scale: 1.0 / (dim as f32).sqrt(),
    };
    let mut b = Bench::new();
    let [q, k, v, grad] = ["q", "k", "v", "do"].map(|name| b.floats(&get(name)));
    let mask = b.words(c.golden.u8("pad").into_iter().map(u32::from).collect());
    let pos = b.words((0..rows).map(|r| (r % len) as u32).collect());
    let (o, stats, dq) = (b.out(rows * heads * dim), b.out(rows * heads * 2), b.out(rows * heads * dim));
    let (dk, dv) = (b.out(rows * kv_heads * dim), b.out(rows * kv_heads * dim));
    b.op(&attention::ATTENTION, &[q, k, v, mask, pos, o, stats], &shape);
    b.op(&attention::ATTENTION_DELTA, &[grad, o, stats], &shape);
    b.op(&attention::ATTENTION_GRAD_Q, &[q, k, v, mask, grad, stats, dq], &shape);
    b.op(&attention::ATTENTION_GRAD_KV, &[q, k, v, mask, grad, stats, dk, dv], &shape);
    let wanted = ["o", "dq", "dk", "dv"].map(|name| (name, get(name)));
    let mut s = b.run(c.device);
    for ((name, want), id) in wanted.into_iter().zip([o, dq, dk, dv]) {
        c.close(name, &s.read_f32(id).unwrap(), &want);
    }
}

fn norm(c: &mut Check) {
    let (rows, cols) = c.matrix("x");
    let shape = rmsnorm::Shape { rows: rows as u32, cols: cols as u32, eps: c.number("eps").unwrap_or(1e-5) as f32, add: 0 };
    let mut b = Bench::new();
    let [x, g, dy] = ["x", "g", "dy"].map(|name| b.floats(&c.golden.f32(name)));
    let (y, rstd, dx, dg) = (b.out(rows * cols), b.out(rows), b.zeros(rows * cols), b.zeros(cols));
    b.op(&rmsnorm::RMSNORM, &[x, g, y, rstd], &shape);
    b.op(&rmsnorm::RMSNORM_GRAD_X, &[x, g, rstd, dy, dx], &shape);
    b.op(&rmsnorm::RMSNORM_GRAD_G, &[x, rstd, dy, dg], &shape);
    let mut s = b.run(c.device);
    for (name, id) in [("y", y), ("dx", dx), ("dg", dg)] {
        c.close(name, &s.read_f32(id).unwrap(), &c.golden.f32(name));
    }
}

fn gate(c: &mut Check, act: u32) {
    let n = c.golden.f32("gate").len();
    let shape = gated::Shape { n: n as u32, act };
    let mut b = Bench::new();
    let [gate, up, dy] = ["gate", "up", "dy"].map(|name| b.floats(&c.golden.f32(name)));
    let [y, dgate, dup] = [(); 3].map(|()| b.out(n));
    b.op(&gated::GATED, &[gate, up, y], &shape);
    b.op(&gated::GATED_GRAD, &[gate, up, dy, dgate, dup], &shape);
    let mut s = b.run(c.device);
    for (name, id) in [("y", y), ("dgate", dgate), ("dup", dup)] {
        c.close(name, &s.read_f32(id).unwrap(), &c.golden.f32(name));
    }
}

/// KL of one row over Top-K + Other and its gradient by the tempered logits, in f64. `twice`: as the recorded reference
/// does it where an absent bucket (−1) stands beside token 0, whose mass it then leaves in Other too.
fn kl_f64(z: &[f32], ids: &[i32], logprobs: &[f32], other: f32, tau: f64, twice: bool) -> (f64, Vec<f64>) {
    let softmax = |x: Vec<f64>| {
        let top = x.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
        let total: f64 = x.iter().map(|x| (x - top).exp()).sum();
        x.into_iter().map(|x| (x - top).exp() / total).collect::<Vec<f64>>()
    };
    let present = || ids.iter().zip(logprobs).filter(|(id, _)| **id >= 0);
    let mut t = softmax(present().map(|(_, l)| f64::from(*l) / tau).chain([f64::from(other) / tau]).collect());
    let p = softmax(z.iter().map(|z| f64::from(*z) / tau).collect());
    let t_other = t.pop().expect("Other is always there");
    let in_other = |j: usize| !ids.contains(&(j as i32)) || (twice && j == 0 && ids.contains(&-1));
    let s_other: f64 = (0..p.len()).filter(|j| in_other(*j)).map(|j| p[j]).sum();
    let part = |t: f64, s: f64| if t > 0.0 { t * (t.ln() - s.ln()) } else { 0.0 };
    let mut d: Vec<f64> = (0..p.len()).map(|j| p[j] - if in_other(j) { t_other * p[j] / s_other } else { 0.0 }).collect();
    let mut kl = part(t_other, s_other);
    for ((id, _), t) in present().zip(t) {
        kl += part(t, p[*id as usize]);
        d[*id as usize] -= t;
    }
    (kl, d)
}

/// What the recorded reference must be corrected by: (KL, gradient of the logits). It says "the exact remaining mass",
/// but `kd_loss_3` counts token 0 in its own bucket and in Other where another bucket of the row is absent. Zero where
/// the file records the definition; the tolerance stays the case's.
fn double_count(c: &Check, tau: f64, n: f64, labels: &[i32]) -> (f64, Vec<f64>) {
    let ((_, vocab), (_, k)) = (c.matrix("logits"), c.matrix("topk_ids"));
    let (z, ids, logprobs) = (c.golden.f32("logits"), c.golden.i32("topk_ids"), c.golden.f32("topk_logprobs"));
    let other = c.golden.f32("other_logprob");
    let (mut recorded, mut correction, mut gradient) = (0.0, 0.0, vec![0.0; z.len()]);
    for r in (0..labels.len()).filter(|r| labels[*r] >= 0) {
        let row = |twice| kl_f64(&z[r * vocab..][..vocab], &ids[r * k..][..k], &logprobs[r * k..][..k], other[r], tau, twice);
        let ((kl, d), (kl_twice, d_twice)) = (row(false), row(true));
        recorded += kl_twice / n;
        correction += (kl - kl_twice) / n;
        (0..vocab).for_each(|j| gradient[r * vocab + j] = (d[j] - d_twice[j]) / (tau * n));
    }
    let want = c.golden.f64("kl_f64")[0];
    if correction == 0.0 || (recorded - want).abs() > 1e-9 * want.abs() {
        return (0.0, vec![0.0; z.len()]);
    }
    println!("  the reference of the next case counts token 0 twice: its KL {want} is {} by the definition", want + correction);
    (correction, gradient)
}

fn loss(c: &mut Check) {
    let ((rows, vocab), (_, k)) = (c.matrix("logits"), c.matrix("topk_ids"));
    let [tau, ce_weight, format_weight] = ["tau", "ce_weight", "format_weight"].map(|key| c.number(key).expect(key) as f32);
    let (valid, structural, other) = (c.golden.u8("valid"), c.golden.u8("is_struct"), c.golden.f32("other_logprob"));
    let labels: Vec<i32> = c.golden.i32("labels").iter().zip(&valid).map(|(l, v)| if *v == 1 { *l } else { -100 }).collect();
    let n = labels.iter().filter(|l| **l >= 0).count() as f32;
    let formatted = labels.iter().zip(&structural).filter(|(l, s)| **l >= 0 && **s == 1).count() as f32;
    let row = |r: usize| {
        if labels[r] < 0 {
            return [0.0; 4];
        }
        [other[r] / tau, 1.0 / n, ce_weight / n, if structural[r] == 1 { format_weight / formatted } else { 0.0 }]
    };
    let meta: Vec<f32> = (0..rows).flat_map(row).collect();
    let shape = kd_loss::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32 };
    let mut b = Bench::new();
    let logits = b.floats(&c.golden.f32("logits"));
    let tempered: Vec<f32> = c.golden.f32("topk_logprobs").iter().map(|l| l * (1.0 / tau)).collect();
    let (tempered, kept) = (b.floats(&tempered), b.out(rows * k));
    let ids = b.words(bytemuck::cast_vec(c.golden.i32("topk_ids")));
    let (targets, meta, labels) = (labels.clone(), b.floats(&meta), b.words(bytemuck::cast_vec(labels)));
    let (h, losses, sum) = (b.hyper(&[(hyper::INV_TAU, 1.0 / tau)]), b.out(rows * 4), b.zeros(4));
    b.op(&kd_loss::KD_LOSS, &[logits, ids, tempered, meta, labels, h, losses, kept], &shape);
    b.op(&kd_loss::LOSS_SUM, &[losses, meta, sum], &shape);
    let (kl, gradient) = double_count(c, f64::from(tau), f64::from(n), &targets);
    let corrected = |name: &str| c.golden.f64(name)[0] + if name == "kl_f64" || name == "total_f64" { kl } else { 0.0 };
    let wanted = ["kl_f64", "ce_f64", "format_f64", "total_f64"].map(|name| (name, corrected(name)));
    let dlogits: Vec<f64> = c.golden.f32("dlogits").iter().zip(&gradient).map(|(d, g)| f64::from(*d) + g).collect();
    let mut s = b.run(c.device);
    let sum = s.read_f32(sum).unwrap();
    let got = [sum[0], sum[1] / ce_weight, sum[2] / format_weight, sum[0] + sum[1] + sum[2]];
    for ((name, want), got) in wanted.into_iter().zip(got) {
        c.close_f64(name, &[got], &[want]);
    }
    if sum[3] != 0.0 {
        c.wrong.push(format!("{} rows with a non-finite loss", sum[3]));
    }
    c.close_f64("dlogits", &s.read_f32(logits).unwrap(), &dlogits);
}

fn muon(c: &mut Check) {
    let (rows, cols) = c.matrix("w");
    let steps = c.golden.shape("grads")[0];
    let [lr, momentum, decay] = ["lr", "momentum", "weight_decay"].map(|key| c.number(key).expect(key) as f32);
    // The list of one matrix, appended to a model's graph: that is where the optimizer builds it.
    let mut g = Graph::new(ModelConfig { layers: 1, vocab: 2, ..Preset::PocTeacher.config() }, 1, Hold::Packed);
    let list = g.program.list("muon");
    let [grad, w, b, clip] =
        [("g", rows * cols), ("w", rows * cols), ("momentum", rows * cols), ("clip", 4)].map(|(name, n)| g.program.persistent(name, n));
    g.muon(
        list,
        grad,
        w,
        b,
        clip,
        (rows, cols),
        NewtonSchulz::quintic(c.golden.about["iterations"].as_u64().expect("iterations") as usize),
    );
    let mut s = c.device.load(g.program).unwrap();
    let mut h = [0f32; hyper::LEN];
    (h[hyper::MUON_LR], h[hyper::MUON_MOMENTUM], h[hyper::MUON_DECAY]) = (lr, momentum, decay);
    s.write_f32(g.hyper, &h).unwrap();
    s.write_f32(clip, &[1.0, 1.0, 0.0, 0.0]).unwrap();
    s.write_f32(w, &c.golden.f32("w")).unwrap();
    s.write_f32(b, &vec![0.0; rows * cols]).unwrap();
    let (grads, expected) = (c.golden.f32("grads"), c.golden.f32("expected"));
    for step in 0..steps {
        let part = step * rows * cols..(step + 1) * rows * cols;
        s.write_f32(grad, &grads[part.clone()]).unwrap();
        s.run(list).unwrap();
        c.close(&format!("step {step}"), &s.read_f32(w).unwrap(), &expected[part]);
    }
}

type Family = fn(&mut Check);

/// Prefixes of the names of cases; the first that fits runs the case.
const FAMILIES: &[(&str, Family)] = &[
    ("ternary_absmean_", ternary_absmean),
    ("ternary_threshold_", ternary_threshold),
    ("act_a8_absmax_", |c| act(c, 8)),
    ("act_a4_absmax_", |c| act(c, 4)),
    ("bitlinear_", bitlinear),
    ("norm_bitlinear_", bitlinear),
    ("rope_", rotary),
    ("attention_", attend),
    ("rmsnorm_", norm),
    ("swiglu_", |c| gate(c, 0)),
    ("relu2_", |c| gate(c, 1)),
    ("kd_loss_", loss),
    ("muon_", muon),
    // 20 steps of a whole model: `golden_training`.
    ("tiny_model_training", |_| ()),
    // BitNet a4.8's rule for inputs of 4 bits, which no model here uses; the copy in `tests/golden` leaves it out.
    ("act_a4_absmean_", |_| ()),
];

#[test]
fn golden_numerics_of_every_case() {
    let names = cases();
    let family = |name: &str| FAMILIES.iter().find(|(prefix, _)| name.starts_with(prefix));
    let unknown: Vec<&String> = names.iter().filter(|n| family(n).is_none()).collect();
    assert!(unknown.is_empty(), "cases that no family runs: {unknown:?}");
    let mut failures = Vec::new();
    for device in devices() {
        println!("{}", device.name());
        for name in &names {
            let (_, run) = family(name).expect("checked above");
            let golden = Golden::load(name);
            let tolerance = |key: &str| golden.about[key].as_f64().unwrap_or_else(|| panic!("{name}: no {key}"));
            let (rtol, atol) = (tolerance("rtol"), tolerance("atol"));
            let mut check =
                Check { golden: &golden, device: &device, rtol, atol, worst: (0.0, String::new()), relative: 0.0, wrong: Vec::new() };
            run(&mut check);
            println!("  {name}: {:.1e} of the largest, {:.3} of the tolerance {}", check.relative, check.worst.0, check.worst.1);
            failures.extend(check.wrong.iter().map(|what| format!("{name} on {}: {what}", device.name())));
        }
    }
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}
