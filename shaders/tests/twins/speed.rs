//! Speed of the two products on the adapter, for docs/performance.md:
//! `cargo test --release -p flow-shaders --test twins -- --ignored --nocapture speed`

use std::time::Instant;

use flow_shaders::kernel::Kernel;
use flow_shaders::kernels::{gemm, ternary_gemm};
use flow_shaders::program::Program;

use crate::harness::{Random, adapter};

/// Best of five runs of a list with `repeat` dispatches, in seconds a dispatch.
fn seconds<P: bytemuck::Pod>(kernel: &'static Kernel, buffers: &[Vec<u32>], params: &P, repeat: usize) -> Option<f64> {
    let mut program = Program::default();
    let ids: Vec<_> = buffers.iter().map(|b| program.persistent("", b.len())).collect();
    let list = program.list("");
    for _ in 0..repeat {
        program.push(list, kernel, &ids, params);
    }
    let mut session = adapter()?.load(program).unwrap();
    for (id, buffer) in ids.iter().zip(buffers) {
        session.write(*id, buffer).unwrap();
    }
    let mut once = || {
        let start = Instant::now();
        session.run(list).unwrap();
        // A small read waits for the end of the run.
        session.read_f32_at(ids[0], 0, 1).unwrap();
        start.elapsed().as_secs_f64() / repeat as f64
    };
    once();
    (0..5).map(|_| once()).reduce(f64::min)
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let mut r = Random(1);
    let (rows, outs, cols) = (128, 2048, 2048);
    let (q, sums) = r.bytes(rows, cols, cols / 4);
    let s = ternary_gemm::Shape { rows: rows as u32, outs: outs as u32, cols: cols as u32, add: 0 };
    let buffers = [q, r.range(rows, 0.01, 0.02), sums, r.codes(outs, cols), r.range(outs, 0.5, 2.0), vec![0; rows * outs]];
    if let Some(t) = seconds(&ternary_gemm::TERNARY_GEMM, &buffers, &s, 4) {
        println!("ternary_gemm [{rows} x {cols}] x [{cols} x {outs}]: {:.1} GOP/s", 2.0 * (rows * outs * cols) as f64 / t / 1e9);
    }
    let n = 512;
    let s = gemm::Shape { m: 512, n: 512, k: 512, add: 0, symmetric: 0 };
    let kernels: [&'static Kernel; 3] = [&gemm::GEMM_NN, &gemm::GEMM_NT, &gemm::GEMM_TN];
    for kernel in kernels {
        if let Some(t) = seconds(kernel, &[r.floats(n * n, 1.0), r.floats(n * n, 1.0), vec![0; n * n]], &s, 4) {
            println!("{} {n}^3: {:.1} GFLOP/s", kernel.name, 2.0 * (n * n * n) as f64 / t / 1e9);
        }
    }
}
