//! Training a model.
//!
//! - [`batch`]: what a step is fed with; [`windows`]: a text or a teacher's rows as such; [`loader`]: their order;
//! - [`trainer`]: one step on a device: accumulate, reduce, apply; [`program`]: of what it consists; [`taught`]: a teacher beside;
//! - [`recipe`], [`schedule`], [`softening`] (`calibrate`: its temperatures): how a training goes; [`start`]: from where; [`validation`]: how it is judged meanwhile;
//! - [`state`]: what it counts, and its checkpoint; [`run`]: the loop; [`skipped`]: how many steps may fail.

pub mod batch;
mod calibrate;
pub mod loader;
pub mod program;
pub mod recipe;
pub mod run;
pub mod schedule;
pub mod skipped;
pub mod softening;
pub mod start;
pub mod state;
pub mod taught;
pub mod trainer;
pub mod validation;
pub mod windows;

pub use batch::{LossWeights, MicroBatch};
pub use loader::{Loader, Shards};
pub use program::{Beside, TrainShape};
pub use recipe::Recipe;
pub use run::{Trained, Training, Watch, train};
pub use schedule::Schedule;
pub use softening::{Course, Softness, TernarySchedule};
pub use start::{Calibration, Carve, Carved, Layers, Start, initial_values};
pub use taught::{InLoop, Relation, TeacherShape, TokenWeight};
pub use trainer::{Hyper, StepStats, Trainer};
pub use validation::{Evaluate, Evaluation, Validation};
pub use windows::Windows;
