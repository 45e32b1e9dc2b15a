//! Fingerprints: names, comments and layout do not enter, arithmetic does.

use std::collections::HashMap;
use std::time::Instant;

use flow_shaders::fingerprint::{fingerprint, fingerprint_source, fingerprints};
use flow_shaders::kernels;

const SOURCE: &str = "
struct Params { n: u32, factor: f32 }
const GAIN: f32 = 2.0;
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
var<workgroup> seen: atomic<u32>;
fn scaled(v: f32) -> f32 { return v * GAIN; }
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var total = 0.0;
    for (var i = 0u; i < p.n; i++) { total += scaled(x[i]) * p.factor; }
    atomicAdd(&seen, 1u);
    workgroupBarrier();
    if (id.x < p.n) { y[id.x] = total - x[id.x]; }
}";

fn hash(source: &str) -> String {
    fingerprint_source(source).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn text_without_meaning_does_not_enter() {
    let base = hash(SOURCE);
    for (from, to) in [
        ("fn main", "// what it does\n/* and why */ fn main"),
        ("    ", "\n\t"),
        ("total", "sum"),
        ("scaled", "doubled"),
        ("GAIN: f32 = 2.0", "GAIN: f32 = 2.0 /* times two */"),
        ("x[", "( x )["),
        ("GAIN", "STRENGTH"),
        ("factor", "weight"),
        ("Params", "Shape"),
        ("const GAIN: f32 = 2.0;", "const UNUSED: f32 = 3.0; const GAIN: f32 = 2.0; fn spare() -> u32 { return 7u; }"),
    ] {
        let edited = SOURCE.replace(from, to);
        assert_ne!(edited, SOURCE, "{from}");
        assert_eq!(hash(&edited), base, "{from} -> {to}");
    }
}

#[test]
fn arithmetic_enters() {
    let mut seen = HashMap::from([(hash(SOURCE), "as it is")]);
    for (from, to) in [
        ("GAIN: f32 = 2.0", "GAIN: f32 = 2.0000002"),
        ("v * GAIN", "v + GAIN"),
        ("total - x[id.x]", "x[id.x] - total"),
        ("i < p.n", "i <= p.n"),
        ("total = 0.0", "total = 1.0"),
        ("workgroupBarrier();", ""),
        ("@workgroup_size(64)", "@workgroup_size(128)"),
        ("@binding(2) var<storage, read_write> y", "@binding(3) var<storage, read_write> y"),
        ("atomicAdd", "atomicMax"),
        ("n: u32, factor: f32", "factor: f32, n: u32"),
        ("global_invocation_id", "local_invocation_id"),
        ("total += scaled(x[i])", "total += scaled(x[i + 1u])"),
    ] {
        let edited = SOURCE.replace(from, to);
        assert_ne!(edited, SOURCE, "{from}");
        if let Some(other) = seen.insert(hash(&edited), to) {
            panic!("`{to}` and `{other}` have one fingerprint");
        }
    }
}

#[test]
fn every_kernel_has_its_own() {
    let start = Instant::now();
    let all = fingerprints(kernels::ALL);
    println!("{} fingerprints in {:.1} ms", all.len(), start.elapsed().as_secs_f64() * 1e3);
    let mut seen = HashMap::new();
    for (kernel, (name, print)) in kernels::ALL.iter().zip(&all) {
        assert_eq!((kernel.name, format!("{}:{}", kernel.revision, fingerprint(kernel).unwrap())), (name.as_str(), print.clone()));
        if let Some(other) = seen.insert(print.clone(), name) {
            panic!("{name} and {other} have one fingerprint");
        }
    }
    let start = Instant::now();
    assert_eq!(fingerprints(kernels::ALL), all);
    println!("again in {:.3} ms", start.elapsed().as_secs_f64() * 1e3);
}

#[test]
fn a_module_that_cannot_be_read_is_an_error() {
    assert!(fingerprint_source("fn main( {").is_err());
    assert!(fingerprint_source("fn helper() {}").is_err());
}
