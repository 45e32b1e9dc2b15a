//! Adapters of this machine, and what `flow devices` prints about them.

use crate::backend::{DeviceInfo, DeviceKind};

/// Adapters of this machine, real ones first.
pub fn list() -> Vec<DeviceInfo> {
    adapters().iter().map(describe).collect()
}

/// Adapters as wgpu gives them, real ones first.
pub(super) fn adapters() -> Vec<wgpu::Adapter> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = backends;
    let mut all = pollster::block_on(wgpu::Instance::new(desc).enumerate_adapters(backends));
    all.sort_by_key(|a| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    all
}

/// Whether it is a software rasteriser.
pub(super) fn is_software(adapter: &wgpu::Adapter) -> bool {
    adapter.get_info().device_type == wgpu::DeviceType::Cpu
}

fn describe(adapter: &wgpu::Adapter) -> DeviceInfo {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let features = adapter.features();
    let present = |flag, yes: &'static str| if features.contains(flag) { Some(yes) } else { None };
    let names: Vec<&str> = [
        present(wgpu::Features::SHADER_F16, "f16"),
        present(wgpu::Features::SUBGROUP, "subgroups"),
        present(wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
        present(wgpu::Features::PIPELINE_CACHE, "pipeline cache"),
    ]
    .into_iter()
    .flatten()
    .collect();
    DeviceInfo {
        name: info.name.clone(),
        kind: if is_software(adapter) { DeviceKind::Software } else { DeviceKind::Gpu },
        backend: info.backend.to_str().to_owned(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        limits: vec![
            ("storage binding".into(), mib(limits.max_storage_buffer_binding_size)),
            ("buffer".into(), mib(limits.max_buffer_size)),
            ("storage buffers".into(), limits.max_storage_buffers_per_shader_stage.to_string()),
            ("workgroup".into(), format!("{} invocations", limits.max_compute_invocations_per_workgroup)),
            ("workgroup memory".into(), format!("{} KiB", limits.max_compute_workgroup_storage_size >> 10)),
            ("subgroup".into(), format!("{}–{}", info.subgroup_min_size, info.subgroup_max_size)),
            ("features".into(), if names.is_empty() { "none".into() } else { names.join(", ") }),
        ],
    }
}
