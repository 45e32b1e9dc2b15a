//! Twin against twin: every kernel on the CPU and on a wgpu adapter, on random shapes and edge sizes.
//!
//! Integers must be equal, except that a code may differ by one where the value before rounding lies within 1e-5 of a
//! tie; floats agree within the tolerance of each test, which covers another order of additions and WGSL's looser
//! functions. `FLOW_DEVICE` names the adapter.

mod attention;
mod cut;
mod elementwise;
mod harness;
mod losses;
mod matrix;
mod quantise;
mod relation;
mod rows;

#[path = "../support/skipped.rs"]
mod skip;

use flow_shaders::device::{Device, DeviceError, DeviceKind, open};
use flow_shaders::kernels;
use flow_shaders::kernels::elementwise::{COPY, Shape, ZERO};
use flow_shaders::program::Program;

/// The words of a source outside of its comments.
fn words(source: &str) -> std::collections::HashSet<&str> {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '_'))).collect()
}

#[test]
fn comments_and_longer_names_are_no_test() {
    let words = words("check(&a::GEMM_NN, x); // as GEMM_NT\n/// GEMM_TN\nrun(&SWIGLU_GRAD);");
    assert!(words.contains("GEMM_NN") && words.contains("SWIGLU_GRAD"));
    assert!(!words.contains("GEMM_NT") && !words.contains("GEMM_TN") && !words.contains("SWIGLU"));
}

/// Every kernel has a test here: its name is a word of one of the files.
#[test]
fn every_kernel_is_tested() {
    let tests = [
        include_str!("attention.rs"),
        include_str!("elementwise.rs"),
        include_str!("losses.rs"),
        include_str!("matrix.rs"),
        include_str!("quantise.rs"),
        include_str!("relation.rs"),
        include_str!("rows.rs"),
    ]
    .concat();
    let words = words(&tests);
    let untested: Vec<&str> = kernels::ALL.iter().map(|k| k.name).filter(|name| !words.contains(&*name.to_uppercase())).collect();
    assert!(untested.is_empty(), "no twin test: {untested:?}");
}

#[test]
fn an_unknown_device_is_named_with_what_exists() {
    let Err(e) = open("no such adapter", 0) else { panic!("it was opened") };
    let text = e.to_string();
    assert!(text.contains("`no such adapter`") && text.contains("`cpu`"), "{text}");
}

#[test]
fn a_buffer_beyond_the_binding_limit_is_refused() {
    let Some(adapter) = harness::adapter() else { return };
    let limit = 64 << 30;
    let mut program = Program::default();
    program.persistent("far too large", limit / 4);
    let Err(e) = adapter.load(program) else { panic!("it was allocated") };
    let named = match &e {
        DeviceError::Binding { buffer, .. } => buffer == "far too large",
        DeviceError::OutOfMemory { .. } => true,
        _ => false,
    };
    assert!(named, "{e}");
}

/// A device that goes away fails every operation, with what to do next, and hangs none.
#[test]
fn a_lost_device_is_told() {
    let Some(adapter) = harness::adapter() else { return };
    let device = open(&adapter.name(), 0).unwrap();
    let copy = || {
        let mut program = Program::default();
        let [x, y] = ["x", "y"].map(|name| program.persistent(name, 1000));
        let list = program.list("copy");
        program.push(list, &COPY, &[x, y], &Shape { n: 1000 });
        (program, x, y, list)
    };
    let (program, x, y, list) = copy();
    let mut session = device.load(program).unwrap();
    session.write(x, &[7; 1000]).unwrap();
    session.run(list).unwrap();
    assert_eq!(session.read(y).unwrap(), [7; 1000]);
    session.run(list).unwrap();
    let Device::Gpu(gpu) = &device else { panic!("an adapter") };
    gpu.lose();
    let failures = [
        session.read(y).map(drop).unwrap_err(),
        session.write(x, &[8; 1000]).unwrap_err(),
        session.run(list).unwrap_err(),
        device.load(copy().0).map(drop).unwrap_err(),
    ];
    for e in failures {
        let text = e.to_string();
        assert!(matches!(e, DeviceError::Failed { .. }) && text.contains("lost") && text.contains("run again"), "{text}");
    }
    // The adapter is still there.
    open(&adapter.name(), 0).unwrap().load(copy().0).unwrap();
}

