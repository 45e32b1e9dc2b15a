//! CPU seconds of the attention kernels at the poc shape: `cargo run --release -p flow-shaders --example kernel_speed`.
use flow_shaders::device::open;
use flow_shaders::kernels::{attention, gemm};
use flow_shaders::program::Program;

fn cpu_ms() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) * 10.0
}

fn main() {
    let d = open("cpu", 1).unwrap();
    let mut p = Program::default();
    let rows = 1024usize;
    let s = attention::Shape { rows: rows as u32, q_len: 128, kv_len: 128, heads: 4, kv_heads: 2, head_dim: 64, scale: 0.125 };
    let [q, o, d_o, dq] = ["q", "o", "do", "dq"].map(|n| p.persistent(n, rows * 256));
    let [k, v, dk, dv] = ["k", "v", "dk", "dv"].map(|n| p.persistent(n, rows * 128));
    let mask = p.persistent("mask", rows);
    let pos = p.persistent("pos", rows);
    let stats = p.persistent("stats", rows * 8);
    let w = p.persistent("w", 256 * 768);
    let y = p.persistent("y", rows * 768);
    let [g, g2] = ["g", "g2"].map(|n| p.persistent(n, 256 * 256));
    let lists = ["forward", "delta", "grad_q", "grad_kv", "gemm", "nn sym", "tn sym", "nn", "gram nt"].map(|n| p.list(n));
    p.push(lists[0], &attention::ATTENTION, &[q, k, v, mask, pos, o, stats], &s);
    p.push(lists[1], &attention::ATTENTION_DELTA, &[d_o, o, stats], &s);
    p.push(lists[2], &attention::ATTENTION_GRAD_Q, &[q, k, v, mask, d_o, stats, dq], &s);
    p.push(lists[3], &attention::ATTENTION_GRAD_KV, &[q, k, v, mask, d_o, stats, dk, dv], &s);
    p.push(lists[4], &gemm::GEMM_NN, &[q, w, y], &gemm::Shape { m: rows as u32, n: 768, k: 256, add: 0, symmetric: 0 });
    let sq = gemm::Shape { m: 256, n: 256, k: 256, add: 0, symmetric: 1 };
    p.push(lists[5], &gemm::GEMM_NN, &[g, g, g2], &sq);
    p.push(lists[6], &gemm::GEMM_TN, &[g, g, g2], &sq);
    p.push(lists[7], &gemm::GEMM_NN, &[g, g, g2], &gemm::Shape { symmetric: 0, ..sq });
    p.push(lists[8], &gemm::GEMM_NT, &[w, w, g2], &gemm::Shape { k: 768, ..sq });
    let mut x = d.load(p).unwrap();
    for b in [q, k, v, d_o, w] {
        let n = x.program().words(b);
        x.write_f32(b, &(0..n).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect::<Vec<_>>()).unwrap();
    }
    x.write(mask, &vec![1; rows]).unwrap();
    x.write(pos, &(0..rows).map(|r| (r % 128) as u32).collect::<Vec<_>>()).unwrap();
    for l in lists {
        x.run(l).unwrap();
    }
    for (l, n) in lists.into_iter().zip([
        "forward",
        "delta",
        "grad_q",
        "grad_kv",
        "gemm 1024x768x256",
        "nn sym 256",
        "tn sym 256",
        "nn 256",
        "gram 256x768",
    ]) {
        let t = cpu_ms();
        for _ in 0..400 {
            x.run(l).unwrap();
        }
        println!("{n}: {:.2} ms of CPU", (cpu_ms() - t) / 400.0);
    }
}
