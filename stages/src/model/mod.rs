//! The decoder: its shape, its checkpoint, and the programs that train and run it.
pub mod config;
