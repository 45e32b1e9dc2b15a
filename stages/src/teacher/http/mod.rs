//! A teacher behind an API.
//!
//! Reading order: [`params`] what a pipeline says, [`preset`] what is known of providers, [`spec`] what is asked where and under which limits, [`shape`]
//! requests and answers, [`client`] one request and its compressed body (`encoding`), [`pace`] when the next may go,
//! [`budget`] what may be spent, [`ask`] many requests until all are answered and kept, [`probe`] what a teacher really
//! gives.

pub mod ask;
pub mod budget;
pub mod client;
mod encoding;
pub mod error;
pub mod pace;
pub mod params;
pub mod preset;
pub mod probe;
pub mod shape;
pub mod spec;
