//! The identity of the machine, for the keys of stages that measure; cheap, because every run may need it.

use std::path::Path;

use flow_cache::Cache;
use flow_engine::key::MachineId;
use flow_shaders::device::{DeviceInfo, DeviceKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::display::amounts::bytes;
use crate::failure::Failure;

/// Which device `choice` means here. Listing adapters loads drivers, so its answer is kept in the cache
/// directory for as long as the machine is not restarted and what could change the answer stays the same.
pub fn identify(choice: &str, threads: usize, cache_dir: &Path) -> MachineId {
    let cpu_model = flow_shaders::cpu::cpu_model();
    let (device, driver) = match choice {
        "cpu" => ("cpu".to_owned(), String::new()),
        choice => {
            let adapter = adapter(choice, cache_dir);
            (adapter.device, adapter.driver)
        }
    };
    MachineId { device, driver, cpu_model, threads }
}

/// Physical memory in bytes, where the system tells.
pub fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Adapter {
    device: String,
    driver: String,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    circumstances: Value,
    adapter: Adapter,
}

fn adapter(choice: &str, cache_dir: &Path) -> Adapter {
    let file = cache_dir.join("machine.json");
    let circumstances = circumstances(choice);
    if let Some(known) = std::fs::read(&file).ok().and_then(|b| serde_json::from_slice::<Remembered>(&b).ok())
        && circumstances.is_some()
        && circumstances.as_ref() == Some(&known.circumstances)
    {
        return known.adapter;
    }
    let adapter = resolve(choice, &flow_shaders::device::list());
    if let Some(circumstances) = circumstances
        && let Ok(text) = serde_json::to_vec(&Remembered { circumstances, adapter: adapter.clone() })
    {
        // Only a shortcut: without it the next run lists the adapters again.
        let temporary = file.with_extension(format!("json.{}", std::process::id()));
        let _ = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, &file));
    }
    adapter
}

/// What could change the answer: boot, driver, device files, environment, this executable. `None` where the
/// system does not tell.
fn circumstances(choice: &str) -> Option<Value> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let nvidia = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let names = |dir: &str| {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let environment: Vec<_> = ["VK_ICD_FILENAMES", "VK_DRIVER_FILES", "CUDA_VISIBLE_DEVICES", "WGPU_BACKEND"]
        .map(|v| std::env::var(v).unwrap_or_default())
        .into();
    let executable = std::env::current_exe().and_then(std::fs::metadata).and_then(|m| m.modified()).ok()?;
    let icds = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"].map(names);
    Some(serde_json::json!([choice, boot, nvidia, names("/dev/dri"), icds, environment, format!("{executable:?}")]))
}

/// Refuses a device that this machine does not have, before anything is computed.
pub fn check_device(choice: &str) -> Result<(), Failure> {
    if ["cpu", "auto", ""].contains(&choice) {
        return Ok(());
    }
    let devices = flow_shaders::device::list();
    if find(choice, &devices).is_some() {
        return Ok(());
    }
    let adapters = devices.iter().filter(|d| d.backend != "cpu").map(|d| format!("`{}`", d.name));
    let names: Vec<_> = adapters.chain(["`cpu`".to_owned()]).collect();
    Err(Failure::Broken(format!(
        "no device matches `{choice}`; there are: {}\n  help: --device auto, or one of these or a part of its name; `flow devices` describes them",
        names.join(", ")
    )))
}

/// What a run needs at the least to begin: its index and the first result's files.
const ROOM: u64 = 32 << 10;

/// Refuses a cache on a full disk, before anything is computed for it.
pub fn check_room(cache: &Cache) -> Result<(), Failure> {
    let tmp = cache.layout().tmp();
    let dir = cache.layout().root().display().to_string();
    let probe = tempfile::tempfile_in(&tmp)
        .map_err(|e| Failure::Broken(format!("the cache {dir} cannot be written: {e}\n  help: give another with --cache-dir")))?;
    let Err(error) = rustix::fs::fallocate(&probe, rustix::fs::FallocateFlags::empty(), 0, ROOM) else { return Ok(()) };
    if ![rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT].contains(&error) {
        // A file system without `fallocate`: the first write tells.
        return Ok(());
    }
    let held = cache.usage().map(|usage| usage.objects.bytes + usage.tasks.bytes + usage.scraps.bytes).unwrap_or(0);
    Err(Failure::Broken(format!(
        "the disk is full where the cache {dir} lies ({error})\n  help: the cache holds {}; `flow cache du` shows of what, `flow gc` removes what no recent run needs, --cache-dir gives another place",
        bytes(held)
    )))
}

fn find<'a>(choice: &str, devices: &'a [DeviceInfo]) -> Option<&'a DeviceInfo> {
    let adapters = || devices.iter().filter(|d| d.backend != "cpu");
    match choice {
        "auto" | "" => adapters().find(|d| is_real(d)),
        "gpu" => adapters().find(|d| is_real(d)).or_else(|| adapters().next()),
        name => adapters().find(|d| d.name.to_lowercase().contains(&name.to_lowercase())),
    }
}

fn resolve(choice: &str, devices: &[DeviceInfo]) -> Adapter {
    let of = |d: &DeviceInfo| Adapter { device: d.name.clone(), driver: d.driver.clone() };
    find(choice, devices)
        .map_or_else(|| Adapter { device: if choice == "auto" { "cpu".into() } else { choice.into() }, driver: String::new() }, of)
}

fn is_real(device: &DeviceInfo) -> bool {
    matches!(device.kind, DeviceKind::Gpu)
}
