//! Action keys: what they are made of, in a canonical form that can be hashed and compared.

use std::collections::BTreeMap;

use flow_cache::{ActionKey, Artifact, Cache, CacheError, Digest};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::plan::{PlannedStage, json_pointer};

/// Version of the key's format: raising it invalidates everything.
const FORMAT: u32 = 1;

/// The machine, for tasks that measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineId {
    /// Adapter name, or `cpu`.
    pub device: String,
    /// Driver and its version.
    pub driver: String,
    /// CPU model.
    pub cpu_model: String,
    /// CPU threads that tasks may use.
    pub threads: usize,
}

/// One input in the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInput {
    /// Input port.
    pub port: String,
    /// Artifact type.
    pub ty: String,
    /// Digest.
    pub digest: Digest,
    /// Whether it is a directory.
    pub tree: bool,
}

/// Everything that an action key is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyParts {
    /// Version of this form.
    pub format: u32,
    /// Kind.
    pub kind: String,
    /// Recipe revision.
    pub revision: u32,
    /// Fingerprints of what the kind runs.
    pub fingerprints: BTreeMap<String, String>,
    /// Canonical parameters: sources by digest, unkeyed ones left out, keys sorted.
    pub params: Value,
    /// Inputs in port order.
    pub inputs: Vec<KeyInput>,
    /// The machine, if an output is measured.
    pub machine: Option<MachineId>,
}

impl KeyParts {
    /// The parts of a stage; `inputs` are the artifacts of its wires, in their order.
    pub fn of(stage: &PlannedStage, inputs: &[Artifact], machine: &dyn Fn() -> MachineId, cache: &Cache) -> Result<Self, CacheError> {
        let mut params = stage.params.clone();
        for source in &stage.sources {
            if let Some(content) = source.content(cache)?
                && let Some(slot) = params.pointer_mut(&json_pointer(&source.at))
            {
                *slot = content;
            }
        }
        for path in &stage.unkeyed {
            if let Some((last, parent)) = path.split_last()
                && let Some(Value::Object(map)) = params.pointer_mut(&json_pointer(parent))
            {
                map.shift_remove(last);
            }
        }
        let wired: Vec<&str> = stage.inputs.iter().map(|wire| wire.port.as_str()).collect();
        let inputs = stage
            .inputs
            .iter()
            .zip(inputs)
            .map(|(wire, a)| KeyInput { port: wire.port.clone(), ty: wire.ty.clone(), digest: a.digest, tree: a.tree })
            .collect();
        Ok(Self {
            format: FORMAT,
            kind: stage.kind.name().into(),
            revision: stage.kind.revision(),
            fingerprints: stage.kind.fingerprints(&stage.params, &wired).into_iter().collect(),
            params: canonical(&params),
            inputs,
            machine: stage.is_measured().then(machine),
        })
    }

    /// The key: blake3 of the canonical JSON of the parts.
    pub fn key(&self) -> ActionKey {
        let value = serde_json::to_value(self).unwrap_or_default();
        ActionKey(Digest::of(format!("flow-action {FORMAT}\n{}", canonical(&value)).as_bytes()))
    }
}

/// The same value with all keys sorted.
pub fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut sorted: Vec<_> = map.iter().collect();
            sorted.sort_by_key(|(k, _)| *k);
            Value::Object(sorted.into_iter().map(|(k, v)| (k.clone(), canonical(v))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}
