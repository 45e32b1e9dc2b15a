//! Single kernels beside the device's own limits: multiply-adds, integer dot products, copying.

use std::time::Instant;

use flow_engine::plugin::StageError;
use flow_shaders::device::Device;
use flow_shaders::kernel::{Kernel, Params};
use flow_shaders::kernels::{
    act_quant, adamw, attention, elementwise, gated, gemm, hyper, kd_loss, peak, rmsnorm, ternary, ternary_blocks, ternary_gemm,
};
use flow_shaders::program::Program;
use serde_json::{Value, json};

use super::figures::{median, rounded};
use flow_lm::rng::Rng;

/// What fills a buffer.
#[derive(Clone, Copy)]
enum Fill {
    Floats(usize),
    Bytes(usize),
    Codes(usize),
    Halves(usize),
    /// The same word everywhere.
    Word(usize, u32),
    Positions(usize, usize),
}

/// What a kernel is held against.
#[derive(Clone, Copy, PartialEq)]
enum Limit {
    Fma,
    Dot,
    Copy,
}

struct Case {
    kernel: &'static Kernel,
    shape: String,
    buffers: Vec<Fill>,
    params: Params,
    /// Operations, or bytes where the limit is copying.
    work: f64,
    limit: Limit,
}

fn case<P: bytemuck::Pod>(kernel: &'static Kernel, shape: String, params: P, work: f64, limit: Limit, buffers: &[Fill]) -> Case {
    Case { kernel, shape, buffers: buffers.to_vec(), params: Params::new(&params), work, limit }
}

/// Measures all of them: GFLOP/s, GOP/s or GB/s, and the share of the limit.
pub fn kernels(device: &Device) -> Result<Value, StageError> {
    let limits: Vec<f64> = [fma(), dot(), copy()].iter().map(|c| Ok(c.work / run(device, c)?)).collect::<Result<_, StageError>>()?;
    let mut rows = Vec::new();
    for c in cases() {
        let seconds = run(device, &c)?;
        let rate = c.work / seconds;
        let limit = limits[c.limit as usize];
        rows.push(json!({
            "kernel": c.kernel.name, "shape": c.shape, "ms": rounded(seconds * 1e3), "rate": rounded(rate / 1e9),
            "unit": unit(c.limit), "share_of_peak": rounded(rate / limit),
        }));
    }
    Ok(json!({
        "bench": "kernels", "device": device.name(),
        "peak": {"fma_gflops": rounded(limits[0] / 1e9), "int8_gops": rounded(limits[1] / 1e9), "copy_gbps": rounded(limits[2] / 1e9)},
        "kernels": rows,
    }))
}

fn unit(limit: Limit) -> &'static str {
    match limit {
        Limit::Fma => "GFLOP/s",
        Limit::Dot => "GOP/s",
        Limit::Copy => "GB/s",
    }
}

/// Median seconds of a dispatch: at least five, and a quarter of a second of them.
fn run(device: &Device, case: &Case) -> flow_lm::Result<f64> {
    let mut program = Program::default();
    let list = program.list("bench");
    let words = |f: &Fill| match *f {
        Fill::Floats(n) | Fill::Bytes(n) | Fill::Codes(n) | Fill::Halves(n) | Fill::Word(n, _) | Fill::Positions(n, _) => n,
    };
    let ids: Vec<_> = case.buffers.iter().enumerate().map(|(i, f)| program.persistent(format!("b{i}"), words(f))).collect();
    program.push(list, case.kernel, &ids, &case.params);
    let mut session = device.load(program)?;
    let mut rng = Rng::new(1, "bench buffers");
    for (id, fill) in ids.iter().zip(&case.buffers) {
        let make = |i: usize, rng: &mut Rng| match *fill {
            Fill::Floats(_) => (rng.uniform() - 0.5).to_bits(),
            Fill::Bytes(_) => rng.bits() as u32,
            // Fields of 0, 1 or 2: the high bit goes wherever both are set.
            Fill::Codes(_) => {
                let x = rng.bits() as u32;
                x & !((x & 0x5555_5555) << 1)
            }
            Fill::Halves(_) => flow_lm::format::tensors::half_pair(rng.uniform() - 0.5, rng.uniform() - 0.5),
            Fill::Word(_, word) => word,
            Fill::Positions(_, period) => (i % period) as u32,
        };
        session.write_with(*id, words(fill), |i| make(i, &mut rng))?;
    }
    let last = ids[ids.len() - 1];
    let (mut seconds, begun) = (Vec::new(), Instant::now());
    for round in 0.. {
        let began = Instant::now();
        session.run(list)?;
        // Waits for the device.
        session.read_f32_at(last, 0, 1)?;
        if round > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
        if seconds.len() >= 5 && begun.elapsed().as_secs_f64() > 0.25 {
            break;
        }
    }
    Ok(median(seconds))
}

