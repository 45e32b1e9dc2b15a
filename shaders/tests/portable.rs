//! Every module is portable: WebGPU's default limits, no optional capability but those that a variant is chosen by, and naga
//! writes it for all three backends.

use flow_shaders::kernel::{Access, Kernel, Suits};
use flow_shaders::kernels;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, ResourceBinding, StorageAccess, TypeInner};

/// WebGPU's default `maxComputeWorkgroupStorageSize`, `maxStorageBuffersPerShaderStage` and
/// `maxComputeInvocationsPerWorkgroup` (section 3.6.2 of the specification).
const WORKGROUP_BYTES: u32 = 16_384;
const STORAGE_BUFFERS: usize = 8;
const INVOCATIONS: u32 = 256;

/// All modules of a kernel, with what the adapters have that run them.
fn modules(kernel: &Kernel) -> Vec<(Option<Suits>, String)> {
    let suits = std::iter::once(None).chain(kernel.variants.iter().map(|v| Some(v.suits)));
    suits.zip(kernel.modules()).flat_map(|(suits, m)| m.sources().map(move |s| (suits, s)).collect::<Vec<_>>()).collect()
}

fn each(check: impl Fn(&'static Kernel, &naga::Module, &ModuleInfo, Capabilities)) {
    each_suited(|kernel, _, module, info, capabilities| check(kernel, module, info, capabilities));
}

fn each_suited(check: impl Fn(&'static Kernel, Option<Suits>, &naga::Module, &ModuleInfo, Capabilities)) {
    for (kernel, (suits, source)) in kernels::ALL.iter().flat_map(|k| modules(k).into_iter().map(move |m| (k, m))) {
        let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{}: {}", kernel.name, e.emit_to_string(&source)));
        let needs = |word: &str, capability| if source.contains(word) { capability } else { Capabilities::empty() };
        // naga takes operations of a subgroup without a directive.
        let capabilities = needs("enable f16;", Capabilities::SHADER_FLOAT16) | needs("subgroupAdd", Capabilities::SUBGROUP);
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .subgroup_operations(naga::valid::SubgroupOperationSet::all())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{}: {}", kernel.name, e.emit_to_string(&source)));
        check(kernel, suits, &module, &info, capabilities);
    }
}

#[test]
fn names_are_sorted_and_unique() {
    assert!(kernels::ALL.windows(2).all(|pair| pair[0].name < pair[1].name));
}

#[test]
fn declared_bindings_are_those_of_the_module() {
    each(|kernel, module, _, _| {
        let mut found: Vec<(u32, String, Option<Access>)> = Vec::new();
        for (_, global) in module.global_variables.iter() {
            let Some(ResourceBinding { group, binding }) = global.binding else { continue };
            assert_eq!(group, 0, "{}", kernel.name);
            let access = match global.space {
                AddressSpace::Uniform => None,
                AddressSpace::Storage { access } if access == StorageAccess::LOAD => Some(Access::Read),
                AddressSpace::Storage { .. } => Some(Access::ReadWrite),
                space => panic!("{}: {space:?}", kernel.name),
            };
            found.push((binding, global.name.clone().unwrap_or_default(), access));
        }
        found.sort_by_key(|f| f.0);
        let mut want = vec![(0, "p".to_owned(), None)];
        for (i, b) in kernel.bindings.iter().enumerate() {
            let access = if b.access == Access::Read { Access::Read } else { Access::ReadWrite };
            want.push((i as u32 + 1, b.name.to_owned(), Some(access)));
        }
        assert_eq!(found, want, "{}", kernel.name);
    });
}

#[test]
fn modules_stay_within_the_default_limits_or_those_they_are_chosen_by() {
    each_suited(|kernel, suits, module, _, _| {
        let (invocations, bytes) = match suits {
            Some(Suits::Invocations(n)) => (n, WORKGROUP_BYTES),
            Some(Suits::WorkgroupMemory(n)) => (INVOCATIONS, n),
            _ => (INVOCATIONS, WORKGROUP_BYTES),
        };
        let mut workgroup = 0;
        let mut storage = 0;
        for (_, global) in module.global_variables.iter() {
            let inner = &module.types[global.ty].inner;
            match global.space {
                AddressSpace::WorkGroup => workgroup += inner.size(module.to_ctx()).next_multiple_of(16),
                AddressSpace::Storage { .. } => storage += 1,
                AddressSpace::Uniform => {
                    assert!(inner.size(module.to_ctx()) <= 64, "{}: parameters", kernel.name);
                    assert!(matches!(inner, TypeInner::Struct { .. }), "{}", kernel.name);
                }
                _ => {}
            }
        }
        assert!(workgroup <= bytes, "{}: {workgroup} bytes of workgroup memory", kernel.name);
        assert!(storage <= STORAGE_BUFFERS, "{}", kernel.name);
        assert_eq!(module.entry_points.len(), 1, "{}", kernel.name);
        let entry = &module.entry_points[0];
        assert_eq!((entry.name.as_str(), entry.stage), ("main", naga::ShaderStage::Compute), "{}", kernel.name);
        assert!(entry.workgroup_size.iter().product::<u32>() <= invocations, "{}", kernel.name);
    });
}

#[test]
fn modules_translate_to_spirv() {
    use naga::back::spv;
    each(|kernel, module, info, capabilities| {
        let mut allowed = vec![spv::Capability::Shader];
        if capabilities.contains(Capabilities::SHADER_FLOAT16) {
            allowed.push(spv::Capability::Float16);
        }
        if capabilities.contains(Capabilities::SUBGROUP) {
            allowed.extend([spv::Capability::GroupNonUniform, spv::Capability::GroupNonUniformArithmetic]);
        }
        let options = spv::Options { lang_version: (1, 3), capabilities: Some(allowed.into_iter().collect()), ..Default::default() };
        let entry = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: "main".into() };
        let words = spv::write_vec(module, info, &options, Some(&entry)).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        assert_eq!(words[0], 0x0723_0203, "{}", kernel.name);
    });
}

#[test]
fn modules_translate_to_msl() {
    use naga::back::msl;
    each(|kernel, module, info, _| {
        let mut resources = msl::EntryPointResources { sizes_buffer: Some(30), ..Default::default() };
        for (i, binding) in (0..=kernel.bindings.len() as u32).enumerate() {
            let mutable = i > 0 && kernel.bindings[i - 1].access != Access::Read;
            resources
                .resources
                .insert(ResourceBinding { group: 0, binding }, msl::BindTarget { buffer: Some(i as u8), mutable, ..Default::default() });
        }
        let options = msl::Options {
            lang_version: (2, 1),
            per_entry_point_map: [("main".to_owned(), resources)].into(),
            fake_missing_bindings: false,
            ..Default::default()
        };
        let (text, done) =
            msl::write_string(module, info, &options, &msl::PipelineOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        assert!(done.entry_point_names.iter().all(Result::is_ok), "{}: {:?}", kernel.name, done.entry_point_names);
        assert!(text.contains("kernel void"), "{}", kernel.name);
    });
}

#[test]
fn modules_translate_to_hlsl() {
    use naga::back::hlsl;
    each(|kernel, module, info, capabilities| {
        let mut text = String::new();
        // float16 and operations of a wave are there from 6.2 on.
        let shader_model = if capabilities.is_empty() { hlsl::ShaderModel::V5_1 } else { hlsl::ShaderModel::V6_2 };
        let options = hlsl::Options { shader_model, ..Default::default() };
        let pipeline = hlsl::PipelineOptions::default();
        let done =
            hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        assert!(done.entry_point_names.iter().all(Result::is_ok), "{}: {:?}", kernel.name, done.entry_point_names);
        assert!(text.contains("numthreads"), "{}", kernel.name);
    });
}
