//! `flow devices`.

use serde_json::{Map, Value, json};

use crate::args::DevicesArgs;
use crate::failure::Failure;
use crate::print::print;

pub fn devices(args: &DevicesArgs) -> Result<u8, Failure> {
    let devices = flow_shaders::device::list();
    if args.json {
        let rows: Vec<_> = devices
            .iter()
            .map(|d| {
                let limits: Map<_, _> = d.limits.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect();
                json!({ "name": d.name, "kind": format!("{:?}", d.kind).to_lowercase(), "backend": d.backend, "driver": d.driver, "limits": limits })
            })
            .collect();
        print(&Value::Array(rows).to_string());
        return Ok(0);
    }
    for device in devices {
        print(&format!("{}  ({}, {:?})", device.name, device.backend, device.kind));
        print(&format!("  driver  {}", device.driver));
        for (name, value) in &device.limits {
            print(&format!("  {name}  {value}"));
        }
    }
    Ok(0)
}