fn fma() -> Case {
    let (n, rounds) = (96 * 256, 4_000);
    case(
        &peak::PEAK_FMA,
        String::new(),
        peak::Shape { n, rounds },
        2.0 * f64::from(n) * f64::from(rounds),
        Limit::Fma,
        &[Fill::Floats(n as usize)],
    )
}

fn dot() -> Case {
    let (n, rounds) = (96 * 256, 16_000);
    case(
        &peak::PEAK_DOT,
        String::new(),
        peak::Shape { n, rounds },
        8.0 * f64::from(n) * f64::from(rounds),
        Limit::Dot,
        &[Fill::Floats(n as usize)],
    )
}

fn copy() -> Case {
    let n = 16 << 20;
    let buffers = [Fill::Floats(n), Fill::Floats(n)];
    case(&elementwise::COPY, String::new(), elementwise::Shape { n: n as u32 }, 8.0 * n as f64, Limit::Copy, &buffers)
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (m, n, k) in [(1024, 256, 768), (1024, 768, 256), (1024, 4096, 256)] {
        let (shape, params) = (format!("[{m}×{k}]·[{k}×{n}]"), gemm::Shape { m: m as u32, n: n as u32, k: k as u32, add: 0, symmetric: 0 });
        for kernel in [&gemm::GEMM_NN, &gemm::GEMM_NT, &gemm::GEMM_TN] {
            let buffers = [Fill::Floats(m * k), Fill::Floats(n * k), Fill::Floats(m * n)];
            all.push(case(kernel, shape.clone(), params, 2.0 * (m * n * k) as f64, Limit::Fma, &buffers));
        }
    }
    // The gradient of a weight: few outputs, a long sum over the rows of a batch.
    let (m, n, k) = (256, 256, 8192);
    let params = gemm::Shape { m: m as u32, n: n as u32, k: k as u32, add: 0, symmetric: 0 };
    let buffers = [Fill::Floats(m * k), Fill::Floats(n * k), Fill::Floats(m * n)];
    all.push(case(&gemm::GEMM_TN, format!("[{m}×{k}]·[{k}×{n}]"), params, 2.0 * (m * n * k) as f64, Limit::Fma, &buffers));
    for (rows, outs, cols) in
        [(1, 2048, 2048), (8, 2048, 2048), (128, 2048, 2048), (2048, 2048, 2048), (1, 16_384, 4096), (64, 16_384, 4096)]
    {
        let params = ternary_gemm::Shape { rows: rows as u32, outs: outs as u32, cols: cols as u32, add: 0 };
        let buffers = [
            Fill::Bytes(rows * cols / 4),
            Fill::Word(2 * rows, 0),
            Fill::Codes(outs * ternary::packed_words(cols)),
            Fill::Floats(outs),
            Fill::Floats(rows * outs),
        ];
        let shape = format!("[{rows}×{cols}]·[{cols}×{outs}]");
        all.push(case(ternary_gemm::kernel(rows), shape, params, 2.0 * (rows * outs * cols) as f64, Limit::Dot, &buffers));
    }
    for (rows, kernel) in
        [(1, &ternary_blocks::TERNARY_BLOCKS_GEMV), (8, &ternary_blocks::TERNARY_BLOCKS_GEMV), (128, &ternary_blocks::TERNARY_BLOCKS_GEMM)]
    {
        let (outs, cols) = (2048usize, 2048usize);
        let (groups, by_row) = (cols as u32 / 64, 0);
        let params = ternary_blocks::Shape { rows: rows as u32, outs: outs as u32, cols: cols as u32, add: 0, groups, by_row };
        let buffers = [
            Fill::Bytes(rows * cols / 4),
            Fill::Floats(rows * cols / 64),
            Fill::Codes(outs * ternary::packed_words(cols)),
            Fill::Halves(outs * cols / 128),
            Fill::Floats(rows * outs),
        ];
        let shape = format!("[{rows}×{cols}]·[{cols}×{outs}], groups of 64");
        all.push(case(kernel, shape, params, 2.0 * (rows * outs * cols) as f64, Limit::Dot, &buffers));
    }
    for rows in [1, 8] {
        let (n, k) = (32_000, 768);
        let params = gemm::Shape { m: rows as u32, n: n as u32, k: k as u32, add: 0, symmetric: 0 };
        let buffers = [Fill::Floats(rows * k), Fill::Halves(n * k / 2), Fill::Floats(rows * n)];
        all.push(case(&gemm::GEMV_NT_HALF, format!("[{rows}×{k}]·[{k}×{n}]"), params, 2.0 * (n * k) as f64, Limit::Copy, &buffers));
    }
    all.extend(rows());
    all
}

