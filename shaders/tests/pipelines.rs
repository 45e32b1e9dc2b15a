//! Compiled pipelines are kept on the disk, and a damaged file is only a loss of time.

#[path = "../../tests/support/skipped.rs"]
mod skip;

use std::path::{Path, PathBuf};
use std::time::Instant;

use flow_shaders::device::open;
use flow_shaders::kernel::Kernel;
use flow_shaders::kernels::gemm::{GEMM_NN, Shape};
use flow_shaders::kernels::{ALL, elementwise};
use flow_shaders::pipelines;
use flow_shaders::program::Program;

/// A device of its own, with the pipelines of these kernels compiled, computes a product.
fn compute(kernels: &[&'static Kernel]) -> Option<Vec<u32>> {
    let device = open("gpu", 0).inspect_err(|e| skip::skipped(e)).ok()?;
    let mut program = Program::default();
    let [a, b, c] = ["a", "b", "c"].map(|name| program.persistent(name, 64));
    let list = program.list("product");
    program.push(list, &GEMM_NN, &[a, b, c], &Shape { m: 8, n: 8, k: 8, add: 0, symmetric: 0 });
    // Never run: they are compiled with the list's.
    let idle = program.list("other kernels");
    for kernel in kernels {
        let buffers: Vec<_> = kernel.bindings.iter().map(|b| program.persistent(b.name, 64)).collect();
        program.push(idle, kernel, &buffers, &elementwise::Shape { n: 0 });
    }
    let began = Instant::now();
    let mut session = device.load(program).unwrap();
    println!("{} pipelines in {:.0} ms", kernels.len(), began.elapsed().as_secs_f64() * 1e3);
    session.write_f32(a, &std::array::from_fn::<f32, 64, _>(|i| i as f32)).unwrap();
    session.write_f32(b, &std::array::from_fn::<f32, 64, _>(|i| 1.0 - i as f32)).unwrap();
    session.run(list).unwrap();
    Some(session.read(c).unwrap())
}

fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).map(|all| all.map(|e| e.unwrap().path()).collect()).unwrap_or_default()
}

#[test]
fn pipelines_are_kept_and_damage_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("pipelines");
    pipelines::keep_in(&kept);
    let Some(first) = compute(ALL) else { return };
    // A backend that gives none out keeps none.
    let [file] = &files(&kept)[..] else { return skip::skipped("this adapter gives no pipelines out") };
    let bytes = std::fs::read(file).unwrap();
    assert!(bytes.len() > 32 && blake3::hash(&bytes[32..]).as_bytes() == &bytes[..32]);
    let written = std::fs::metadata(file).unwrap().modified().unwrap();
    assert_eq!(compute(ALL).as_ref(), Some(&first));
    assert_eq!(std::fs::metadata(file).unwrap().modified().unwrap(), written, "nothing new, nothing written");
    for damaged in [&bytes[..bytes.len() / 2], &[0; 100], &[], b"x"] {
        std::fs::write(file, damaged).unwrap();
        // A few: what is compiled anew for each takes seconds.
        assert_eq!(compute(&ALL[..8]).as_ref(), Some(&first));
        let mended = std::fs::read(file).unwrap();
        assert!(blake3::hash(&mended[32..]).as_bytes() == &mended[..32]);
    }
    assert_eq!(files(&kept).len(), 1, "nothing is left beside the file");
}
