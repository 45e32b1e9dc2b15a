//! Pipelines, plans, action keys, scheduling and the plugin contract of `flow`.
pub mod plugin;