/// Lists, transient buffers, partial reads and many runs in flight behave as on the CPU.
#[test]
fn a_session_keeps_its_buffers_from_run_to_run() {
    let Some(adapter) = harness::adapter() else { return };
    for device in [harness::cpu(), adapter] {
        let mut program = Program::default();
        let n = 1000;
        let shape = Shape { n };
        let [x, y] = ["x", "y"].map(|name| program.persistent(name, n as usize));
        let middle = program.transient("middle", n as usize);
        let forth = program.list("forth");
        program.push(forth, &COPY, &[x, middle], &shape);
        program.push(forth, &COPY, &[middle, y], &shape);
        let clear = program.list("clear");
        program.push(clear, &ZERO, &[x], &shape);
        let mut session = device.load(program).unwrap();
        assert!(session.read(y).unwrap().iter().all(|w| *w == 0), "new buffers are zero");
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        session.write_f32(x, &values).unwrap();
        for _ in 0..20 {
            session.run(forth).unwrap();
        }
        session.run(clear).unwrap();
        assert_eq!(session.read_f32_at(y, 500, 3).unwrap(), [500.0, 501.0, 502.0]);
        assert!(session.read(x).unwrap().iter().all(|w| *w == 0));
        assert_eq!(session.read_f32(y).unwrap(), values);
    }
}

/// A temperature and a nucleus that change between runs of a loaded program, with runs in flight.
#[test]
fn parameters_change_between_runs() {
    let devices = std::iter::once(harness::cpu()).chain(harness::adapter());
    let vocab = 300usize;
    for device in devices {
        let mut program = Program::default();
        let logits = program.persistent("logits", vocab);
        let [u, ids, kept] = ["u", "ids", "kept"].map(|name| program.persistent(name, 1));
        let list = program.list("sample");
        // With so small a nucleus it is the largest logit that is taken, without one and with u = 0 the first.
        let sharp = kernels::sample::Shape { rows: 1, vocab: vocab as u32, temperature: 0.7, top_p: 1e-6 };
        let open = kernels::sample::Shape { temperature: 50.0, top_p: 1.0, ..sharp };
        program.push(list, &COPY, &[ids, kept], &Shape { n: 1 });
        program.push(list, &kernels::sample::SAMPLE, &[logits, u, ids], &sharp);
        let mut session = device.load(program).unwrap();
        session.write_f32(logits, &(0..vocab).map(|i| i as f32 / 100.0).collect::<Vec<_>>()).unwrap();
        for (params, id) in [(sharp, 299), (open, 0), (sharp, 299), (open, 0)] {
            session.set_params(list, 1, &params);
            session.run(list).unwrap();
            assert_eq!(session.read(ids).unwrap(), [id], "{}", device.name());
        }
        // What was asked for with the old parameters keeps them: the other operation sees the sharp one's choice.
        session.set_params(list, 1, &sharp);
        session.run(list).unwrap();
        session.set_params(list, 1, &open);
        session.run(list).unwrap();
        assert_eq!([session.read(kept).unwrap(), session.read(ids).unwrap()].concat(), [299, 0], "{}", device.name());
    }
}

/// Parts of a buffer are written and read from an offset; past its end nothing is.
#[test]
fn a_window_is_a_part_of_its_buffer_that_moves() {
    for device in std::iter::once(harness::cpu()).chain(harness::adapter()) {
        let mut program = Program::default();
        let (from, all) = (program.persistent("from", 64), program.persistent("all", 256));
        let window = program.window(all, 64);
        let list = program.list("copy");
        program.push(list, &COPY, &[from, window], &Shape { n: 64 });
        let mut session = device.load(program).unwrap();
        assert_eq!(session.planned_bytes(), 4 * (64 + 256));
        for (value, first) in [(1.0, 64), (2.0, 192), (3.0, 64), (4.0, 0)] {
            session.write_f32(from, &[value; 64]).unwrap();
            session.place(list, &[(window, first)]);
            session.run(list).unwrap();
            assert_eq!(session.read_f32(window).unwrap(), [value; 64]);
        }
        let all = session.read_f32(all).unwrap();
        assert_eq!(
            [all[0], all[64], all[127], all[128], all[191], all[192], all[255]],
            [4.0, 3.0, 3.0, 0.0, 0.0, 2.0, 2.0],
            "{}",
            device.name()
        );
    }
}

/// Operations on parts of transient and persistent buffers, one after the other, see what the others wrote.
#[test]
fn a_part_is_where_it_was_declared() {
    for device in std::iter::once(harness::cpu()).chain(harness::adapter()) {
        let mut program = Program::default();
        let (from, to) = (program.persistent("from", 192), program.persistent("to", 192));
        let middle = program.transient("middle", 192);
        let list = program.list("by parts");
        for first in [0, 64, 128] {
            let (a, b) = (program.part(from, first, 64), program.part(middle, 128 - first, 64));
            program.push(list, &COPY, &[a, b], &Shape { n: 64 });
        }
        program.push(list, &COPY, &[middle, to], &Shape { n: 192 });
        let mut session = device.load(program).unwrap();
        assert_eq!(session.planned_bytes(), 4 * 3 * 192);
        let values: Vec<u32> = (0..192).collect();
        session.write(from, &values).unwrap();
        session.run(list).unwrap();
        let want: Vec<u32> = values.chunks(64).rev().flatten().copied().collect();
        assert_eq!(session.read(to).unwrap(), want, "{}", device.name());
    }
}

