//! What a training starts from: drawn values, or the parameters of another model.
//!
//! - [`initial`]: drawn values;
//! - [`carve`]: which layers, heads and neurons of a model are kept, and the shape that is left; [`calibration`]: the text
//!   that decides; `select`: the decision; [`carved`]: the model with what is kept of it;
//! - [`taken`]: a model as a start, tensor by tensor; `pieces`: tokens of another vocabulary.

pub mod calibration;
pub mod carve;
pub mod carved;
pub mod initial;
mod pieces;
mod select;
pub mod taken;

pub use calibration::Calibration;
pub use carve::{Carve, Layers};
pub use carved::{Carved, KeptLayer};
pub use initial::initial_values;
pub use taken::{Drawn, Start};
