//! `flow bench`: how fast this machine trains, infers and computes, beside what it could do.

pub(crate) mod figures;
mod infer;
mod kernels;
mod speed;
mod train;

pub use infer::{InferBench, infer};
pub use kernels::kernels;
pub use speed::{product_speed, training_speed};
pub use train::{TrainBench, train};