/// Kernels that move more than they compute, at the shape of the main job: bytes read and written.
fn rows() -> Vec<Case> {
    let (rows, dim, mlp, vocab, k) = (1024usize, 256usize, 768usize, 4096usize, 20usize);
    let floats = |n: usize| Fill::Floats(n);
    let hyper = Fill::Word(hyper::LEN, 127f32.to_bits());
    let (heads, seq) = (4usize, 128usize);
    let attend = attention::Shape {
        rows: rows as u32,
        q_len: seq as u32,
        kv_len: seq as u32,
        heads: heads as u32,
        kv_heads: 2,
        head_dim: 64,
        scale: 0.125,
    };
    let attention_buffers = [
        floats(rows * dim),
        floats(rows * dim / 2),
        floats(rows * dim / 2),
        Fill::Word(rows, 1),
        Fill::Positions(rows, seq),
        floats(rows * dim),
        floats(rows * heads * 2),
    ];
    let n = 1 << 20;
    vec![
        case(
            &attention::ATTENTION,
            format!("8 × {seq} tokens, {heads} heads of 64"),
            attend,
            4.0 * (rows * seq / 2 * dim) as f64,
            Limit::Fma,
            &attention_buffers,
        ),
        case(
            &rmsnorm::RMSNORM,
            format!("[{rows}×{dim}]"),
            rmsnorm::Shape { rows: rows as u32, cols: dim as u32, eps: 1e-5, add: 0 },
            8.0 * (rows * dim) as f64,
            Limit::Copy,
            &[floats(rows * dim), floats(dim), floats(rows * dim), floats(rows)],
        ),
        case(
            &rmsnorm::RMSNORM_GRAD_G,
            format!("[{}×{dim}]", 8 * rows),
            rmsnorm::Shape { rows: 8 * rows as u32, cols: dim as u32, eps: 1e-5, add: 0 },
            64.0 * (rows * dim) as f64,
            Limit::Copy,
            &[floats(8 * rows * dim), floats(8 * rows), floats(8 * rows * dim), floats(dim)],
        ),
        case(
            &act_quant::ACT_QUANT,
            format!("[{rows}×{mlp}]"),
            act_quant::Shape { rows: rows as u32, cols: mlp as u32, words: mlp as u32 / 4 },
            5.0 * (rows * mlp) as f64,
            Limit::Copy,
            &[floats(rows * mlp), hyper, Fill::Bytes(rows * mlp / 4), Fill::Word(2 * rows, 0)],
        ),
        case(
            &gated::GATED,
            format!("[{rows}×{mlp}]"),
            gated::Shape { n: (rows * mlp) as u32, act: 0 },
            12.0 * (rows * mlp) as f64,
            Limit::Copy,
            &[floats(rows * mlp), floats(rows * mlp), floats(rows * mlp)],
        ),
        case(
            &kd_loss::KD_LOSS,
            format!("[{rows}×{vocab}], Top-{k}"),
            kd_loss::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32 },
            8.0 * (rows * vocab) as f64,
            Limit::Copy,
            &[
                floats(rows * vocab),
                Fill::Positions(rows * k, k),
                floats(rows * k),
                floats(rows * 4),
                Fill::Word(rows, 7),
                hyper,
                floats(rows * 4),
                floats(rows * k),
            ],
        ),
        case(
            &adamw::ADAMW,
            format!("{n} parameters"),
            adamw::Shape { n: n as u32, decay: 1.0 },
            28.0 * n as f64,
            Limit::Copy,
            &[Fill::Word(hyper::LEN, 0.01f32.to_bits()), Fill::Word(4, 0), floats(n), floats(n), Fill::Word(n, 0), Fill::Word(n, 0)],
        ),
    ]
}
