//! Attention relations and their gradient against PyTorch's float64 (`tests/golden/relations/make.py`).

mod common;

use common::{Golden, devices};
use flow_shaders::device::Device;
use flow_shaders::kernels::kd_loss::{self, LOSS_SUM};
use flow_shaders::kernels::relation::{RELATION, RELATION_GRAD, Shape};
use flow_shaders::program::Program;

/// Largest difference from PyTorch, relative to the largest value of a tensor.
const TOLERANCE: f64 = 1e-5;

/// A case on a device: kl of each row, the weighted sum of all, gradient.
fn compute(device: &Device, golden: &Golden, name: &str) -> [Vec<f32>; 3] {
    let tensor = |what: &str| golden.f32(&format!("{name}.{what}"));
    let about = |key: &str| golden.about[name][key].as_u64().unwrap_or_else(|| panic!("{name}: no {key}")) as u32;
    let [x_s, x_t, weights] = ["x_s", "x_t", "weights"].map(tensor);
    let rows = weights.len();
    let widths = [&x_s, &x_t].map(|x| (x.len() / rows) as u32);
    let shape = Shape::new(rows as u32, about("q_len"), widths, about("heads"));
    let mask: Vec<u32> = golden.u8(&format!("{name}.mask")).into_iter().map(u32::from).collect();
    let meta: Vec<f32> = weights.iter().flat_map(|w| [0.0, *w, 0.0, 0.0]).collect();

    let mut program = Program::default();
    let [student, teacher, dx] = [("x_s", &x_s), ("x_t", &x_t), ("dx", &x_s)].map(|(name, x)| program.persistent(name, x.len()));
    let [of_mask, of_meta, losses] = [("mask", 1), ("meta", 4), ("losses", 4)].map(|(name, n)| program.persistent(name, n * rows));
    let stats = program.persistent("stats", 2 * rows * shape.heads as usize);
    let sums = program.persistent("sums", 4);
    let list = program.list("relations");
    program.push(list, &RELATION, &[student, teacher, of_mask, stats, losses], &shape);
    program.push(list, &LOSS_SUM, &[losses, of_meta, sums], &kd_loss::Shape { rows: rows as u32, vocab: 0, k: 0 });
    program.push(list, &RELATION_GRAD, &[student, teacher, of_mask, stats, of_meta, dx], &shape);

    let mut session = device.load(program).unwrap();
    session.write(of_mask, &mask).unwrap();
    for (id, values) in [(student, &x_s), (teacher, &x_t), (of_meta, &meta)] {
        session.write_f32(id, values).unwrap();
    }
    session.run(list).unwrap();
    let kl = session.read_f32(losses).unwrap().chunks(4).map(|l| l[0]).collect();
    [kl, session.read_f32_at(sums, 0, 1).unwrap(), session.read_f32(dx).unwrap()]
}

#[test]
fn golden_relations() {
    let golden = Golden::file("relations/relations.safetensors", "relations/cases.json");
    let cases: Vec<String> = golden.about.as_object().expect("cases by name").keys().cloned().collect();
    assert_eq!(cases.len(), 3);
    for (device, name) in devices().iter().flat_map(|device| cases.iter().map(move |name| (device, name))) {
        let loss = golden.about[name]["loss"].as_f64().expect("loss");
        let dx = golden.f32(&format!("{name}.dx")).into_iter().map(f64::from).collect();
        let wanted = [golden.f64(&format!("{name}.kl")), vec![loss], dx];
        for ((what, got), want) in ["kl", "loss", "dx"].into_iter().zip(compute(device, &golden, name)).zip(wanted) {
            assert_eq!(got.len(), want.len(), "{name}: {what}");
            let largest = want.iter().fold(0f64, |m, w| m.max(w.abs()));
            let worst = got
                .iter()
                .zip(&want)
                .map(|(g, w)| (f64::from(*g) - w).abs() / largest)
                .fold(0f64, |m, e| if e > m || e.is_nan() { e } else { m });
            println!("{}, {name}: {what} within {worst:.1e} of the largest", device.name());
            assert!(worst <= TOLERANCE, "{name} on {}: {what} is {worst:e} of the largest away", device.name());
        }
    }
}
