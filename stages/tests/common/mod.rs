//! Golden files and the devices that they are checked on.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use flow_lm::config::Bits;
use flow_lm::train::Hyper;
use flow_shaders::device::{Device, open};
use safetensors::SafeTensors;

#[path = "../../../tests/support/skipped.rs"]
mod skip;
pub use skip::skipped;

/// `FLOW_GOLDEN_DIR`, or the repository's own copy.
pub fn golden_dir() -> PathBuf {
    std::env::var_os("FLOW_GOLDEN_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden"), PathBuf::from)
}

/// The device that `FLOW_DEVICE` names; without it the CPU, and an adapter where one exists.
pub fn devices() -> Vec<Device> {
    match std::env::var("FLOW_DEVICE") {
        Ok(name) => vec![open(&name, 0).expect("FLOW_DEVICE names a device")],
        Err(_) => {
            let mut all = vec![open("cpu", 0).expect("the CPU is always there")];
            match open("gpu", 0) {
                Ok(gpu) => all.push(gpu),
                Err(e) => skipped(format_args!("on wgpu: {e}")),
            }
            all
        }
    }
}

/// Whether an adapter is a CPU that plays one: long tests do less on it.
pub fn is_software(device: &Device) -> bool {
    device.name().contains("llvmpipe")
}

/// Names of all cases of `numerics/`.
pub fn cases() -> Vec<String> {
    let text = std::fs::read(golden_dir().join("numerics/manifest.json")).unwrap();
    let manifest: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text).unwrap();
    manifest.into_keys().collect()
}

/// One case of `numerics/`.
pub struct Golden {
    bytes: Vec<u8>,
    /// Its entry in the manifest.
    pub about: serde_json::Value,
}

impl Golden {
    /// Reads a case by name.
    pub fn load(name: &str) -> Self {
        let dir = golden_dir().join("numerics");
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
        Self { bytes: std::fs::read(dir.join(format!("{name}.safetensors"))).unwrap(), about: manifest[name].clone() }
    }
    /// Reads a safetensors file that the manifest does not name, with the JSON that describes it.
    pub fn file(tensors: &str, about: &str) -> Self {
        let read = |name: &str| std::fs::read(golden_dir().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        Self { bytes: read(tensors), about: serde_json::from_slice(&read(about)).unwrap() }
    }
    fn data(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data().to_vec()
    }
    /// Whether the file holds a tensor.
    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).is_ok()
    }
    /// Shape of a tensor, from the file itself.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).shape().to_vec()
    }
    /// Floats.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.data(name))
    }
    /// Doubles.
    pub fn f64(&self, name: &str) -> Vec<f64> {
        bytemuck::pod_collect_to_vec(&self.data(name))
    }
    /// Signed words.
    pub fn i32(&self, name: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.data(name))
    }
    /// Bytes.
    pub fn u8(&self, name: &str) -> Vec<u8> {
        self.data(name)
    }
}

/// Numbers in [−0.5, 0.5), the same ones for a seed.
pub fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    }
}

/// The scalars of a small training step.
pub fn hyper(step: u64, tau: f32, bits: u32) -> Hyper {
    let bits = Bits::of(bits).expect("4 or 8");
    Hyper {
        step,
        lr: 3e-3,
        muon_lr: 0.02,
        betas: (0.9, 0.95, 1e-8),
        weight_decay: 0.1,
        muon: (0.95, 0.1),
        clip: 1.0,
        tau,
        bits,
        softness: Default::default(),
        relation: 0.0,
    }
}