#[test]
fn parts_of_a_buffer_are_written_and_read() {
    for device in std::iter::once(harness::cpu()).chain(harness::adapter()) {
        let mut program = Program::default();
        let [x, beside] = ["x", "beside"].map(|name| program.persistent(name, 10));
        let mut session = device.load(program).unwrap();
        session.write(x, &[7; 10]).unwrap();
        session.write_f32_at(x, 3, &[1.5, 2.5]).unwrap();
        session.write_at(x, 9, &[9]).unwrap();
        assert_eq!(session.read_f32_at(x, 3, 2).unwrap(), [1.5, 2.5]);
        assert_eq!(session.read_at(x, 5, 5).unwrap(), [7, 7, 7, 7, 9]);
        assert_eq!(session.read_at(x, 0, 3).unwrap(), [7; 3]);
        assert_eq!(session.read_at(x, 10, 0).unwrap(), [0; 0]);
        assert_eq!(session.read(beside).unwrap(), [0; 10]);
    }
}

#[test]
#[should_panic(expected = "write past `x`")]
fn a_part_past_the_end_is_not_written() {
    let mut program = Program::default();
    let x = program.persistent("x", 10);
    let mut session = harness::cpu().load(program).unwrap();
    let _ = session.write_f32_at(x, 9, &[1.0, 2.0]);
}

#[test]
#[should_panic(expected = "read past `x`")]
fn a_part_past_the_end_is_not_read() {
    let mut program = Program::default();
    let x = program.persistent("x", 10);
    let mut session = harness::cpu().load(program).unwrap();
    let _ = session.read_at(x, usize::MAX, 2);
}

#[test]
fn devices_are_listed_with_their_limits() {
    let all = flow_shaders::device::list();
    assert_eq!(all.last().unwrap().kind, DeviceKind::Cpu);
    for device in &all {
        println!("{device:?}");
        assert!(!device.name.is_empty() && !device.limits.is_empty());
    }
    // A software adapter is never what `auto` takes.
    if all.iter().all(|d| d.kind != DeviceKind::Gpu) {
        assert!(matches!(flow_shaders::device::open("auto", 1).unwrap(), Device::Cpu(_)));
    }
}

/// What the device's allocator reports is what the planner predicted, and a part of a name opens the adapter.
#[test]
fn measured_memory_is_the_planned_memory() {
    let Some(Device::Gpu(adapter)) = harness::adapter() else { return };
    let name = adapter.name();
    let part: String = name.chars().take(6).collect::<String>().to_uppercase();
    let opened = flow_shaders::device::open(&part, 0).unwrap();
    assert_eq!(opened.name(), name);
    let Device::Gpu(gpu) = &opened else { panic!("{part} is not an adapter") };
    let Some(before) = gpu.allocated_bytes() else { return };
    let mut program = Program::default();
    for megabytes in [1, 3, 8, 20] {
        program.persistent("", megabytes << 18);
    }
    let session = opened.load(program).unwrap();
    let held = gpu.allocated_bytes().unwrap() - before;
    println!("{held} bytes for {} planned", session.planned_bytes());
    assert!(held.abs_diff(session.planned_bytes()) * 100 < session.planned_bytes());
}

/// The same dispatch on the same adapter gives the same bytes.
#[test]
fn results_are_reproducible() {
    let Some(adapter) = harness::adapter() else { return };
    let mut r = harness::Random(11);
    let (m, n, k) = (70, 90, 333);
    let shape = kernels::gemm::Shape { m, n, k, add: 0, symmetric: 0 };
    let buffers = [r.floats((m * k) as usize, 1.0), r.floats((k * n) as usize, 1.0), harness::junk((m * n) as usize)];
    let squares = [r.floats(100_000, 1.0), harness::zeros(7)];
    let once = || {
        let products = harness::run(adapter, &kernels::gemm::GEMM_NN, &buffers, &shape);
        let sums = harness::run(adapter, &kernels::clip::SUM_SQ, &squares, &kernels::clip::SumSq { n: 100_000, offset: 0 });
        (products, sums)
    };
    let first = once();
    assert!((0..3).all(|_| once() == first));
}
